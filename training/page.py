"""One self-contained HTML page of plots, tables and notes: no script, no network, readable on a phone.

Plots are SVG inside ``data:`` addresses, so that the page is one file, and nothing in one plot can touch another.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: #fff; color: #1c2430;
       font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 2px solid #0072b2; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: #00558a; }
code { background: #eef2f6; padding: .1em .3em; border-radius: .2rem; font-size: .9em; }
nav ul { padding: 0; margin: 1rem 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem;
         align-items: start; margin: 1rem 0; }
figure { margin: 0; padding: .75rem; border: 1px solid #d9e0e8; border-radius: .4rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; line-height: 1.4; color: #3d4a5a; margin-top: .5rem; }
.note { max-width: 48rem; background: #f6f8fa; border-left: .25rem solid #e69f00; padding: .6rem .9rem;
        margin: 1rem 0; }
.note p { margin: 0; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
.caption { font-size: .85rem; color: #3d4a5a; margin: 1.5rem 0 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e8ee; text-align: right; vertical-align: bottom;
         font-variant-numeric: tabular-nums; }
thead th { font-weight: 600; min-width: 5.5rem; }
th:first-child, td:first-child { text-align: left; min-width: 9rem; font-weight: 400; }
td { white-space: nowrap; }
footer { margin: 3rem 0 1rem; font-size: .85rem; color: #3d4a5a; }
@media print { figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Plot:
    """A drawing with what it shows in words: ``alt`` for those who can't see it, ``caption`` for everybody."""

    title: str
    svg: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Note:
    """Words where something is not shown: what is missing, and what brings it. Backquotes mark commands."""

    text: str


Part = Plot | Table | Note


@dataclass(frozen=True)
class Section:
    """A heading that the contents link to, an introduction, and parts in order."""

    anchor: str
    title: str
    introduction: str
    parts: Sequence[Part]


def render(title: str, introduction: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page. Texts are plain (backquotes mark commands) and are escaped here."""
    contents = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>{_paragraph(introduction)}",
            f'<nav aria-label="Contents"><ul>{contents}</ul></nav>',
            *map(_section, sections),
            f"<footer>{_paragraph(footer)}</footer></body></html>\n",
        ]
    )


def _section(section: Section) -> str:
    runs = groupby(section.parts, key=lambda part: isinstance(part, Plot))
    body = "\n".join(_plots(parts) if are_plots else "\n".join(map(_words, parts)) for are_plots, parts in runs)
    heading = f'<h2 id="{escape(section.anchor)}">{escape(section.title)}</h2>'
    return f"<section>{heading}\n{_paragraph(section.introduction)}\n{body}\n</section>"


def _plots(parts: Iterable[Part]) -> str:
    figures = "\n".join(_figure(part) for part in parts if isinstance(part, Plot))
    return f'<div class="plots">\n{figures}\n</div>'


def _figure(plot: Plot) -> str:
    data = base64.b64encode(plot.svg).decode()
    image = f'<img alt="{escape(plot.alt)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure><h3>{escape(plot.title)}</h3>{image}<figcaption>{_inline(plot.caption)}</figcaption></figure>"


def _words(part: Part) -> str:
    if isinstance(part, Note):
        return f'<div class="note">{_paragraph(part.text)}</div>'
    assert isinstance(part, Table)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in part.head)
    rows = "\n".join(_row(row) for row in part.rows)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    region = f'role="region" aria-label="{escape(part.head[0])}" tabindex="0"'
    return f'<p class="caption">{_inline(part.caption)}</p><div class="scroll" {region}>{table}</div>'


def _row(cells: Sequence[str]) -> str:
    """The first cell names the row."""
    first, *others = map(_inline, cells)
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text)}</p>" if text else ""


def _inline(text: str) -> str:
    """Escaped, with every second stretch between backquotes as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
