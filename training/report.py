"""`training report`: the plots people look at, of all meta-models in a folder, in one HTML page by itself.

Nothing is measured here. Figures come from each ``evaluation.json``, and are drawn for every method: a control that is
not known here gets a colour of its own. Weights come from the exported graphs, attention and training curves from run
folders; what of that a method has is in method_plots.py. What can't be drawn is named on the page, with what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from models.errors import ClassmithError
from training import ablations, card, plots
from training.accuracy_plots import Scores, accuracy_by_channels, accuracy_by_shots, in_order, label_of
from training.checkpoint import CheckpointError, read_header, write_text
from training.data.folders import DataError
from training.method_plots import METHOD_PLOTS, RUN_PLOTS
from training.page import Note, Part, Plot, Section, Table, render
from training.plots import Curve
from training.published import PROTOCOL, PUBLISHED, Published
from training.subjects import Column, Options, Run, Subject, read_subjects

What = TypeVar("What", Subject, Run)
TITLE = "Meta-models: what they do"
INTRODUCTION = (
    "A meta-model writes a neural network for a task from a few images of each class, or from words. Here every image "
    "is answered on its own (inductive), support and query images are disjoint, and each figure stands beside its "
    "controls."
)


def write(
    zoo: Path,
    to: Path,
    options: Options,
    *,
    runs: Sequence[Path] = (),
    columns: Sequence[Path] = (),
    peers: Sequence[Path] = (),
    progress: bool = True,
) -> int:
    """Write the page, whole or not at all; returns how many meta-models it shows.

    ``zoo``: a folder of meta-models, or one of them; ``columns``: files of `training evaluate --images ... --out`;
    ``peers``: of `training compare-words`.
    Raises DataError where ``zoo`` or a column can't be read, InvalidMetaModel for a broken meta-model.
    """
    subjects = read_subjects(zoo, columns)
    with plots.style():
        compared = ablations.section(subjects, peers)
        sections = [
            _overview(subjects, zoo),
            *([_accuracy(subjects)] if _have_widths(subjects) else []),
            *([compared] if compared else []),
            *(_meta_model(s, options) for s in tqdm(subjects, disable=not progress, desc="meta-models")),
            _runs([Run(path) for path in runs], subjects, options),
        ]
    footer = f"Made by `training report` (seed {options.seed}) from files that commands wrote."
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text(to, render(TITLE, INTRODUCTION, sections, footer))
    return len(subjects)


def _overview(subjects: Sequence[Subject], zoo: Path) -> Section:
    """The written network's accuracy of each meta-model in each column, a table for each set of images."""
    if not subjects:
        remedy = "train one with `training fit`, and export it there with `training export`"
        parts: list[Part] = [Note(f"There is no meta-model in {zoo}: {remedy}.")]
        return Section("meta-models", "Meta-models", "", parts)
    missing = [s.name for s in subjects if not s.columns]
    note = f"Not evaluated yet: {', '.join(missing)}. `training evaluate FOLDER` measures a meta-model."
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        if subject.columns:
            groups.setdefault(subject.columns[0].facts["data_digest"], []).append(subject)
    tables = [_side_by_side(group) for group in groups.values()]
    return Section("meta-models", "Meta-models", "", [*tables, *([Note(note)] if missing else [])])


def _side_by_side(subjects: Sequence[Subject]) -> Table:
    """Meta-models that were measured on the same images."""
    columns = [column for s in subjects for column in s.columns]
    names = list(dict.fromkeys(_full_name(column) for column in columns))
    head = ["accuracy of the written network, %", "channels", *names]
    return Table(_protocol(columns), head, [[s.name, str(s.channels or ""), *_by_name(s, names)] for s in subjects])


def _by_name(subject: Subject, names: Sequence[str]) -> list[str]:
    found = {_full_name(column): column.accuracy() for column in subject.columns}
    return [found.get(name, "") for name in names]


def _accuracy(subjects: Sequence[Subject]) -> Section:
    """A plot for each kind of task, of all meta-models that were measured at it on the same images."""
    groups: dict[tuple[str, str], list[tuple[Subject, Column]]] = {}
    for subject in subjects:
        for column in subject.columns:
            if subject.channels:
                groups.setdefault((_full_name(column), column.facts["data_digest"]), []).append((subject, column))
    if not groups:
        nothing = Note("Nothing is measured yet: `training evaluate FOLDER` writes the figures of a meta-model.")
        return Section("accuracy", "Accuracy against channels", "", [nothing])
    parts: list[Part] = [_by_channels(title, group) for (title, _), group in groups.items()]
    published = [row for group in groups.values() for row in _published(group[0][1])]
    if published:
        sources = "; ".join(dict.fromkeys(row.source for row in published))
        parts.append(Note(f"{PROTOCOL} Source: {sources}."))
    introduction = "The same tasks for every meta-model, by the width (channels) of the networks it writes."
    return Section("accuracy", "Accuracy against channels", introduction, parts)


