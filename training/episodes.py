"""Episodes: few-shot tasks drawn from an ImageSet. A pure sampler: the same generator state gives the same episode.

Shapes: K classes, S labelled support images, U unlabelled support images, Q queries of a task.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data.folders import DataError, ImageSet

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeShape:
    """How many of what: classes, and for each class labelled, query and unlabelled images.

    ``unbalanced`` keeps the number of labelled images of the task, and spreads them over the classes at random (one
    each at least, and no more than a class has).
    """

    n_way: int
    n_shot: int
    n_query: int
    n_unlabeled: int = 0
    unbalanced: bool = False

    @property
    def n_images(self) -> int:
        """Support, unlabelled and query images of one task."""
        return self.n_way * (self.n_shot + self.n_query + self.n_unlabeled)


@dataclass(frozen=True)
class Episode:
    """Indices into an ImageSet; labels are positions 0..K-1 in ``classes``. Support, unlabelled, query are disjoint."""

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
    shots = _shots(shape, [len(images.indices[k]) for k in classes], rng)
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


def drawable(images: ImageSet, shape: EpisodeShape, *, within_group: bool = False) -> ImageSet:
    """The classes that an evaluation draws from: all, or ``within_group`` those of groups that have ``n_way``.

    Where none is left out, these are the very images given. Raises DataError where no group has so many classes, and,
    before anything is measured, where any class has too few images for the shape.
    """
    if within_group:
        sizes = Counter(images.groups)
        largest = max(sizes, key=sizes.__getitem__)
        if sizes[largest] < shape.n_way:
            raise DataError(
                f"No group has {shape.n_way} classes: {largest!r} has the most, {sizes[largest]}; give fewer --ways, "
                "or leave out --within-group."
            )
        if min(sizes.values()) < shape.n_way:
            images = images.where(lambda _, group: sizes[group] >= shape.n_way)
    if images.n_classes < shape.n_way:
        raise DataError(
            f"{shape.n_way}-way episodes need that many classes; these data have {images.n_classes}: give fewer --ways."
        )
    _check_sizes(images, shape)
    return images


def shrink(shape: EpisodeShape, images: ImageSet) -> EpisodeShape:
    """The shape as far as the data go: unlabelled images give way first, then queries, then shots.

    Raises DataError where the data have fewer than two classes, or a class of one image.
    """
    smallest = min(range(images.n_classes), key=lambda k: len(images.indices[k]))
    n_images = len(images.indices[smallest])
    if images.n_classes < 2 or n_images < 2:
        found = f"{images.n_classes} classes, and {n_images} images of {images.class_names[smallest]}"
        raise DataError(f"An episode takes two classes of two images at least; these data have {found}.")
    n_shot = min(shape.n_shot, n_images - 1)
    n_query = min(shape.n_query, n_images - n_shot)
    n_unlabeled = min(shape.n_unlabeled, n_images - n_shot - n_query)
    n_way = min(shape.n_way, images.n_classes)
    return replace(shape, n_way=n_way, n_shot=n_shot, n_query=n_query, n_unlabeled=n_unlabeled)


def _check_sizes(images: ImageSet, shape: EpisodeShape) -> None:
    """Raise DataError where a class has too few images for the shape."""
    needed = (min(1, shape.n_shot) if shape.unbalanced else shape.n_shot) + shape.n_unlabeled + shape.n_query
    if small := [k for k in range(images.n_classes) if len(images.indices[k]) < needed]:
        found = ", ".join(f"{images.class_names[k]!r} has {len(images.indices[k])}" for k in small[:3])
        more = f", {len(small) - 3} more have too few" if len(small) > 3 else ""
        raise DataError(
            f"An episode takes {needed} images of a class, and {found}{more}; give fewer --shots, --queries or "
            "--unlabeled, or leave such classes out."
        )


def _shots(shape: EpisodeShape, n_images: list[int], rng: np.random.Generator) -> Indices:
    """Labelled images of each class; ``n_images``: how many each has."""
    if not shape.unbalanced:
        return np.full(shape.n_way, shape.n_shot)
    spare = shape.n_way * (shape.n_shot - 1)
    drawn = 1 + rng.multinomial(spare, np.full(shape.n_way, 1 / shape.n_way))
    room = np.array(n_images) - shape.n_query - shape.n_unlabeled
    shots: Indices = np.minimum(drawn, np.maximum(room, 1))
    for _ in range(drawn.sum() - shots.sum()):  # what a class has no room for goes to the one with the most
        shots[np.argmax(room - shots)] += 1
    return shots


def _classes_within_group(images: ImageSet, n_way: int, rng: np.random.Generator) -> Indices:
    """Classes of a random group, in random order, followed by random others."""
    names = np.array(images.groups)
    group = names[rng.integers(len(names))]
    inside, outside = np.flatnonzero(names == group), np.flatnonzero(names != group)
    return (
        np.concatenate([rng.permutation(inside), rng.permutation(outside)])
        if len(inside) < n_way
        else rng.permutation(inside)
    )
