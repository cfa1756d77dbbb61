"""Plots that only some methods have: of the weights a generator writes, and of what happens inside a run's checkpoint.

A line in METHOD_PLOTS names, for a method of a manifest, functions ``(Subject, Options) -> Plot``; a line in RUN_PLOTS,
for a method of a checkpoint, functions ``(Run, Options) -> Plot``. N3's are in n3_plots.py. The drawing goes to
plots.py, what has to be computed for it to probes.py (n3_probes.py); a function that can't draw raises DataError,
CheckpointError or a ClassmithError that says what is missing. What rests on evaluation.json alone is drawn for every
method, in report.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from training import n3_plots, plots, probes
from training.checkpoint import read_header
from training.data import DATASETS
from training.data.folders import ImageSet
from training.episodes import EpisodeShape, shrink
from training.page import Plot
from training.recipes import n3
from training.recipes.hypertransformer import N_VALIDATION_STEPS, N_VALIDATION_TASKS, load_model
from training.subjects import Options, Run, Subject, read_log


def two_tasks(subject: Subject, options: Options) -> Plot:
    """The weights of two tasks and their difference (HyperTransformer, Appendix H, Figures 12 to 15)."""
    images = options.images.unseen_by(subject)
    shape = _validation_shape(images, subject)
    layers = probes.two_tasks(subject.meta_model, images, shape, options.seed)
    change = ", ".join(f"{name} {_relative_change(a, b):.0f} %" for name, (a, b) in layers.items())
    cut = any(plots.is_cut(a) for a, _ in layers.values())
    first = f", the first {plots.MAX_SLICES} of each ({2 * plots.MAX_SLICES} of the logits)" if cut else ""
    caption = (
        f"Weights written for two random {shape.n_way}-way {shape.n_shot}-shot tasks, as the service uses them: "
        f"normalisation is folded in. Inputs run down, outputs across{first}; a tile is one kernel, a column of the "
        "logits a class. Purple is positive, orange negative, below each the strongest colour's value. The "
        f"difference is {change} of the weights. {_drawn_from(images, options, 2)}"
    )
    alt = f"Written weights of two tasks side by side, and their difference: {change} of the weights."
    return Plot("Weights of two tasks", plots.to_svg(plots.kernels(layers)), alt, caption)


def weight_map(subject: Subject, options: Options) -> Plot:
    """The map of the weights of many tasks, marked by class (HyperTransformer, Figures 4, 10 and 11)."""
    images = options.images.unseen_by(subject)
    cloud = probes.weight_cloud(subject.meta_model, images, options.n_tasks, options.seed)
    layers = {name: probes.flatten_map(weights, options.seed) for name, weights in cloud.weights.items()}
    closeness = ", ".join(f"{n} {probes.closeness(w, cloud.anchors):.2f}" for n, w in cloud.weights.items())
    caption = (
        f"Each point is a layer's weights for one {cloud.n_way}-way 1-shot task (of the logits: the row of the "
        "marked class), laid out by scikit-learn's t-SNE; the paper uses UMAP. Every task has exactly one of the "
        f"{len(cloud.examples)} marked classes, which were drawn at random "
        f"({', '.join(map(_short, cloud.class_names))}), and {cloud.n_way - 1} others. Distance between two tasks "
        f"with the same marked class over that of any two (1: the class leaves no trace): {closeness}. "
        f"{_drawn_from(images, options, options.n_tasks)}"
    )
    alt = (
        f"Maps of written weights by layer, marked by class. Distance within a class over that of any two: {closeness}."
    )
    figure = plots.weight_map(layers, cloud.anchors, cloud.examples)
    return Plot("Map of the weights of many tasks", plots.to_svg(figure), alt, caption)


def attention(run: Run, options: Options) -> Plot:
    """The attention of weight tokens over support images (HyperTransformer, Appendix F, Figures 8 and 9)."""
    model, header = load_model(run.folder / "checkpoint.safetensors")
    dataset = header["config"]["dataset"]
    images = options.images.of(dataset, DATASETS[dataset].spec)
    shape = _attention_shape(images, header["config"])
    seen = probes.attention_of(model, images, shape, options.seed)
    unlabeled = f" with {shape.n_unlabeled} unlabelled image a class" if shape.n_unlabeled else ""
    caption = (
        f"Where the weight tokens of each written layer look while the network of one {shape.n_way}-way "
        f"{shape.n_shot}-shot task{unlabeled} is written (last attention, mean over heads; of the logits, the "
        "read-out). A row is a weight token, of the logits a class; a column is the support image above it; lines "
        f"part the classes. Each layer has its own scale from 0 to its darkest. Step {header['step']} of the run. "
        f"{_drawn_from(images, options, 1)}"
    )
    figure = plots.attention(seen.layers, seen.support, seen.labels, unlabeled=seen.unlabeled)
    alt = f"Attention of weight tokens over {len(seen.support)} support images, for {', '.join(seen.layers)}."
    return Plot("Attention over support images", plots.to_svg(figure), alt, caption)


def training_curves(run: Run, _: Options) -> Plot:
    """The training curves from the run's log; of steps that were repeated after a resume, the last."""
    header = read_header(run.folder / "checkpoint.safetensors")
    named = VALIDATED[header["method"]]
    entries = read_log(run.folder, ("step", *named))
    steps = [int(entry["step"]) for entry in entries]
    losses = [entry.get("loss") for entry in entries]
    accuracies = {label: [round(100 * entry[key], 2) for entry in entries] for key, label in named.items()}
    found = ", ".join(f"{label} {values[-1]} %" for label, values in accuracies.items())
    last = f"after {steps[-1]} steps, loss {losses[-1]}, {found}"
    caption = (
        f"Running mean of the training loss, and accuracy on {VALIDATION_TASKS[header['method']]} "
        f"of validation classes; {last}. Seed {header['config']['seed']}, training data digest "
        f"{header.get('train_data_digest', 'not recorded')}."
    )
    figure = plots.training_curves(steps, [math.nan if loss is None else loss for loss in losses], accuracies)
    return Plot("Training curves", plots.to_svg(figure), f"Training curves; {last}.", caption)


