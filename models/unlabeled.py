"""Unlabelled images drawn towards the classes they resemble, once a network is written: its logits layer moves to them.

Soft k-means from the support images' centroids, one step, on the features of the written network (Ren et al.,
*Meta-Learning for Semi-Supervised Few-Shot Classification*, 2018, section 3.1.1, which also found one step best).

Shapes: K classes, F features, S support images, U unlabelled ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def absorb(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    sharpness: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows ``(K, F)`` and bias ``(K,)`` -> those of the nearest of the refined centroids, as sure as the written ones.

    ``features`` ``(S + U, F)``; ``labels`` ``(S + U,)``, of which K and more are no class; every class has a support
    image. ``sharpness``: how much less an image counts for a class further away, in units of the mean distance. A layer
    that does not tell the centroids apart is returned as it is.
    """
    known = labels < len(weight)
    support = features[known].astype(np.float64)
    unlabeled = features[~known].astype(np.float64)
    counts = np.bincount(labels[known], minlength=len(weight))[:, None]
    sums = np.zeros(weight.shape)
    np.add.at(sums, labels[known], support)
    distances = _squared_distances(unlabeled, sums / counts)
    scale = _scale(weight, sums / counts)
    if scale <= 0 or not distances.any():
        return weight, bias
    nearness = -sharpness * distances / distances.mean()
    shares = np.exp(nearness - nearness.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    centroids = (sums + shares.T @ unlabeled) / (counts + shares.sum(axis=0)[:, None])
    return (scale * centroids).astype(np.float32), (-0.5 * scale * (centroids**2).sum(axis=1)).astype(np.float32)


def _squared_distances(images: Array, centroids: Array) -> Array:
    """``(U, K)``."""
    return np.asarray(((images[:, None] - centroids) ** 2).sum(axis=-1))


def _scale(weight: NDArray[np.float32], centroids: Array) -> float:
    """The multiple of the centroids that comes nearest to the rows, but for what is added to all of them."""
    rows, apart = weight - weight.mean(axis=0), centroids - centroids.mean(axis=0)
    return float((rows * apart).sum() / max(float((apart**2).sum()), 1e-12))
