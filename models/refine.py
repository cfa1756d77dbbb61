"""The written classification layer, fitted to the support images: what the images say that one mean a class does not.

Multinomial logistic regression of the support images' features, by the largest posterior under a Gaussian prior around
the written rows: a convex solver behind a generator (Bertinetto et al., *Meta-learning with differentiable closed-form
solvers*, 2019; Lee et al., MetaOptNet, 2019). The features are those of the adapted network: as in HyperTransformer
(section 4.1), a layer is written when the images have passed through the layers before it.

Shapes: K classes, F features, S support images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RIDGE = 0.1
"""Of what is added to the rows, for features of unit length."""
N_STEPS = 30
"""More change no answer (docs/decisions.md)."""


def refine(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    trust: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows ``(K, F)`` and bias ``(K,)`` -> those that tell the support images ``(S, F)`` of classes ``(S,)`` apart.

    ``trust``: how much the written logits count in the fit. Where some classes have no image, the others are told apart
    from each other alone, and by their share of all: what the images say must not drown what only words say.
    """
    shown = np.unique(labels)
    if len(shown) < 2:
        return weight, bias
    lengths = np.linalg.norm(features, axis=1).astype(np.float64)
    scale = max(float(lengths.mean()), 1e-12)
    units = features / np.maximum(lengths, 1e-12)[:, None]
    middle = units.mean(axis=0)
    centred = units - middle
    written = trust * (scale * units @ weight[shown].T + bias[shown])
    duals = _fit(written, centred @ centred.T, (labels[:, None] == shown).astype(np.float64))
    rows = np.zeros(weight.shape)
    rows[shown] = (len(shown) / len(weight) / trust) * duals.T @ centred
    return (weight + rows / scale).astype(np.float32), (bias - rows @ middle).astype(np.float32)


def _fit(written: Array, gram: Array, targets: Array) -> Array:
    """Dual coefficients ``(S, K)`` of the ridge-penalised cross-entropy's minimum, by Nesterov's accelerated gradient.

    ``written`` logits and one-hot ``targets`` ``(S, K)``, ``gram`` ``(S, S)``.
    """
    step = 1 / (0.5 * np.abs(gram).sum(axis=1).max() + RIDGE)
    duals = ahead = np.zeros_like(written)
    momentum = 1.0
    for _ in range(N_STEPS):
        logits = written + gram @ ahead
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = odds / odds.sum(axis=1, keepdims=True) - targets
        previous, duals = duals, ahead - step * (errors + RIDGE * ahead)
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = duals + (momentum - 1) / faster * (duals - previous)
        momentum = faster
    return duals
