"""Closed forms on given features: what any generator has to beat. All predictions are independent of one another.

S support features ``(S, F)`` with labels ``(S,)``; Q query features ``(Q, F)``; K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def views_of(images: Pixels, *, shift: int, mirrored: bool) -> list[Pixels]:
    """Support images ``(S, H, W, C)`` in each way that a generator may see them (``models.methods.hypertransformer``).

    As they are, mirrored, then both shifted by ``shift`` px up, down, left and right, the edge repeated.
    """
    height, width = images.shape[1:3]
    views = [images, images[:, :, ::-1]] if mirrored else [images]
    if shift:
        padded = [np.pad(view, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge") for view in views]
        corners = ((0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift))
        views += [view[:, top : top + height, left : left + width] for view in padded for top, left in corners]
    return [np.ascontiguousarray(view) for view in views]


def nearest_centroid(support: Features, labels: Labels, queries: Features) -> Labels:
    """The class of the nearest mean (Snell et al., Prototypical Networks, 2017, eq. 1-2)."""
    means = np.stack([support[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    distances = ((queries[:, None] - means[None]) ** 2).sum(axis=-1)
    nearest: Labels = distances.argmin(axis=-1)
    return nearest


def logistic_regression(support: Features, labels: Labels, queries: Features) -> Labels:
    """L2-normalised features, multinomial logistic regression with C = 1 (Tian et al., RFS, 2020)."""
    from sklearn.linear_model import LogisticRegression

    def unit(x: Features) -> Features:
        scaled: Features = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
        return scaled

    predicted: Labels = LogisticRegression(C=1.0, max_iter=200).fit(unit(support), labels).predict(unit(queries))
    return predicted
