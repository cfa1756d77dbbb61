"""Episodes: few-shot tasks drawn from an ImageSet. A pure sampler: the same generator state gives the same episode.

Shapes: K classes, S labelled support images, U unlabelled support images, Q queries of a task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.folders import DataError, ImageSet

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeShape:
    """How many of what: classes, and for each class labelled, query and unlabelled images.

    ``unbalanced`` keeps the number of labelled images of the task, and spreads them over the classes at random (one each
    at least).
    """

    n_way: int
    n_shot: int
    n_query: int
    n_unlabeled: int = 0
    unbalanced: bool = False


@dataclass(frozen=True)
class Episode:
    """Indices into an ImageSet; labels are positions 0..K-1 in ``classes``. Support, unlabelled and query are disjoint."""

    classes: Indices
    support: Indices
    support_labels: Indices
    unlabeled: Indices
    query: Indices
    query_labels: Indices

    def __post_init__(self) -> None:
        everything = np.concatenate([self.support, self.unlabeled, self.query])
        if len(np.unique(everything)) != len(everything):
            raise ValueError("support, unlabelled and query images of an episode overlap")


def sample(images: ImageSet, shape: EpisodeShape, rng: np.random.Generator, *, within_group: bool = False) -> Episode:
    """Draw one episode; ``within_group`` takes all classes from one group (topped up from others if it is too small).

    Raises DataError where the data cannot give the shape.
    """
    if images.n_classes < shape.n_way:
        raise DataError(f"{shape.n_way}-way episodes need that many classes; these data have {images.n_classes}.")
    classes = _classes_within_group(images, shape.n_way, rng) if within_group else rng.permutation(images.n_classes)
    classes = classes[: shape.n_way]
    shots = _shots(shape, rng)
    support, unlabeled, query = [], [], []
    for k, n_shot in zip(classes, shots, strict=True):
        needed = n_shot + shape.n_unlabeled + shape.n_query
        if len(images.indices[k]) < needed:
            raise DataError(f"{images.class_names[k]} has {len(images.indices[k])} images; the episode needs {needed}.")
        drawn = rng.permutation(images.indices[k])[:needed]
        support.append(drawn[:n_shot])
        unlabeled.append(drawn[n_shot : n_shot + shape.n_unlabeled])
        query.append(drawn[n_shot + shape.n_unlabeled :])
    ways = np.arange(shape.n_way)
    return Episode(
        classes=classes,
        support=np.concatenate(support),
        support_labels=np.repeat(ways, shots),
        unlabeled=np.concatenate(unlabeled),
        query=np.concatenate(query),
        query_labels=np.repeat(ways, shape.n_query),
    )


def _shots(shape: EpisodeShape, rng: np.random.Generator) -> Indices:
    """Labelled images of each class."""
    if not shape.unbalanced:
        return np.full(shape.n_way, shape.n_shot)
    spare = shape.n_way * (shape.n_shot - 1)
    return 1 + rng.multinomial(spare, np.full(shape.n_way, 1 / shape.n_way))


def _classes_within_group(images: ImageSet, n_way: int, rng: np.random.Generator) -> Indices:
    """Classes of a random group, in random order, followed by random others."""
    names = np.array(images.groups)
    group = names[rng.integers(len(names))]
    inside, outside = np.flatnonzero(names == group), np.flatnonzero(names != group)
    return np.concatenate([rng.permutation(inside), rng.permutation(outside)]) if len(inside) < n_way else rng.permutation(inside)
