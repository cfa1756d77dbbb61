"""What is known without gradient descent: where features are unlike between classes, and what texts say of them.

Shapes: N images, C classes with images, A classes with texts (all of C among them), V texts a class, G features of the
base, F projected features, D text embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHRINKAGE = 1.0
"""Of the covariance within classes, towards the identity (in units of its mean eigenvalue)."""
VARIANCE_SHRINKAGE = 0.3
RIDGE, ROW_RIDGE, SHARPNESS = 1.0, 1.0, 2.0
N_FOLDS = 5


@dataclass(frozen=True)
class Projection:
    """``x = matrix @ unit(raw - center) + bias``: a class has about unit covariance; widest between classes first."""

    center: Array
    matrix: Array
    bias: Array

    def __call__(self, raw: NDArray[np.floating]) -> Array:
        """Raw features ``(N, G)`` -> ``(N, F)``."""
        return unit(raw.astype(np.float64) - self.center) @ self.matrix.T + self.bias

    @property
    def rounded(self) -> Projection:
        """As float32 keeps it, and so as a checkpoint does."""
        parts = (np.asarray(part, np.float32).astype(np.float64) for part in (self.center, self.matrix, self.bias))
        return Projection(*parts)

    def means_of_rows(self, rows: Array, raw: NDArray[np.floating], labels: NDArray[np.int64]) -> Array:
        """Projected class means that a trained linear classifier implies, for classes without images.

        In discriminant analysis a row is the inverse covariance times the mean, so the mean is the covariance times
        the row; what that leaves of the true means of the first C rows is corrected by ridge regression.
        ``rows`` ``(A, G)``, ``raw`` ``(N, G)`` and labels of the first C -> ``(A, F)``.
        """
        units = unit(raw.astype(np.float64) - self.center)
        units -= units.mean(axis=0)
        means = class_means(units, labels)
        n, centred = len(means), rows - rows.mean(axis=0)
        found = centred @ _covariance(units - means[labels])
        found *= (found[:n] * means).sum() / (found[:n] ** 2).sum()
        gram = centred[:n] @ centred[:n].T
        ridge = ROW_RIDGE * np.diag(gram).mean() * np.eye(n)
        found += centred @ centred[:n].T @ np.linalg.solve(gram + ridge, means - found[:n])
        found[n:] *= np.linalg.norm(means, axis=1).mean() / np.linalg.norm(found[n:], axis=1).mean()
        found[:n] = means
        return np.asarray(found @ self.matrix.T)


@dataclass(frozen=True)
class Regression:
    """Gaussian-kernel ridge regression: remembered texts ``(M, D)``, around their ``middle`` ``(D,)``.

    ``coefficients`` ``(M, F)``.
    """

    middle: Array
    texts: Array
    coefficients: Array

    def __call__(self, texts: Array) -> Array:
        """Unit embeddings ``(N, D)`` -> means ``(N, F)``."""
        return kernel(unit(texts - self.middle), self.texts) @ self.coefficients


def unit(x: NDArray[np.floating]) -> Array:
    """Rows of length 1."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12), np.float64)


def kernel(a: Array, b: Array) -> Array:
    """Gaussian kernel of unit vectors ``(N, D)`` and ``(M, D)`` -> ``(N, M)``."""
    return np.asarray(np.exp(-SHARPNESS * (2 - 2 * a @ b.T)))


def class_means(features: NDArray[np.floating], labels: NDArray[np.int64]) -> Array:
    """``(N, F)`` -> ``(C, F)``."""
    return np.stack([features[labels == k].mean(axis=0) for k in range(labels.max() + 1)]).astype(np.float64)


def fit_projection(raw: NDArray[np.floating], labels: NDArray[np.int64], n_features: int) -> Projection:
    """Linear discriminant analysis (Rao, 1948) of centred unit features, with a shrunken covariance within classes."""
    center = raw.astype(np.float64).mean(axis=0)
    units = unit(raw.astype(np.float64) - center)
    middle, means = units.mean(axis=0), class_means(units, labels)
    within = _covariance(units - means[labels])
    values, axes = np.linalg.eigh(within)
    whiten = axes / np.sqrt(values + SHRINKAGE * values.mean())
    between = _covariance((means - middle) @ whiten)
    _, directions = np.linalg.eigh(between)
    matrix = (whiten @ directions[:, ::-1][:, :n_features]).T
    return Projection(center, matrix, -matrix @ middle)


def fit_regression(texts: Array, means: Array) -> Regression:
    """Texts ``(A, V, D)`` of classes and their means ``(A, F)`` -> the regression that remembers all of them.

    Only directions are learned: every mean counts as if it had the length that they have on average.
    """
    flat = texts.reshape(-1, texts.shape[-1])
    middle = flat.mean(axis=0)
    remembered = unit(flat - middle)
    values = (unit(means) * np.linalg.norm(means, axis=1).mean()).repeat(texts.shape[1], axis=0)
    gram = kernel(remembered, remembered) + RIDGE * np.eye(len(flat))
    return Regression(middle, remembered, np.asarray(np.linalg.solve(gram, values), np.float64))


def slope(guessed: Array, true: Array) -> float:
    """By what to multiply guesses ``(C, F)``, which a ridge makes too short, for the least squared error.

    0 where they are nothing, or point away from what is true: then they say nothing of it.
    """
    return max(0.0, float((guessed * true).sum() / max((guessed**2).sum(), 1e-12)))


def best_scale(features: NDArray[np.floating], means: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """By what to multiply cosines with features ``(N, F)``, of unit means ``(C, F)``, for the least cross-entropy."""
    cosines = features @ unit(means).T
    scales = np.geomspace(0.1, 100, 61)
    logs = (np.log(np.exp(s * (cosines - cosines.max(1, keepdims=True))).sum(1)) + s * cosines.max(1) for s in scales)
    own = cosines[np.arange(len(labels)), labels]
    losses = [float((log - s * own).mean()) for s, log in zip(scales, logs, strict=True)]
    return float(scales[int(np.argmin(losses))])


def variance(deviations: Array) -> Array:
    """Variance ``(F,)`` of deviations ``(C, F)`` from zero, each shrunken towards their mean."""
    own = (deviations**2).mean(axis=0)
    return np.asarray((1 - VARIANCE_SHRINKAGE) * own + VARIANCE_SHRINKAGE * own.mean())


def _covariance(deviations: Array) -> Array:
    return np.asarray(deviations.T @ deviations / len(deviations))
