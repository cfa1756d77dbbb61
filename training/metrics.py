"""What is measured: means with intervals, calibration, abstention. Arrays only, no models.

N predictions; probabilities are those of the top class unless said otherwise.
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from models.decision import probabilities

Floats = NDArray[np.float64]
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


class Figure(TypedDict):
    """A mean over episodes and the half width of its 95 % interval, both in percent."""

    mean: float
    ci95: float


def figure(values: NDArray[np.floating] | list[float]) -> Figure:
    """Accuracies (0..1) of episodes -> percent, with ``1.96 * s / sqrt(n)``."""
    array = 100 * np.asarray(values, dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return {"mean": round(float(array.mean()), 2), "ci95": round(float(half), 2)}


def per_class_accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int) -> float:
    """The mean of the classes' accuracies, 0..1: a class counts once, however many images it has (N3, eq. 7).

    Raises ValueError where a class has no image, and so no accuracy.
    """
    n_images = np.bincount(labels, minlength=n_classes)
    if len(n_images) != n_classes or not n_images.all():
        raise ValueError(f"Images of {n_classes} classes were expected; classes have {n_images.tolist()} images.")
    n_correct = np.bincount(labels[predicted == labels], minlength=n_classes)
    return float((n_correct / n_images).mean())


def expected_calibration_error(top: Floats, correct: NDArray[np.bool_], n_bins: int = 15) -> float:
    """ECE (Guo et al., 2017, eq. 3): mean gap between confidence and accuracy over equal bins, weighted; 0..1."""
    bins = np.minimum((top * n_bins).astype(int), n_bins - 1)
    gaps = [abs(top[bins == b].sum() - correct[bins == b].sum()) for b in range(n_bins)]
    return float(sum(gaps) / len(top))


def reliability(top: Floats, correct: NDArray[np.bool_], n_bins: int = 15) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of each non-empty confidence bin."""
    bins = np.minimum((top * n_bins).astype(int), n_bins - 1)
    return [
        {
            "confidence": round(float(top[bins == b].mean()), 4),
            "accuracy": round(float(correct[bins == b].mean()), 4),
            "n": int((bins == b).sum()),
        }
        for b in range(n_bins)
        if (bins == b).any()
    ]


def calibration(
    logits: list[NDArray[np.float32]],
    labels: list[NDArray[np.int64]],
    unknown: list[NDArray[np.float32]],
    temperature: float,
    threshold: float,
) -> dict[str, Any]:
    """Calibration and abstention of several tasks with one temperature and threshold.

    ``logits`` ``(Q, K)`` and ``labels`` ``(Q,)`` of each task; ``unknown``: of images whose classes it does not have.
    """
    top = np.concatenate([probabilities(z, temperature).max(-1) for z in logits])
    correct = np.concatenate([z.argmax(-1) == y for z, y in zip(logits, labels, strict=True)])
    others = np.concatenate([probabilities(z, temperature).max(-1, initial=0) for z in unknown])
    answered = top >= threshold
    return {
        "expected_calibration_error": round(expected_calibration_error(top, correct), 4),
        "reliability": reliability(top, correct),
        "accuracy_at_coverage": accuracy_at_coverage(top, correct),
        "abstention": {
            "threshold": round(threshold, 4),
            "answered_percent": round(100 * float(answered.mean()), 2),
            "accuracy_when_answered": round(100 * float(correct[answered].mean()), 2) if answered.any() else None,
            "unknown_classes_abstained_percent": round(100 * float((others < threshold).mean()), 2)
            if len(others)
            else None,
        },
    }


def accuracy_at_coverage(top: Floats, correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Accuracy (percent) of the most confident share of predictions, for each share in COVERAGES."""
    best_first = correct[np.argsort(-top, kind="stable")]
    counts = [max(1, round(share * len(best_first))) for share in COVERAGES]
    return [
        {"coverage": share, "accuracy": round(100 * float(best_first[:n].mean()), 2)}
        for share, n in zip(COVERAGES, counts, strict=True)
    ]


def fit_temperature(logits: list[NDArray[np.float32]], labels: list[NDArray[np.int64]]) -> float:
    """The temperature of least negative log-likelihood (Guo et al., 2017, section 4.2), by golden-section search."""

    def loss(log_t: float) -> float:
        losses = [
            -np.log(np.maximum(probabilities(z, float(np.exp(log_t)))[np.arange(len(y)), y], 1e-12)).mean()
            for z, y in zip(logits, labels, strict=True)
        ]
        return float(np.mean(losses))

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def fit_abstention(top: Floats, good: NDArray[np.bool_]) -> float:
    """The threshold that best parts good answers from answers better not given (largest Youden's J); 0 where none does.

    ``good``: correct answers; the rest are wrong ones, and images of classes that the task does not have.
    """
    order = np.argsort(top, kind="stable")
    ranked, good = top[order], good[order]
    kept_good = 1 - np.cumsum(good)[:-1] / max(1, good.sum())
    kept_bad = 1 - np.cumsum(~good)[:-1] / max(1, (~good).sum())
    gain = np.where(ranked[:-1] < ranked[1:], kept_good - kept_bad, 0.0)  # equal confidences cannot be parted
    if not good.any() or not (gain > 0).any():
        return 0.0
    best = int(np.argmax(gain))
    return float((ranked[best] + ranked[best + 1]) / 2)
