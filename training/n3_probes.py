"""What a report shows of N3 beyond evaluation.json: networks written for tasks of words alone, looked into.

Everything is of the exported graphs, as the service runs them. Shapes: T tasks, L adapted layers, K classes, Q images,
F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.explain import relative_changes
from models.task import ClassSpec
from training.data.folders import DataError
from training.described_tasks import Subject, Words
from training.episodes import Episode, EpisodeShape, sample, shrink

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Magnitudes:
    """``models.explain.relative_changes`` of each task ``(T, L)``, layers from the image on."""

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    relative: Array


@dataclass(frozen=True)
class BeforeAndAfter:
    """Features ``(Q, F)`` of the same images by the base as it is and by the adapted one, labels ``(Q,)``, names."""

    before: Array
    after: Array
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    accuracy: float
    """Of the written network, 0..1."""


@dataclass(frozen=True)
class Confusion:
    """Share of the images of class i that are called j: ``(K, K)``, rows add to 1."""

    shares: Array
    names: tuple[str, ...]
    n_images: int


def magnitudes(subject: Subject, n_tasks: int, n_way: int, seed: int) -> Magnitudes:
    """Of tasks of random unseen classes; raises DataError where no layer is adapted."""
    if not subject.adapts_layers:
        raise DataError("It adapts no layer but the classification layer.")
    rng = np.random.default_rng(seed)
    tasks = [_task(subject, n_way, 1, rng)[1] for _ in range(n_tasks)]
    found = [relative_changes(subject.meta_model, subject.write(classes)) for classes in tasks]
    layers, kinds = tuple(change.name for change in found[0]), tuple(change.type for change in found[0])
    return Magnitudes(layers, kinds, np.array([[change.relative_change for change in own] for own in found]))


def before_and_after(subject: Subject, n_way: int, n_images: int, seed: int) -> BeforeAndAfter:
    """One task; raises DataError where no layer is adapted, so that both would be the same."""
    if not subject.adapts_layers:
        raise DataError("It adapts no layer but the classification layer: features stay as they are.")
    episode, classes = _task(subject, n_way, n_images, np.random.default_rng(seed))
    written = subject.write(classes)
    logits = subject.network(written)(episode.query)
    return BeforeAndAfter(
        before=subject.features_by(None, episode.query),
        after=subject.features_by(written, episode.query),
        labels=episode.query_labels,
        names=tuple(spec.name for spec in classes),
        accuracy=float((logits.argmax(-1) == episode.query_labels).mean()),
    )


def confusion(subject: Subject, n_images: int, seed: int) -> Confusion:
    """One task of as many unseen classes as there are, or as it takes; classes that are taken for one another close."""
    n_way = min(subject.images.n_classes, subject.meta_model.manifest.max_classes)
    episode, classes = _task(subject, n_way, n_images, np.random.default_rng(seed))
    logits = subject.network(subject.write(classes))(episode.query)
    counts = np.zeros((n_way, n_way))
    np.add.at(counts, (episode.query_labels, logits.argmax(-1)), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    order = _alike_close(shares)
    names = tuple(classes[k].name for k in order)
    return Confusion(shares[np.ix_(order, order)], names, len(episode.query))


def spread(features: Array, labels: NDArray[np.int64]) -> float:
    """Mean squared distance to the own class's mean over that to the mean of all: 0 where classes are points."""
    means = np.stack([features[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    within, whole = ((features - means[labels]) ** 2).sum(), ((features - features.mean(axis=0)) ** 2).sum()
    return float(within / max(float(whole), 1e-12))


def _task(subject: Subject, n_way: int, n_images: int, rng: np.random.Generator) -> tuple[Episode, list[ClassSpec]]:
    """Words alone, names given."""
    shape = shrink(EpisodeShape(n_way, 0, n_images), subject.images)
    episode = sample(subject.images, shape, rng)
    specs = [Words().spec(subject.texts[k], i, rng) for i, k in enumerate(episode.classes)]
    return episode, [ClassSpec(*spec) for spec in specs]


def _alike_close(shares: Array) -> NDArray[np.int64]:
    """An order of the classes in which those that are taken for one another are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    apart = 1 - (shares + shares.T) / 2
    np.fill_diagonal(apart, 0)
    order: NDArray[np.int64] = leaves_list(linkage(squareform(apart, checks=False), "average")).astype(np.int64)
    return order