def _have_widths(subjects: Sequence[Subject]) -> bool:
    """Whether some meta-model has a width to be drawn by, or nothing is measured at all, and that is to be said."""
    return not any(s.columns for s in subjects) or any(s.channels for s in subjects)


def _by_channels(title: str, group: Sequence[tuple[Subject, Column]]) -> Plot:
    scores = [Scores(s.name, s.channels or 0, c.facts["accuracy"], c.facts["chance"]) for s, c in group]
    published = _published(group[0][1])
    values = ", ".join(f"{s.name} {column.accuracy()} %" for s, column in group)
    caption = (
        f"{_protocol([column for _, column in group])} Above, what is made from the support images; below, raw "
        "pixels, one network for all tasks, and wrong "
        f"labels.{' Grey lines: published, by another protocol (see below).' if published else ''}"
    )
    figure = accuracy_by_channels(scores, published)
    return Plot(title, plots.to_svg(figure), f"Accuracy of the written networks: {values}.", caption)


def _meta_model(subject: Subject, options: Options) -> Section:
    """Everything about one meta-model."""
    parts: list[Part] = [Note(f"Not evaluated yet: `training evaluate {subject.meta_model.folder}` measures it.")]
    if subject.columns:
        parts = [_controls(subject), _calibration(subject), *_by_shots(subject), _reliability(subject)]
        parts.append(_coverage(subject))
    parts += _attempt(METHOD_PLOTS.get(subject.meta_model.manifest.method, ()), subject, options)
    return Section(f"model-{subject.name}", subject.name, _facts(subject), parts)


def _facts(subject: Subject) -> str:
    manifest, training = subject.meta_model.manifest, subject.training
    facts = [manifest.summary, f"Method {manifest.method}, digest {subject.meta_model.digest[:12]}."]
    if training:
        facts.append(
            f"Trained on {training['train_classes']} classes ({subject.dataset}, data digest "
            f"{training['train_data_digest']}) for {training['steps']} steps, seed {subject.config['seed']}; the "
            f"generator has {training['n_parameters']:,} parameters."
        )
    return " ".join(facts)


def _controls(subject: Subject) -> Table:
    names = in_order(name for column in subject.columns for name in column.facts["accuracy"])
    rows = [[label_of(name), *(column.accuracy(name) for column in subject.columns)] for name in names]
    chance = ["chance", *(str(column.facts["chance"]) for column in subject.columns)]
    head = ["accuracy, %", *(column.name for column in subject.columns)]
    return Table(_protocol(subject.columns), head, [*rows, chance])


def _calibration(subject: Subject) -> Table:
    labels = {
        "answered_percent": "answered",
        "accuracy_when_answered": "accuracy when answered",
        "unknown_classes_abstained_percent": "images of unknown classes refused",
    }
    facts = [column.facts for column in subject.columns]
    errors = ["expected calibration error", *(f"{100 * f['expected_calibration_error']:.2f}" for f in facts)]
    rows = [[label, *(_or_none(f["abstention"][key]) for f in facts)] for key, label in labels.items()]
    manifest = subject.meta_model.manifest
    caption = (
        f"With the shipped temperature ({card.temperature(manifest)}) and threshold: under a top probability of "
        f"{manifest.abstain_below} the answer is “I don't know”. {_data(subject.columns)}"
    )
    return Table(caption, ["%", *(column.name for column in subject.columns)], [errors, *rows])


def _or_none(value: float | None) -> str:
    return "none" if value is None else str(value)


def _by_shots(subject: Subject) -> list[Plot]:
    """A plot for each kind of task that was measured with several numbers of shots, and nothing else different."""
    groups: dict[tuple[object, ...], list[Column]] = {}
    for column in subject.columns:
        shape, facts = column.shape, column.facts
        images = facts["classes_from"], facts["data_digest"]
        groups.setdefault((shape["n_way"], shape["n_unlabeled"], shape["unbalanced"], *images), []).append(column)
    return [_shots(subject, columns) for columns in groups.values() if len({c.shape["n_shot"] for c in columns}) > 1]


def _shots(subject: Subject, columns: Sequence[Column]) -> Plot:
    published: dict[str, dict[int, float]] = {}
    for column in columns:
        for row in _published(column):
            if subject.channels and subject.channels in row.accuracy:
                published.setdefault(row.name, {})[column.shape["n_shot"]] = row.accuracy[subject.channels]
    scores = [Scores(subject.name, c.shape["n_shot"], c.facts["accuracy"], c.facts["chance"]) for c in columns]
    values = ", ".join(f"{c.shape['n_shot']} shots {c.accuracy()} %" for c in columns)
    note = (
        f" Grey lines: published at {subject.channels} channels, by another protocol (see above)." if published else ""
    )
    figure = accuracy_by_shots(scores, list(published.items()))
    title = f"Accuracy against shots, {columns[0].shape['n_way']}-way"
    return Plot(title, plots.to_svg(figure), f"Accuracy of the written networks: {values}.", _protocol(columns) + note)


