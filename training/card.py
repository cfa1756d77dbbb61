"""CARD.md, rendered from evaluation.json: nobody types a number into a card."""

from __future__ import annotations

from typing import Any

from models.metamodel import Manifest

FITTED = (
    "Temperature and threshold were fitted on the validation classes, which are also these where no others are given: "
    "take this table as optimistic."
)
CONTROLS = {
    "generated": "**written network**",
    "nearest_centroid": "nearest centroid, same features",
    "logistic_regression": "logistic regression, same features",
    "task_agnostic_convolutions_nearest_centroid": "mean written convolutions + nearest centroid",
    "task_agnostic": "task-agnostic (mean of written weights)",
    "shuffled_labels": "labels shuffled between classes",
    "pixels_nearest_centroid": "nearest centroid, raw pixels",
}


def render(manifest: Manifest, evaluation: dict[str, Any]) -> str:
    """The card's Markdown."""
    sections = [
        f"# {manifest.name}\n\n{manifest.summary}",
        _facts(manifest, evaluation),
        _accuracy(evaluation["columns"]),
        _calibration(evaluation["columns"]),
        _notes(evaluation),
        "Rendered from `evaluation.json` by `training evaluate`; commands and seeds are in that file.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def column_name(column: dict[str, Any]) -> str:
    """A short name of an evaluated column."""
    shape = column["shape"]
    unlabeled = f" + {shape['n_unlabeled']} unlabelled" if shape["n_unlabeled"] else ""
    return f"{shape['n_way']}-way {shape['n_shot']}-shot{unlabeled}, classes from {column['classes_from']}"


def _facts(manifest: Manifest, evaluation: dict[str, Any]) -> str:
    training = evaluation["training"]
    size = manifest.preprocess.size
    rows = [
        ("method", manifest.method),
        (
            "input",
            f"{size} x {size} px, {'grey' if manifest.preprocess.channels == 1 else 'colour'}, {manifest.domain}",
        ),
        ("classes", f"{manifest.min_classes} to {manifest.max_classes}"),
        (
            "trained on",
            f"{_data_name(training)}, {training['train_classes']} classes (digest {training['train_data_digest']})",
        ),
        ("never seen in training", ", ".join(training["validation_groups"])),
        (
            "steps",
            f"{training['steps']} of {training['config']['images_per_step']} images, seed {training['config']['seed']}",
        ),
        ("parameters of the generator", f"{training['n_parameters']:,}"),
        ("largest relative error, ONNX Runtime against PyTorch", f"{max(evaluation['parity'].values()):.1e}"),
        ("temperature, abstain below", f"{manifest.temperature}, {manifest.abstain_below}"),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _data_name(training: dict[str, Any]) -> str:
    dataset: str = training["config"]["dataset"]
    return "images of one's own" if training.get("own_images") else dataset


def _accuracy(columns: list[dict[str, Any]]) -> str:
    if not columns:
        return "Not evaluated yet: run `training evaluate`."
    head = "| accuracy, % | " + " | ".join(column_name(c) for c in columns) + " |"
    rows = [
        f"| {label} | " + " | ".join(_figure(c["accuracy"].get(name)) for c in columns) + " |"
        for name, label in CONTROLS.items()
        if any(name in c["accuracy"] for c in columns)
    ]
    chance = "| chance | " + " | ".join(str(c["chance"]) for c in columns) + " |"
    first = columns[0]
    note = (
        f"Mean and 95 % interval over {first['n_episodes']} episodes of {first['n_classes']} unseen classes (data "
        f"digest {first['data_digest']}, seed {first['seed']}); support and query disjoint; inductive: every image is "
        "answered on its own."
    )
    return "\n".join(["## Accuracy", "", head, "|---" * (len(columns) + 1) + "|", *rows, chance, "", note])


def _figure(figure: dict[str, float] | None) -> str:
    return f"{figure['mean']:.1f} ± {figure['ci95']:.1f}" if figure else ""


def _calibration(columns: list[dict[str, Any]]) -> str:
    if not columns:
        return ""
    rows = [
        f"| {column_name(c)} | {100 * c['expected_calibration_error']:.1f} | {c['abstention']['answered_percent']} | "
        f"{c['abstention']['accuracy_when_answered']} | {c['abstention']['unknown_classes_abstained_percent']} |"
        for c in columns
    ]
    head = "| | ECE, % | answered, % | accuracy when answered, % | unknown classes abstained, % |"
    return "\n".join(['## Calibration and "I don\'t know"', "", head, "|---|---|---|---|---|", *rows, "", FITTED])


def _notes(evaluation: dict[str, Any]) -> str:
    notes = evaluation.get("notes", [])
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
