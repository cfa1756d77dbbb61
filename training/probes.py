"""What a report shows beyond evaluation.json: weights written for tasks made for looking at, and a run's attention.

Weights come from the exported ``generator.onnx``, as the service writes them; attention is not exported, and comes from
a run's checkpoint. Shapes: S support images, K classes, T weight tokens, N tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Tensors
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.methods.hypertransformer import HyperTransformer
from models.task import ClassSpec, TaskSpec
from training.data.folders import DataError, ImageSet
from training.episodes import Episode, EpisodeShape, sample
from training.recipes.hypertransformer import assemble

Array = NDArray[np.floating[Any]]
MAX_HIGHLIGHTED, N_OTHERS = 6, 4


@dataclass(frozen=True)
class Cloud:
    """The weights of N tasks, each with one of a few highlighted classes ("anchors") among its classes.

    ``weights``: for each layer ``(N, D)``, of the logits layer only the anchor's row; ``anchors`` ``(N,)``: positions
    in ``class_names`` and ``examples`` (one image of each).
    """

    weights: dict[str, Array]
    anchors: NDArray[np.int64]
    class_names: tuple[str, ...]
    examples: tuple[NDArray[np.uint8], ...]
    n_way: int


@dataclass(frozen=True)
class Attention:
    """Mean attention ``(T, S)`` over heads of each written layer, and the support images it looks at, in order."""

    layers: dict[str, Array]
    support: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unlabeled: int
    shape: EpisodeShape


def two_tasks(
    meta_model: MetaModel, images: ImageSet, shape: EpisodeShape, seed: int
) -> dict[str, tuple[Array, Array]]:
    """The weights (not biases) written for two random tasks, layer by layer; raises DataError, GenerationFailed."""
    rng, generator = np.random.default_rng(seed), OnnxGenerator()
    a, b = (generator.generate(meta_model, task_of(images, sample(images, shape, rng))).tensors for _ in range(2))
    return {
        name.removesuffix(".weight"): (_floats(a[name]), _floats(b[name])) for name in a if name.endswith(".weight")
    }


def weight_cloud(meta_model: MetaModel, images: ImageSet, n_tasks: int, seed: int) -> Cloud:
    """Write networks for ``n_tasks`` 1-shot tasks of one anchor and a few other classes each.

    Anchors and others never mix, so a task has exactly one anchor. Raises DataError where there are too few classes,
    or fewer than two tasks of each anchor, which have no distance to compare.
    """
    rng, generator = np.random.default_rng(seed), OnnxGenerator()
    order = rng.permutation(images.n_classes)
    n_anchors = min(MAX_HIGHLIGHTED, images.n_classes // 2)
    n_others = min(N_OTHERS, images.n_classes - n_anchors, meta_model.manifest.max_classes - 1)
    if n_anchors < 2 or 1 + n_others < meta_model.manifest.min_classes:
        raise DataError(f"A map of weights needs more classes than these images have ({images.n_classes}).")
    if n_tasks < 2 * n_anchors:
        raise DataError(f"A map of weights needs two tasks of each class that it marks; give --tasks {2 * n_anchors}.")
    anchors, rows = np.arange(n_tasks) % n_anchors, []
    for anchor in anchors:
        classes = [order[anchor], *rng.choice(order[n_anchors:], n_others, replace=False)]
        rows.append(_layers(generator.generate(meta_model, _one_shot(images, classes, rng)).tensors))
    chosen = order[:n_anchors]
    return Cloud(
        weights={name: np.stack([row[name] for row in rows]) for name in rows[0]},
        anchors=anchors,
        class_names=tuple(images.class_names[k] for k in chosen),
        examples=tuple(images.pixels[images.indices[k][0]] for k in chosen),
        n_way=1 + n_others,
    )


def flatten_map(weights: Array, seed: int) -> Array:
    """``(N, D)`` -> ``(N, 2)`` by scikit-learn's t-SNE (van der Maaten and Hinton, 2008), begun at its PCA."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(weights) - 1) / 3)
    spread = weights.std() or 1.0
    positions: Array = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        ((weights - weights.mean(axis=0)) / spread).astype(np.float64)
    )
    return positions


def closeness(weights: Array, anchors: NDArray[np.int64]) -> float:
    """Mean distance of two tasks with the same anchor over that of any two; 1: the class leaves no trace."""
    squares = (weights.astype(np.float64) ** 2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * weights.astype(np.float64) @ weights.T, 0))
    different = ~np.eye(len(weights), dtype=bool)
    same = (anchors[:, None] == anchors[None]) & different
    return float(distances[same].mean() / max(float(distances[different].mean()), 1e-12))


def attention_of(model: HyperTransformer, images: ImageSet, shape: EpisodeShape, seed: int) -> Attention:
    """Run the generator on one task and keep each written layer's attention of weight tokens over support images.

    Of an encoder, whose weight tokens also attend to one another, only the columns of support images are kept.
    """
    rng = np.random.default_rng(seed)
    episode = sample(images, shape, rng)
    support, labels, slots, *_ = assemble(model.config, images, [episode], torch.device("cpu"), rng)
    with torch.no_grad():
        _, maps = model.generate_with_attention(support, labels, slots)
    names = [f"conv{layer + 1}" for layer in range(model.first_generated, model.config.n_conv_layers)]
    n_support, unlabeled = labels.shape[1], model.config.max_classes
    return Attention(
        layers={name: _over_support(part[0], n_support) for name, part in zip([*names, "logits"], maps, strict=True)},
        support=images.pixels[np.concatenate([episode.support, episode.unlabeled])],
        labels=np.concatenate([episode.support_labels, np.full(len(episode.unlabeled), unlabeled)]),
        unlabeled=unlabeled,
        shape=shape,
    )


def task_of(images: ImageSet, episode: Episode) -> TaskSpec:
    """An episode's support set as the task a user would send."""
    classes = tuple(
        ClassSpec(images.class_names[k], images=tuple(images.pixels[episode.support[episode.support_labels == i]]))
        for i, k in enumerate(episode.classes)
    )
    return TaskSpec(classes, tuple(images.pixels[episode.unlabeled]))


def _one_shot(images: ImageSet, classes: list[int], rng: np.random.Generator) -> TaskSpec:
    """One random image of each class."""
    return TaskSpec(
        tuple(ClassSpec(images.class_names[k], images=(images.pixels[rng.choice(images.indices[k])],)) for k in classes)
    )


def _layers(tensors: Tensors) -> dict[str, Array]:
    """Each layer's weight and bias as one vector; of the logits layer the first class's row (the anchor's)."""
    grouped: dict[str, list[Array]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[0].startswith("logits"), item[0])):
        layer = name.rpartition(".")[0]
        part = _floats(tensor)[:1] if layer == "logits" else _floats(tensor)
        grouped.setdefault(layer, []).append(part.ravel())
    return {layer: np.concatenate(parts) for layer, parts in grouped.items()}


def _over_support(part: torch.Tensor, n_support: int) -> Array:
    """``(heads, T[+S], [T+]S)`` or ``(K, S)`` -> ``(T, S)``, the mean over heads."""
    mean = part.mean(dim=0) if part.dim() == 3 else part
    n_tokens = mean.shape[0] - (n_support if mean.shape[1] > n_support else 0)
    rows: Array = mean[:n_tokens, -n_support:].numpy()
    return rows


def _floats(tensor: NDArray[np.generic]) -> Array:
    return np.asarray(tensor, dtype=np.float32)
