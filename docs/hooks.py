"""What mkdocs adds to the pages while it builds the site: the OpenAPI document, model cards, figures, changes.

The functions are events of mkdocs (`hooks:` in mkdocs.yml). Pages on GitHub link to files around docs/; on the site,
which has only some of them, the others are named instead.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ZOO = "models/zoo"
CHANGES = "changes.md"
FIGURES = re.compile(r"<!-- figures (\w+) -->")
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what other commands of the project wrote, and the OpenAPI document of the application itself."""
    files.append(File.generated(config, "openapi.json", content=json.dumps(openapi(), indent=1)))
    files.append(File.generated(config, CHANGES, content=(ROOT / "CHANGELOG.md").read_text()))
    for card in sorted((ROOT / ZOO).glob("*/CARD.md")):
        files.append(File.generated(config, card_page(card.parent.name), content=card.read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the figures, the calls, and links to files that the site does not have."""
    if page.meta.get("openapi"):
        template = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        return template.from_string(markdown).render(api=openapi())
    return LINK.sub(_link, FIGURES.sub(_figures, markdown))


@cache
def openapi() -> dict[str, Any]:
    """What `/openapi.json` of a service with keys answers."""
    from service.app import create_app
    from service.settings import Settings

    return create_app(Settings.model_validate({"api_keys": {"key": "reader"}})).openapi()


def card_page(name: str) -> str:
    """Where a meta-model's card stands on the site."""
    return f"cards/{name}.md"


def _figures(match: re.Match[str]) -> str:
    """A block of the README that `make readme` wrote, so that no page repeats a figure by hand."""
    begin, end = f"<!-- begin {match[1]} -->", f"<!-- end {match[1]} -->"
    _, found, rest = (ROOT / "README.md").read_text().partition(begin)
    if not found:
        raise ValueError(f"README.md has no block {match[1]!r}")
    return re.sub(rf"\({ZOO}/([^/]+)/CARD\.md\)", lambda card: f"({card_page(card[1])})", rest.partition(end)[0])


def _link(match: re.Match[str]) -> str:
    card = re.fullmatch(rf"{ZOO}/([^/]+)/CARD\.md", match[2])
    if card:
        return f"[{match[1]}]({card_page(card[1])})"
    return f"[{match[1]}]({CHANGES})" if match[2] == "CHANGELOG.md" else f"`{match[2]}`"
