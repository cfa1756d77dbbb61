"""The drawings of a report: arrays and figures in, a Matplotlib figure out. No models, no files, no page.

One style for all: the Okabe-Ito colours, which colour-blind people tell apart, and a marker of its own for each series;
drawn narrow, so that text stays readable on a phone. Accuracies beside their controls are drawn in accuracy_plots.py,
and the words about a drawing are the report's.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]
WIDTH = 4.4
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREYS = ("#444444", "#8a8a8a")
SIGNED = "PuOr"
INTENSITY = LinearSegmentedColormap.from_list("intensity", ["#ffffff", SKY, BLUE, "#001a2c"])
MAX_SLICES = 16
MAX_RATIO = 1.2
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7785",
    "axes.labelcolor": "#1c2430",
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e8ee",
    "grid.linewidth": 0.7,
    "xtick.color": "#3d4a5a",
    "ytick.color": "#3d4a5a",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "classmith",
}


@dataclass(frozen=True)
class Curve:
    """A labelled line of points, with a weight (how many predictions) for each, and perhaps one point to mark."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    weights: Sequence[float] = ()
    mark: tuple[float, float] | None = None


def style() -> AbstractContextManager[None]:
    """The one style; make and save every figure inside it."""
    return mpl.rc_context(STYLE)


ID = re.compile(rb"\b([a-zA-Z])[0-9a-f]{10}\b")
"""As matplotlib names clips, markers and glyphs in an SVG."""


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time, with text as shapes: it looks the same everywhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _numbered(buffer.getvalue())


def _numbered(svg: bytes) -> bytes:
    """Its ids in their order: those of matplotlib hash places to the last bit, which layouts do not repeat."""
    names: dict[bytes, bytes] = {}
    return ID.sub(lambda found: found[1] + names.setdefault(found[0], b"%010d" % len(names)), svg)


def reliability(curves: Sequence[Curve]) -> Figure:
    """Accuracy against confidence by bins; points grow with the share of answers in them. Below, where answers lie."""
    figure = Figure(figsize=(WIDTH, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=GREYS[1], linestyle="--", linewidth=1, label="perfectly calibrated")
    for colour, marker, curve in zip(COLOURS, MARKERS, curves, strict=False):
        share = np.asarray(curve.weights) / max(1.0, float(np.sum(curve.weights)))
        upper.plot(curve.x, curve.y, color=colour, linewidth=1)
        upper.scatter(curve.x, curve.y, 6 + 150 * share, color=colour, marker=marker, label=curve.label, alpha=0.85)
    first = curves[0]
    share = 100 * np.asarray(first.weights) / max(1.0, float(np.sum(first.weights)))
    lower.bar(first.x, share, width=0.05, color=COLOURS[0])
    upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    lower.set(xlabel="confidence (top probability)", ylabel="% of answers")
    figure.legend(loc="outside lower left", handles=_even_handles(upper))
    return figure


def coverage(curves: Sequence[Curve]) -> Figure:
    """Accuracy of the most confident share of answers; a star marks what the shipped threshold gives."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots()
    for colour, marker, curve in zip(COLOURS, MARKERS, curves, strict=False):
        axes.plot(curve.x, curve.y, color=colour, marker=marker, label=curve.label)
        if curve.mark:
            axes.plot(*curve.mark, color=colour, marker="*", markersize=12, markeredgecolor="black", linestyle="")
    axes.plot([], [], color="white", marker="*", markersize=12, markeredgecolor="black", label="shipped threshold")
    axes.set(xlabel="answered, % of images (most confident first)", ylabel="accuracy of these, %")
    figure.legend(loc="outside lower left")
    return figure


def kernels(layers: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Weights of two tasks on one scale, and their difference on its own, layer by layer.

    A layer is a pair of ``(C_out, C_in, h, w)`` convolutions or ``(K, F)`` matrices, of which at most MAX_SLICES inputs
    and outputs are drawn.
    """
    drawn = {name: [_mosaic(part) for part in (a, b, a - b)] for name, (a, b) in layers.items()}
    ratios = [min(MAX_RATIO, max(0.3, parts[0].shape[0] / parts[0].shape[1])) for parts in drawn.values()]
    figure = Figure(figsize=(WIDTH, 0.3 + sum(0.24 + 1.25 * ratio for ratio in ratios)))
    rows = figure.subplots(len(drawn), 3, squeeze=False, height_ratios=ratios)
    for axes_row, ratio, (name, parts) in zip(rows, ratios, drawn.items(), strict=True):
        both, aspect = _limit(parts[:2]), "auto" if ratio == MAX_RATIO else "equal"
        for axes, part, limit in zip(axes_row, parts, (both, both, _limit(parts[2:])), strict=True):
            axes.imshow(part, cmap=SIGNED, vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest")
            axes.set_xlabel(f"±{limit:.2g}", fontsize=7, labelpad=1)
            _bare(axes)
        axes_row[0].set_ylabel(name, fontsize=8)
    for axes, title in zip(rows[0], ("task A", "task B", "A - B, own scale"), strict=True):
        axes.set_title(title)
    return figure


def weight_map(
    layers: Mapping[str, Array], classes: NDArray[np.int64], examples: Sequence[NDArray[np.uint8]]
) -> Figure:
    """Positions ``(N, 2)`` of N tasks for each layer, marked by their class ``(N,)``; ``examples``: images of these."""
    n_columns = min(2, len(layers))
    n_rows = math.ceil(len(layers) / n_columns)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.1 * n_rows))
    (places,), (legend,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.1 * n_rows, 0.8])
    grid = places.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, (name, positions) in zip(grid, layers.items(), strict=False):
        for k in range(len(examples)):
            points = positions[classes == k]
            axes.scatter(points[:, 0], points[:, 1], 14, color=COLOURS[k], marker=MARKERS[k], alpha=0.8, linewidths=0)
        axes.set_title(name)
        _bare(axes)
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    for k, axes in enumerate(legend.subplots(1, len(examples), squeeze=False)[0]):
        axes.imshow(_picture(examples[k]), cmap="gray", vmin=0, vmax=255)
        axes.plot([0.5], [-0.25], color=COLOURS[k], marker=MARKERS[k], transform=axes.transAxes, clip_on=False)
        _bare(axes, colour=COLOURS[k])
    return figure


