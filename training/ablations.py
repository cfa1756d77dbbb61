"""N3 beside its ablations and its peers: meta-models and runs that differ in one thing, on the same tasks, in one table.

Figures are those of each evaluation.json, of each run's log, and of files of `training compare-words`; what was measured
on other images or other kinds of task is never put into one column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from training import plots
from training.card import column_name
from training.checkpoint import CheckpointError, read_header
from training.data.folders import DataError
from training.page import Note, Part, Plot, Section, Table
from training.subjects import Run, Subject, read_log

METHOD = "n3"
TITLE = "N3, its ablations and its peers"
PEERS = {
    "linear": "linear map, text to class mean (ridge)",
    "text2model": "Text2Model",
    "pdcnn_fc": "PDCNN-fc",
    "pdcnn_fc_conv": "PDCNN-fc+conv",
    "megazsl_neighbours": "MEGAZSL, nearest imagined features",
    "megazsl_softmax": "MEGAZSL, softmax of imagined features",
}
INTRODUCTION = (
    "Every row of a column met the same tasks, documents and images. Rows of the written network differ in what their "
    "labels say; peers leave the base as it is."
)


@dataclass(frozen=True)
class Measured:
    """One accuracy, percent: ``column`` is the kind of task and the images, ``half`` the half width of 95 % (or nan)."""

    label: str
    column: tuple[str, str]
    mean: float
    half: float
    seed: int


def section(subjects: Sequence[Subject], runs: Sequence[Run], peers: Sequence[Path]) -> Section | None:
    """None where there is neither an N3 nor a peer; raises DataError where a file of peers can't be read."""
    found = [m for s in subjects if s.meta_model.manifest.method == METHOD for m in _of_subject(s)]
    found += [m for path in peers for m in _of_peers(path)]
    parts: list[Part] = _compared(found) if found else []
    logged = _logged(runs)
    parts += [logged] if logged else []
    return Section("ablations", TITLE, INTRODUCTION, parts) if parts else None


def describe(config: Mapping[str, Any]) -> str:
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
    return f"{', '.join(parts)} ({model['base']['architecture']}, {model['base']['size']} px)"


def _of_subject(subject: Subject) -> list[Measured]:
    label = describe(subject.config) if subject.config else subject.name
    seed = int(subject.config.get("seed", 0))
    return [
        Measured(f"N3, {label}", (c.name, c.facts["data_digest"]), figure["mean"], figure["ci95"], seed)
        for c in subject.columns
        if (figure := c.facts["accuracy"].get("generated"))
    ]


def _of_peers(path: Path) -> list[Measured]:
    try:
        value = json.loads(path.read_text())
        base = f"({value['base']['architecture']}, {value['base']['size']} px)"
        return [
            Measured(
                f"{PEERS.get(name, name)} {base}",
                (column_name(c), c["data_digest"]),
                own["mean"],
                own["ci95"],
                int(seed),
            )
            for c in value["columns"]
            for name, seeds in c["by_seed"].items()
            for seed, own in seeds.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no peers ({error!r}); `training compare-words` writes some.") from error


def _compared(found: Sequence[Measured]) -> list[Part]:
    columns = list(dict.fromkeys(m.column for m in found))
    labels = list(dict.fromkeys(m.label for m in found))
    cells = {(label, column): _over_seeds(found, label, column) for label in labels for column in columns}
    rows = [[label, *(_cell(cells[label, column]) for column in columns)] for label in labels]
    drawn = {
        f"{column[0]} ({column[1]})": [
            (label, fmean(m.mean for m in cells[label, column]), _half(cells[label, column]))
            for label in labels
            if cells[label, column]
        ]
        for column in columns
    }
    caption = (
        "Accuracy, %, on unseen classes. One seed: 95 % interval over tasks; several: mean and standard deviation over "
        f"the trainings' seeds. Data digests: {', '.join(dict.fromkeys(digest for _, digest in columns))}."
    )
    table = Table(caption, ["accuracy, %", *(f"{name} ({digest})" for name, digest in columns)], rows)
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


def _logged(runs: Sequence[Run]) -> Table | Note | None:
    """What the logs of N3's runs end with: of those too that can't be exported, such as other embeddings."""
    rows, problems = [], []
    for run in runs:
        try:
            header = read_header(run.folder / "checkpoint.safetensors")
            if header["method"] != METHOD:
                continue
            last = read_log(run.folder, ("step", "adapted", "base"))[-1]
        except CheckpointError:
            continue  # named among the runs
        except DataError as error:
            problems.append(str(error))
            continue
        seed, digest = header["config"]["seed"], header.get("train_data_digest", "")
        figures = [f"{100 * last[name]:.1f}" for name in ("adapted", "base")]
        rows.append([describe(header["config"]), str(last["step"]), str(seed), *figures, digest])
    if not rows:
        return Note(" ".join(problems)) if problems else None
    caption = (
        "Accuracy, %, of 10-way tasks of validation classes, words alone, that a run's log ends with: few tasks, the same "
        f"for all, to compare runs that no evaluation has. {' '.join(problems)}"
    )
    return Table(caption, ["run", "steps", "seed", "as written", "classification layer alone", "training data"], rows)
