"""The drawings of accuracies: a written network's beside its controls' and published ones. The style is plots.py's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training import card
from training.plots import COLOURS, GREYS, MARKERS, WIDTH
from training.published import Published

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": GREYS[0], "linestyle": "--", "linewidth": 1.1},
    {"color": GREYS[1], "linestyle": "-.", "linewidth": 1.1},
)
"""Of published figures, which are none of ours."""
FLOORS = ("pixels_nearest_centroid", "task_agnostic", "shuffled_labels", "shuffled", "random_text")
"""Controls that are drawn in a lower strip of their own, so that the upper one can show small differences."""
SERIES = ("generated", "nearest_centroid", "logistic_regression", "task_agnostic_convolutions_nearest_centroid")
MIN_SPAN = 10.0
"""Percent that an axis of accuracies shows at least, so that a small difference does not look like a large one."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of one meta-model in one column: of the written network and of each control, by name, in percent."""

    name: str
    x: int
    """Channels or shots."""
    accuracy: Mapping[str, Mapping[str, float]]
    chance: float


def accuracy_by_channels(scores: Sequence[Scores], published: Sequence[Published]) -> Figure:
    """Accuracy with 95 % intervals of meta-models side by side, those of one width together, and published figures."""
    scores = sorted(scores, key=lambda s: (s.x, len(s.name), s.name))
    places = _places([s.x for s in scores])
    figure, upper, lower = _strips([name for s in scores for name in s.accuracy], height=5.2)
    _draw_controls(upper, lower, places, scores, line="", apart=0.2)
    for look, row in zip(LOOKS, published, strict=False):
        _draw_published(upper, places, scores, row, look)
    for width in sorted({s.x for s in scores}):
        group = [place for place, s in zip(places, scores, strict=True) if s.x == width]
        middle = float(np.mean(group))
        upper.annotate(f"{width} ch", (middle, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    lower.set_xticks(places, _short_names([s.name for s in scores]), rotation=35, ha="right", fontsize=8)
    lower.set_xlim(min(places) - 0.7, max(places) + 0.7)
    return _with_legend(figure, upper, lower)


def accuracy_by_shots(scores: Sequence[Scores], published: Sequence[tuple[str, Mapping[int, float]]]) -> Figure:
    """Accuracy of one meta-model with 95 % intervals against images a class; published: label and accuracy by shots."""
    scores = sorted(scores, key=lambda s: s.x)
    places = [float(i) for i in range(len(scores))]
    figure, upper, lower = _strips([name for s in scores for name in s.accuracy], height=5.0)
    _draw_controls(upper, lower, places, scores, line="-", apart=0.03)
    for look, (label, accuracy) in zip(LOOKS, published, strict=False):
        known = [(place, accuracy[s.x]) for place, s in zip(places, scores, strict=True) if s.x in accuracy]
        upper.plot([place for place, _ in known], [value for _, value in known], marker="x", label=label, **look)
    lower.set_xticks(places, [str(s.x) for s in scores])
    lower.set_xlim(-0.4, len(scores) - 0.6)
    lower.set_xlabel("labelled images a class")
    return _with_legend(figure, upper, lower)


def label_of(name: str) -> str:
    """A control's name in words."""
    return card.LABELS.get(name, name.replace("_", " ")).strip("*†‡ ")


def in_order(names: Iterable[str]) -> list[str]:
    """The written network, what needs the support images, the floors, then controls not known here; each once."""
    known = (*SERIES, *FLOORS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def _strips(names: Sequence[str], *, height: float) -> tuple[Figure, Axes, Axes]:
    """An upper axes, and a lower one for FLOORS where there are any (else the same one)."""
    figure = Figure(figsize=(WIDTH, height))
    if not set(names) & set(FLOORS):
        axes = figure.subplots()
        axes.set_ylabel("accuracy, %")
        return figure, axes, axes
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.set_ylabel("accuracy, %")
    lower.set_ylabel("accuracy, %")
    lower.yaxis.set_major_locator(MaxNLocator(3))
    return figure, upper, lower


def _draw_controls(
    upper: Axes, lower: Axes, places: Sequence[float], scores: Sequence[Scores], *, line: str, apart: float
) -> None:
    """Each series with its error bars, in the order and colours that all figures share."""
    present = {name for s in scores for name in s.accuracy}
    for i, name in enumerate(in_order([*SERIES, *FLOORS, *present])):
        if name not in present:
            continue
        kept = [(place, s.accuracy[name]) for place, s in zip(places, scores, strict=True) if name in s.accuracy]
        offset = apart * (i % len(SERIES) - (len(SERIES) - 1) / 2)
        (lower if name in FLOORS else upper).errorbar(
            [place + offset for place, _ in kept],
            [figure["mean"] for _, figure in kept],
            yerr=[figure["ci95"] for _, figure in kept],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=line,
            capsize=2,
            markersize=7 if name == "generated" else 4.5,
            zorder=3 if name == "generated" else 2,
            label=label_of(name),
        )
    low, high = upper.get_ylim()
    spare = max(0.0, MIN_SPAN - (high - low)) / 2
    upper.set_ylim(low - spare, high + spare)
    if lower is not upper:
        ends = [(place + side, s.chance) for place, s in zip(places, scores, strict=True) for side in (-0.4, 0.4)]
        lower.plot(*zip(*ends, strict=True), color=GREYS[1], linestyle=":", label="chance")
        lower.set_ylim(0, None)


def _draw_published(
    axes: Axes, places: Sequence[float], scores: Sequence[Scores], row: Published, look: dict[str, Any]
) -> None:
    """A line through a width's published figure, level over the meta-models of that width."""
    points = [
        (place + side, row.accuracy[s.x])
        for place, s in zip(places, scores, strict=True)
        for side in (-0.4, 0.4)
        if s.x in row.accuracy
    ]
    if points:
        axes.plot(*zip(*points, strict=True), label=row.name, **look)


def _places(widths: Sequence[int]) -> list[float]:
    """Positions along the axis: equal steps, with a gap before every new width."""
    places = [0.0]
    for before, width in pairwise(widths):
        places.append(places[-1] + (1.0 if width == before else 1.5))
    return places


def _short_names(names: Sequence[str]) -> list[str]:
    """Names without what they all begin with."""
    if len(names) == 1:
        return list(names)
    common = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    cut = "".join(letters[0] for letters in common).rfind("-") + 1
    return [name[cut:] for name in names]


def _with_legend(figure: Figure, upper: Axes, lower: Axes) -> Figure:
    """A legend below: the series in their order, then reference lines."""
    handles = [h for axes in dict.fromkeys((upper, lower)) for h in axes.get_legend_handles_labels()[0]]
    handles.sort(key=lambda handle: not isinstance(handle, ErrorbarContainer))
    figure.legend(handles=handles, loc="outside lower left")
    return figure
