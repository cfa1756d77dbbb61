"""CARD.md, rendered from evaluation.json: nobody types a number into a card."""

from __future__ import annotations

from typing import Any

from models import quantised
from models.metamodel import Manifest
from models.nn.conv4 import Pooling, pooled_size

FITTED = (
    "Temperature and threshold were fitted on the validation classes, which are also these where no others are given: "
    "take this table as optimistic."
)
CONTROLS = {
    "generated": "**written network**",
    "nearest_centroid": "nearest centroid, same features",
    "nearest_centroid_of_views": "nearest centroid, same features of the same mirrored or shifted images",
    "logistic_regression": "logistic regression, same features",
    "task_agnostic_convolutions_nearest_centroid": "mean written convolutions + nearest centroid",
    "task_agnostic": "task-agnostic (mean of written weights)",
    "shuffled_labels": "labels shuffled between classes",
    "pixels_nearest_centroid": "nearest centroid, raw pixels",
    "transductive": "transductive: normalised with the statistics of all queries of a task, as in the paper",
}
"""Rows of a meta-model that reads images alone."""
DESCRIBED_CONTROLS = {
    "generated": "**written network**",
    "classification_layer_alone": "its classification layer, base as it is",
    "task_agnostic_layers": "its classification layer, layers adapted task-agnostically (mean of codes)",
    "words_alone": "words alone",
    "images_alone": "images alone",
    "mixed": "images alone for every second class, words alone for the others",
    "weighted_sum": "words alone + images alone, best weighted sum",
    "nearest_centroid": CONTROLS["nearest_centroid"],
    "logistic_regression": CONTROLS["logistic_regression"],
    "fine_tuned": "fine-tuned, all layers, by gradient descent; first episodes alone ‡",
    "names_alone": "names, no descriptions †",
    "names_withheld": "descriptions, no names †",
    "shuffled": "classes shuffled †",
    "random_text": "random words for descriptions †",
}
"""Rows of one that reads descriptions."""
LABELS = CONTROLS | DESCRIBED_CONTROLS
PEERS = {
    "linear": "linear map, text to class mean (ridge)",
    "text2model": "Text2Model",
    "pdcnn_fc": "PDCNN-fc",
    "pdcnn_fc_conv": "PDCNN-fc+conv",
    "megazsl": "MEGAZSL, nearest imagined features",
}
DAGGER = (
    "† with the classification layer alone, to be held against that row where layers are adapted. Shuffled: each class "
    "is given what belongs to another; random words: numbers for names, as many words drawn from all texts."
)
COMPARED = {
    "generated": "written network",
    "images_alone": "written without descriptions",
    "fine_tuned": "fine-tuned",
}
"""Of what is held against fine-tuning: on the same episodes, which are fewer than a column's."""
COMPARED_HEAD = ("first episodes", *COMPARED.values(), "written in, s", "fine-tuned in, s")
MET_IMAGENET = (
    "**ImageNet, and so the images of most ordinary classes: it has met the classes that count as unseen, and these "
    "figures are not zero-shot ones**"
)