def _reliability(subject: Subject) -> Plot:
    curves = [
        Curve(
            f"{column.name}: ECE {100 * column.facts['expected_calibration_error']:.2f} %",
            x=[b["confidence"] for b in column.facts["reliability"]],
            y=[b["accuracy"] for b in column.facts["reliability"]],
            weights=[b["n"] for b in column.facts["reliability"]],
        )
        for column in subject.columns
    ]
    caption = (
        "How often answers are right, against how sure they say they are; on the dashed line both agree. A larger "
        f"point has more answers; the bars count those of the first kind of task. {_data(subject.columns)}"
    )
    alt = "Reliability: " + "; ".join(curve.label for curve in curves) + "."
    return Plot("Reliability diagram", plots.to_svg(plots.reliability(curves)), alt, caption)


def _coverage(subject: Subject) -> Plot:
    caption = (
        "Accuracy when only the surest share of the images is answered. A star is what the shipped threshold gives. "
        f"{_data(subject.columns)}"
    )
    curves = [_coverage_curve(column) for column in subject.columns]
    alt = "; ".join(f"{c.label}: {c.y[0]} % at {c.x[0]:g} % answered, {c.y[-1]} % at {c.x[-1]:g} %" for c in curves)
    return Plot("Accuracy against coverage", plots.to_svg(plots.coverage(curves)), f"{alt}.", caption)


def _coverage_curve(column: Column) -> Curve:
    points, abstention = column.facts["accuracy_at_coverage"], column.facts["abstention"]
    right = abstention["accuracy_when_answered"]
    return Curve(
        column.name,
        x=[100 * point["coverage"] for point in points],
        y=[point["accuracy"] for point in points],
        mark=None if right is None else (abstention["answered_percent"], right),
    )


def _runs(runs: Sequence[Run], subjects: Sequence[Subject], options: Options) -> Section:
    """Training curves, and what can only be seen inside a checkpoint."""
    parts: list[Part] = []
    for run in runs:
        try:
            header = read_header(run.folder / "checkpoint.safetensors")
        except CheckpointError as error:
            parts.append(Note(f"{run.folder}: {error}"))
            continue
        parts.append(Note(f"{run.folder}: step {header['step']}, {_origin(header, subjects)}."))
        parts += _attempt(RUN_PLOTS.get(header["method"], ()), run, options)
    if not runs:
        remedy = "give the folder of `training fit` with `--run FOLDER`"
        parts = [
            Note(f"Attention and training curves need a run's checkpoint and log, which no meta-model holds; {remedy}.")
        ]
    return Section("runs", "Training runs: curves and attention", "", parts)


def _origin(header: dict[str, object], subjects: Sequence[Subject]) -> str:
    """Whether meta-models on this page were exported from the very checkpoint."""
    facts = header["config"], header["step"]
    exported = [subject.name for subject in subjects if (subject.config, subject.training.get("steps")) == facts]
    names = ", ".join(exported)
    return f"the checkpoint that {names} was exported from" if names else "from which none of these was exported"


def _attempt(draws: Iterable[Callable[[What, Options], Plot]], what: What, options: Options) -> list[Part]:
    """The plots that could be drawn, then a note for each that could not."""
    drawn: list[Part] = []
    notes: list[Part] = []
    for draw in draws:
        try:
            drawn.append(draw(what, options))
        except (DataError, CheckpointError, ClassmithError) as error:
            notes.append(Note(f"{(draw.__doc__ or draw.__name__).partition(' (')[0]}: not drawn. {error}"))
    return drawn + notes


def _published(column: Column) -> tuple[Published, ...]:
    """Published figures for a column's kind of task, where its classes are drawn from everywhere, as theirs are."""
    shape = column.shape
    alike = column.facts["classes_from"] == "anywhere" and not shape["n_unlabeled"] and not shape["unbalanced"]
    return PUBLISHED.get((column.images, shape["n_way"], shape["n_shot"]), ()) if alike else ()


def _full_name(column: Column) -> str:
    return f"{column.images}: {column.name}" if column.images else column.name


def _protocol(columns: Sequence[Column]) -> str:
    return f"Mean and 95 % interval of the accuracy on query images. {_data(columns)}"


def _data(columns: Sequence[Column]) -> str:
    """How many episodes of which data, with which seed."""
    counts = ", ".join(dict.fromkeys(str(column.facts["n_episodes"]) for column in columns))
    seeds = ", ".join(dict.fromkeys(str(column.facts["seed"]) for column in columns))
    data = ", ".join(
        dict.fromkeys(f"{column.facts['data_digest']} ({column.facts['n_classes']} classes)" for column in columns)
    )
    return f"{counts} episodes, seed {seeds}, data digest {data}."