VALIDATED = {
    "hypertransformer": {"validation_accuracy": "validation accuracy"},
    "n3": {"adapted": "every layer as written", "base": "classification layer alone"},
}
"""Of a method's log: which fields are accuracies, and of what."""
VALIDATION_TASKS = {
    "hypertransformer": f"{N_VALIDATION_STEPS * N_VALIDATION_TASKS} fixed episodes",
    "n3": f"{n3.N_VALIDATION_TASKS} fixed {n3.VALIDATION_WAYS}-way episodes, words alone,",
}
METHOD_PLOTS: dict[str, tuple[Callable[[Subject, Options], Plot], ...]] = {
    "hypertransformer": (two_tasks, weight_map),
    "n3": (n3_plots.magnitudes, n3_plots.before_and_after, n3_plots.confusion),
}
RUN_PLOTS: dict[str, tuple[Callable[[Run, Options], Plot], ...]] = {
    "hypertransformer": (training_curves, attention),
    "n3": (training_curves,),
}


def _drawn_from(images: ImageSet, options: Options, n_tasks: int) -> str:
    tasks = f"{n_tasks} task{'s' if n_tasks != 1 else ''}"
    return f"{tasks}, seed {options.seed}, data digest {images.digest} ({images.n_classes} classes)."


def _short(class_name: str) -> str:
    """The last two folders of a class's path."""
    return "/".join(class_name.split("/")[-2:])


def _relative_change(a: probes.Array, b: probes.Array) -> float:
    """Norm of the difference over the mean norm, in percent."""
    size = (np.linalg.norm(a) + np.linalg.norm(b)) / 2
    return float(100 * np.linalg.norm(a - b) / max(float(size), 1e-12))


def _validation_shape(images: ImageSet, subject: Subject) -> EpisodeShape:
    """The kind of task it was validated on, as far as these images go."""
    wanted = subject.config.get("validation", {})
    n_way = min(int(wanted.get("n_way", 5)), subject.meta_model.manifest.max_classes)
    return shrink(EpisodeShape(n_way, int(wanted.get("n_shot", 1)), n_query=1), images)


def _attention_shape(images: ImageSet, config: dict[str, Any]) -> EpisodeShape:
    """Five classes of up to three images, and one unlabelled for each where the run has seen such."""
    shapes = [shape for _, shape in config["shapes"]]
    n_shot = min(3, max(shape["n_shot"] for shape in shapes))
    n_unlabeled = min(1, max(shape["n_unlabeled"] for shape in shapes))
    n_way = min(5, config["model"]["max_classes"])
    return shrink(EpisodeShape(n_way, n_shot, n_query=1, n_unlabeled=n_unlabeled), images)