def attention(
    layers: Mapping[str, Array], support: NDArray[np.uint8], labels: NDArray[np.int64], *, unlabeled: int
) -> Figure:
    """Attention ``(T, S)`` of each layer's weight tokens over S support images, whose pictures head the columns.

    ``labels`` ``(S,)`` in order; those that equal ``unlabeled`` have no class. Each layer has its own scale.
    """
    heights = [min(1.5, max(0.6, 0.07 * len(part))) for part in layers.values()]
    figure = Figure(figsize=(WIDTH, 0.5 + sum(0.35 + height for height in heights)))
    rows = figure.subplots(1 + len(layers), 1, height_ratios=[WIDTH / len(support), *heights])
    strip = np.concatenate([_picture(image) for image in support], axis=1)
    rows[0].imshow(strip, cmap="gray", vmin=0, vmax=255, aspect="auto", extent=(-0.5, len(support) - 0.5, 0, 1))
    rows[0].set_title("support images" + (", the last ones unlabelled" if unlabeled in labels else ""))
    _bare(rows[0])
    for axes, (name, part) in zip(rows[1:], layers.items(), strict=True):
        axes.imshow(part, cmap=INTENSITY, vmin=0, aspect="auto", interpolation="nearest")
        axes.set_title(f"{name}: {len(part)} weight tokens; darkest {part.max():.2g}")
        for boundary in np.flatnonzero(np.diff(labels)):
            axes.axvline(boundary + 0.5, color=GREYS[1], linewidth=0.6)
        _bare(axes)
    return figure


def training_curves(steps: Sequence[int], losses: Sequence[float], accuracies: Mapping[str, Sequence[float]]) -> Figure:
    """Training loss and validation accuracies (percent, by what they are of) against steps."""
    figure = Figure(figsize=(WIDTH, 4.2))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(steps, losses, color=VERMILION, marker=".")
    for (name, values), colour in zip(accuracies.items(), (BLUE, GREEN), strict=False):
        lower.plot(steps, values, color=colour, marker=".", label=name)
    if len(accuracies) > 1:
        lower.legend()
    upper.set(ylabel="training loss", ylim=(0, None))
    lower.set(xlabel="step", ylabel="validation accuracy, %")
    return figure