def render(
    manifest: Manifest,
    evaluation: dict[str, Any],
    comparison: dict[str, Any] | None = None,
    int8: quantised.Facts | None = None,
) -> str:
    """The card's Markdown.

    ``comparison``: runs that differ in one thing from this one (`training compare-words`). ``int8``: what quantising
    changed.
    """
    sections = [
        f"# {manifest.name}\n\n{manifest.summary}",
        _facts(manifest, evaluation),
        _accuracy(evaluation["columns"]),
        _fine_tuning(evaluation["columns"]),
        compared(comparison) if comparison else "",
        _int8(int8) if int8 else "",
        _calibration(evaluation["columns"]),
        _notes(evaluation),
        "Rendered from `evaluation.json` by `training evaluate`; commands and seeds are in that file.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def compared(comparison: dict[str, Any]) -> str:
    """The table of a comparison.json: the mean over its seeds of each method, in the order in which they were given."""
    columns = comparison["columns"]
    head = f"| accuracy, % | seeds | {' | '.join(column_name(c) for c in columns)} |"
    seeds = {name: len(of_name) for name, of_name in columns[0]["by_seed"].items()}
    figures = {name: [_figure(c["accuracy"][name]) for c in columns] for name in seeds}
    rows = [f"| {PEERS.get(name, name)} | {seeds[name]} | {' | '.join(figures[name])} |" for name in seeds]
    counts = ", ".join(f"{c['n_episodes']} episodes {column_name(c)}" for c in columns)
    note = (
        "Runs that differ in what their names say, on the same tasks and documents of unseen classes, before they are "
        f"exported ({counts}): `{comparison['command']}`."
    )
    return "\n".join(["## Ablations and peers", "", head, "|---" * (len(columns) + 2) + "|", *rows, "", note])


def column_name(column: dict[str, Any]) -> str:
    """A short name of an evaluated column; ``given`` ("words", "words and images") is of described classes alone."""
    shape = column["shape"]
    if "given" in column:
        images = f"{shape['n_shot']} image{'s' if shape['n_shot'] > 1 else ''}"
        given = f"words and {images} a class" if shape["n_shot"] else "words alone"
        alike = ", classes from one group" * (column["classes_from"] == "one group")
        return f"{shape['n_way']}-way, {given}{alike}"
    unlabeled = f" + {shape['n_unlabeled']} unlabelled" if shape["n_unlabeled"] else ""
    return f"{shape['n_way']}-way {shape['n_shot']}-shot{unlabeled}, classes from {column['classes_from']}"


def compared_cells(column: dict[str, Any]) -> list[str]:
    """What stands below COMPARED_HEAD of a column that was fine-tuned, too."""
    found = column["fine_tuning"]
    figures = [_figure(found["accuracy"][name]) for name in COMPARED]
    return [str(found["n_episodes"]), *figures, *(f"{found['seconds'][n]:.3g}" for n in ("generated", "fine_tuned"))]


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
        *_base_facts(training["config"], training.get("base"), training["train_data_digest"]),
        (
            "trained on",
            f"{_data_name(training)}, {training['train_classes']} classes{_turned(training['config'])} "
            f"(digest {training['train_data_digest']})",
        ),
        ("never seen in training", ", ".join(training["validation_groups"])),
        *_pooling(training["config"].get("model", {}), manifest),
        ("steps", f"{training['steps']} of {_step(training['config'])}, seed {training['config']['seed']}"),
        ("parameters of the generator", f"{training['n_parameters']:,}"),
        ("largest relative error, ONNX Runtime against PyTorch", f"{max(evaluation['parity'].values()):.1e}"),
        ("temperature, abstain below", f"{temperature(manifest)}, {manifest.abstain_below}"),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _pooling(model: dict[str, Any], manifest: Manifest) -> list[tuple[str, str]]:
    """Where the written network ends in more features than the papers' of the same width."""
    rounding: Pooling = model.get("pooling", "floor")
    pools_last = model.get("pools_last", True)
    if pools_last and rounding == "floor":
        return []
    here, there = ("keeps the border", "drops it") if pools_last else ("leaves out the last convolution", "does not")
    size, n_layers = manifest.preprocess.size, model["n_conv_layers"]
    own = [pooled_size(size, n, rounding) for n in range(n_layers + pools_last)]
    papers = [pooled_size(size, n, "floor") for n in range(n_layers + 1)]
    ours, theirs = (
        f"{' > '.join(map(str, found))} px, {model['channels'] * found[-1] ** 2} features" for found in (own, papers)
    )
    return [("pooling", f"{here}: {ours}; the paper's Conv-4 {there}: {theirs}")]


def temperature(manifest: Manifest) -> str:
    """The temperature of a task's logits, as a formula where it is not the same for all tasks."""
    powers = {"1 + images a class": manifest.temperature_by_images, "classes / 2": manifest.temperature_by_classes}
    return " · ".join([str(manifest.temperature), *(f"({what})^{power}" for what, power in powers.items() if power)])


def _step(config: dict[str, Any]) -> str:
    """What one step of the training took."""
    if "images_per_step" in config:
        return f"{config['images_per_step']} images"
    imagined = f" and {config['n_imagined']} imagined features" if config["n_imagined"] else ""
    return f"{config['n_queries']} images{imagined}"


def _base_facts(config: dict[str, Any], origin: dict[str, Any] | None, digest: str) -> list[tuple[str, str]]:
    """The base, what it may have met, and who reads the texts; nothing of a method without a base."""
    if "base" not in config:
        return []
    model, spec = config["model"], config["model"]["base"]
    layers = "every layer" if "" in model["adapts"] else ", ".join(model["adapts"]) or "no layer but the classification"
    read = "of each token" if config["embeddings"] == "contextual" else config["embeddings"]
    rows = "; the generator also learnt from an ImageNet classifier's rows, of classes with a text but no image here"
    return [
        ("base", f"{spec['architecture']}, {spec['size']} px; adapted: {layers}"),
        (
            "what the base has met",
            met(origin, digest, classifier_rows=config["classifier_rows"]) + rows * config["classifier_rows"],
        ),
        (
            "texts are read by",
            f"{config['text_encoder']}, embeddings {read}, frozen; it has read much of what is written: a class is "
            "unseen, its name is not",
        ),
    ]


def met(origin: dict[str, Any] | None, digest: str, *, classifier_rows: bool = False) -> str:
    """The leak statement of a base; ``origin`` is what ``pretrained.origin`` says of the base."""
    if classifier_rows or (origin and origin["pretrained"]):
        return MET_IMAGENET
    if origin and origin["train_data_digest"] == digest:
        return "the training classes alone, from random weights: an unseen class is unseen"
    known = "not recorded"
    if origin:
        whose = "one's own" if origin.get("own_images") else origin["dataset"]
        known = f"images of {whose} (digest {origin['train_data_digest']})"
    return f"{known}; whether classes that this card calls unseen were among them is **not known**"


def _data_name(training: dict[str, Any]) -> str:
    dataset: str = training["config"]["dataset"]
    return "images of one's own" if training.get("own_images") else dataset


def _accuracy(columns: list[dict[str, Any]]) -> str:
    if not columns:
        return "Not evaluated yet: run `training evaluate`."
    head = "| accuracy, % | " + " | ".join(column_name(c) for c in columns) + " |"
    described = "given" in columns[0]
    rows = [
        f"| {label} | " + " | ".join(_figure(c["accuracy"].get(name)) for c in columns) + " |"
        for name, label in (DESCRIBED_CONTROLS if described else CONTROLS).items()
        if any(name in c["accuracy"] for c in columns)
    ]
    chance = "| chance | " + " | ".join(str(c["chance"]) for c in columns) + " |"
    first = columns[0]
    note = (
        f"Mean and 95 % interval over {_counts(columns)} of {first['n_classes']} unseen classes (data "
        f"digest {first['data_digest']}, seed {first['seed']}); support and query disjoint; inductive: every image is "
        "answered on its own."
    )
    notes = [note, "", DAGGER] if described else [note]
    if fine_tuned := [c["fine_tuning"]["n_episodes"] for c in columns if "fine_tuning" in c]:
        notes += ["", f"‡ over the first {fine_tuned[0]} episodes of a column: compare it with others below."]
    return "\n".join(["## Accuracy", "", head, "|---" * (len(columns) + 1) + "|", *rows, chance, "", *notes])


def _fine_tuning(columns: list[dict[str, Any]]) -> str:
    chosen = [c for c in columns if "fine_tuning" in c]
    if not chosen:
        return ""
    head = f"| accuracy, % | {' | '.join(COMPARED_HEAD)} |"
    rows = [f"| {column_name(c)} | {' | '.join(compared_cells(c))} |" for c in chosen]
    found, hardware = chosen[0]["fine_tuning"], chosen[0]["hardware"]
    settings, threads = found["settings"], "1 thread" if found["n_threads"] == 1 else f"{found['n_threads']} threads"
    note = (
        "All over the same episodes, the first of each column. Fine-tuned: every layer of the base as it is before any "
        f"task, and a new classification layer; AdamW, {settings['n_steps']} steps of {settings['batch_size']} images "
        f"at most, distorted at random; no words are read. Mean seconds a task ({hardware}): tuning on {threads}, "
        "writing on 1."
    )
    return "\n".join(["## Against fine-tuning", "", head, "|---" * (len(COMPARED_HEAD) + 1) + "|", *rows, "", note])


def _int8(facts: quantised.Facts) -> str:
    names = ("float32", "int8", "difference", "agreement")
    rows = [
        f"| {column_name(c)} | {' | '.join(_figure(c['accuracy'][name]) for name in names)} | {c['speed_up']} |"
        for c in facts.columns
    ]
    first = facts.columns[0]
    note = (
        f"The same tasks and images by both networks, {first['n_episodes']} episodes: `{facts.command}`. Agreement: "
        f"images that get the same answer. Times as fast: of {quantised.N_TIMED} images at once on one thread, "
        f"{first['hardware']}."
    )
    head = "| accuracy, % | float32 | int8 | difference | agreement | times as fast |"
    return "\n".join(["## In 8-bit integers", "", head, "|---" * 6 + "|", *rows, "", note])


def _turned(config: dict[str, Any]) -> str:
    return ", turned by quarters four times as many" if config.get("turned") else ""


def _counts(columns: list[dict[str, Any]]) -> str:
    """How many episodes: those of the first column, and which others have another number."""
    first = columns[0]["n_episodes"]
    others = [f"{c['n_episodes']} {column_name(c)}" for c in columns if c["n_episodes"] != first]
    return f"{first} episodes" + (f" ({'; '.join(others)})" if others else "")


def _figure(figure: dict[str, float] | None) -> str:
    return f"{figure['mean']:.1f} ± {figure['ci95']:.1f}" if figure else ""


def _calibration(columns: list[dict[str, Any]]) -> str:
    if not columns:
        return ""
    measured = ("answered_percent", "accuracy_when_answered", "unknown_classes_abstained_percent")
    rows = [
        f"| {column_name(c)} | {100 * c['expected_calibration_error']:.1f} | "
        f"{' | '.join('' if c['abstention'][name] is None else str(c['abstention'][name]) for name in measured)} |"
        for c in columns
    ]
    head = "| | ECE, % | answered, % | accuracy when answered, % | unknown classes abstained, % |"
    return "\n".join(['## Calibration and "I don\'t know"', "", head, "|---|---|---|---|---|", *rows, "", FITTED])


def _notes(evaluation: dict[str, Any]) -> str:
    notes = evaluation.get("notes", [])
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
