"""N3 beside its ablations and its peers: meta-models and runs that differ in one thing, on the same tasks.

Figures are those of each evaluation.json and of files of `training compare-words`; what was measured on other images or
other kinds of task is never put into one column.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from training import plots
from training.card import PEERS, column_name, met
from training.data.folders import DataError
from training.page import Note, Part, Plot, Section, Table
from training.subjects import Subject

METHOD = "n3"
TITLE = "N3, its ablations and its peers"
COMPARISONS = (
    ("Which layers are adapted", ("classification layer alone", " adapted"), "fit n3 --config tiny-logits"),
    ("Gamma and mu (the paper's Table 3)", ("gamma",), "fit n3 --config cifar-fs-gamma-0.9"),
    ("Token embeddings (the paper's Table 4)", ("embeddings",), "fit n3 --config cifar-fs-static"),
    ("Peers (the paper's Table 2)", tuple(PEERS.values()), "fit word-baselines --config tiny-pdcnn-fc"),
)
"""What the paper compares, by what the labels of its rows say, and how to begin to measure it."""
INTRODUCTION = (
    "Every row of a column met the same tasks, documents and images. Rows of the written network differ in what their "
    "labels say; peers leave the base as it is."
)


@dataclass(frozen=True)
class Measured:
    """One accuracy, percent, with the half width of its 95 % interval (or nan), by what and from which files."""

    label: str
    column: tuple[str, str]
    """The kind of task, and which tasks of it: two accuracies of one column met the same."""
    mean: float
    half: float
    seed: int
    """Of the training."""
    source: str


def section(subjects: Sequence[Subject], peers: Sequence[Path]) -> Section | None:
    """None where there is neither an N3 nor a peer; raises DataError where a file of peers can't be read."""
    subjects = [s for s in subjects if s.meta_model.manifest.method == METHOD]
    compared = [_read_peers(path) for path in peers]
    found = [m for subject in subjects for m in _of_subject(subject)]
    found = _apart([*found, *(m for path, value in zip(peers, compared, strict=True) for m in _of_peers(value, path))])
    if not subjects and not found:
        return None
    parts = _compared(found) if found else []
    notes = [Note(text) for text in (*_leaks(compared), *_missing(found))]
    return Section("ablations", TITLE, INTRODUCTION, [*parts, *notes])


def kind(config: Mapping[str, Any]) -> str:
    """What an N3's configuration is as an ablation: what it adapts, and what differs from the paper's choice."""
    model = config["model"]
    adapts = model["adapts"]
    parts = [
        "every layer" if "" in adapts else f"{', '.join(adapts)} adapted" if adapts else "classification layer alone"
    ]
    if config["embeddings"] != "contextual":
        parts.append(f"{config['embeddings']} embeddings")
    if model["gamma"] is not None:
        parts.append(f"gamma {model['gamma']:g}, mu from {model['mu']:g}")
    return ", ".join(parts)


def _on(base: Mapping[str, Any]) -> str:
    return f"({base['architecture']}, {base['size']} px)"


def _of_subject(subject: Subject) -> list[Measured]:
    config = subject.config
    label = f"N3, {kind(config)} {_on(config['model']['base'])}" if config else subject.name
    return [
        _measured(label, column.facts, figure, config.get("seed", 0), subject.name)
        for column in subject.columns
        if (figure := column.facts["accuracy"].get("generated"))
    ]


def _read_peers(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        _of_peers(value, path)
        _leaks([value])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no peers ({error!r}); `training compare-words` writes some.") from error
    return dict(value)


def _of_peers(value: Mapping[str, Any], path: Path) -> list[Measured]:
    return [
        _measured(f"{PEERS.get(name, name)} {_on(value['base'])}", column, figure, seed, path.name)
        for column in value["columns"]
        for name, seeds in column["by_seed"].items()
        for seed, figure in seeds.items()
    ]


def _measured(
    label: str, column: Mapping[str, Any], figure: Mapping[str, float], seed: int | str, source: str
) -> Measured:
    tasks = f"{column['n_episodes']} episodes, seed {column['seed']}, data digest {column['data_digest']}"
    if digest := column.get("descriptions_digest"):  # older files do not say
        tasks += f", descriptions digest {digest}"
    return Measured(label, (column_name(dict(column)), tasks), figure["mean"], figure["ci95"], int(seed), source)


def _apart(found: Sequence[Measured]) -> list[Measured]:
    """Several seeds of a label are one row; what has the same seed, too, is told apart by where it is from."""
    counts = Counter((m.label, m.column, m.seed) for m in found)
    alike = {label for (label, _, _), n in counts.items() if n > 1}
    return [replace(m, label=f"{m.label} [{m.source}]") if m.label in alike else m for m in found]


def _leaks(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the base of each file of peers has met."""
    return [
        f"Of the peers' base {_on(value['base'])}: it has met "
        f"{met(value['base'], value['train_data_digest']).replace('**', '')}."
        for value in compared
    ]


def _missing(found: Sequence[Measured]) -> list[str]:
    """What of the paper's comparisons is not here, and what would measure it."""
    return [
        f"{what}: not measured. `training {fit}`, then `training compare-words` and `--peers` here."
        for what, marks, fit in COMPARISONS
        if not any(mark in m.label for mark in marks for m in found)
    ]


def _compared(found: Sequence[Measured]) -> list[Part]:
    columns = list(dict.fromkeys(m.column for m in found))
    labels = list(dict.fromkeys(m.label for m in found))
    cells = {(label, column): _over_seeds(found, label, column) for label in labels for column in columns}
    rows = [[label, *(_cell(cells[label, column]) for column in columns)] for label in labels]
    drawn = {
        f"{column[0]} ({column[1].partition(',')[0]})": [
            (label, fmean(m.mean for m in cells[label, column]), _half(cells[label, column]))
            for label in labels
            if cells[label, column]
        ]
        for column in columns
    }
    caption = (
        "Accuracy, %, on unseen classes. One training: 95 % interval over tasks; several: mean and standard deviation "
        f"over their seeds. {'; '.join(f'{name}: {tasks}' for name, tasks in columns)}."
    )
    table = Table(caption, ["accuracy, %", *(f"{name}, {tasks.partition(',')[0]}" for name, tasks in columns)], rows)
    said = "; ".join(f"{label} {_cell(cells[label, columns[0]])}" for label in labels if cells[label, columns[0]])
    plot = Plot("Ablations and peers", plots.to_svg(plots.bars(drawn)), f"{columns[0][0]}: {said}.", caption)
    return [table, plot]


def _over_seeds(found: Sequence[Measured], label: str, column: tuple[str, str]) -> list[Measured]:
    return [m for m in found if m.label == label and m.column == column]


def _half(values: Sequence[Measured]) -> float:
    """The interval of one training, the standard deviation of several."""
    return values[0].half if len(values) == 1 else stdev(m.mean for m in values)


def _cell(values: Sequence[Measured]) -> str:
    if not values:
        return ""
    half = _half(values)
    seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
    return f"{fmean(m.mean for m in values):.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}") + seeds