def magnitudes(layers: Sequence[str], kinds: Sequence[str], mean: Array, deviation: Array) -> Figure:
    """How much each layer changes (percent of its weight, with its deviation over tasks), and each kind of layer."""
    order = list(dict.fromkeys(kinds))
    figure = Figure(figsize=(WIDTH, 0.9 + 0.17 * len(layers) + 0.3 * len(order)))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[0.17 * len(layers) + 0.2, 0.3 * len(order) + 0.2])
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(order)}
    places = range(len(layers))
    upper.barh(places, mean, xerr=deviation, color=[colours[kind] for kind in kinds], error_kw={"linewidth": 0.8})
    upper.set_yticks(places, layers, fontsize=6)
    by_kind = [float(np.mean([m for m, k in zip(mean, kinds, strict=True) if k == kind])) for kind in order]
    lower.barh(range(len(order)), by_kind, color=[colours[kind] for kind in order])
    lower.set_yticks(range(len(order)), order)
    for axes in (upper, lower):
        axes.invert_yaxis()
    lower.set_xlabel("change, % of the length of the base's weight")
    return figure


def before_and_after(before: Array, after: Array, labels: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Positions ``(Q, 2)`` of the same images before and after the adaptation, marked by their class ``(Q,)``."""
    figure = Figure(figsize=(WIDTH, 3.4))
    for axes, positions, title in zip(figure.subplots(1, 2), (before, after), ("before", "after"), strict=True):
        for k, name in enumerate(names):
            points = positions[labels == k]
            look = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]}
            label = name if title == "before" else None
            axes.scatter(points[:, 0], points[:, 1], 9, alpha=0.8, linewidths=0, label=label, **look)
        axes.set_title(title)
        _bare(axes)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def confusion(shares: Array, names: Sequence[str]) -> Figure:
    """Shares ``(K, K)``: true classes down, answers across; the darker, the more of the true class's images."""
    figure = Figure(figsize=(WIDTH, WIDTH + 0.3))
    axes = figure.subplots()
    axes.imshow(shares, cmap=INTENSITY, vmin=0, vmax=1, interpolation="nearest")
    size = min(8.0, 170 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.grid(False)
    axes.set(xlabel="answer", ylabel="true class")
    return figure


def bars(groups: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """For each title bars of (label, percent, half interval or nan), one axes under another, labels above the bars."""
    heights = [0.35 + 0.28 * len(rows) for rows in groups.values()]
    figure = Figure(figsize=(WIDTH, 0.3 + sum(heights)))
    drawn = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(drawn, groups.items(), strict=True):
        labels, values, halves = zip(*rows, strict=True)
        axes.barh(range(len(rows)), values, 0.4, xerr=np.nan_to_num(halves), color=BLUE, error_kw={"linewidth": 0.8})
        for place, label in enumerate(labels):
            axes.text(0, place - 0.3, f" {label}", fontsize=7, va="bottom")
        axes.set(yticks=[], ylim=(len(rows) - 0.6, -0.9))
        axes.set_title(title, loc="left")
    drawn[-1].set_xlabel("accuracy, %")
    return figure


def is_cut(weights: Array) -> bool:
    """Whether ``kernels`` leaves some of a layer out."""
    return bool(max(weights.shape[:2]) > (2 * MAX_SLICES if weights.ndim == 2 else MAX_SLICES))


def _even_handles(axes: Axes) -> list[Any]:
    """Legend handles whose markers have one size, whatever the points'."""
    handles, labels = axes.get_legend_handles_labels()
    blank = Figure().subplots()
    even = []
    for handle, label in zip(handles, labels, strict=True):
        if handle in axes.lines:
            even.append(handle)
            continue
        i = len(even) - 1
        even += blank.plot([], [], color=COLOURS[i], marker=MARKERS[i], linewidth=1, label=label)
    return even


def _mosaic(weights: Array) -> Array:
    """``(C_out, C_in, h, w)`` or ``(K, F)`` -> an image, inputs down and outputs across, kernels a pixel apart."""
    if weights.ndim == 2:
        return weights[: 2 * MAX_SLICES, : 2 * MAX_SLICES].T
    tiles = np.pad(weights[:MAX_SLICES, :MAX_SLICES], ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    across = np.concatenate(list(tiles), axis=2)
    return np.concatenate(list(across), axis=0)[:-1, :-1]


def _limit(images: Sequence[Array]) -> float:
    """The largest magnitude."""
    return max(1e-12, *(float(np.nanmax(np.abs(image))) for image in images))


def _picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(H, W, C)`` -> what ``imshow`` takes: ``(H, W)`` grey or ``(H, W, 3)``."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _bare(axes: Axes, colour: str = "#d9e0e8") -> None:
    """No ticks and no grid, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=0.8)
