"""What is measured: means with intervals, and how far confidence is from accuracy. Arrays only, no models.

N predictions; probabilities are those of the top class unless said otherwise.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


class Figure(TypedDict):
    """A mean over episodes and the half width of its 95 % interval, both in percent."""

    mean: float
    ci95: float


def figure(values: NDArray[np.floating] | list[float]) -> Figure:
    """Accuracies (0..1) of episodes -> percent, with Student's interval: few episodes know little of their spread."""
    array = 100 * np.asarray(values, dtype=np.float64)
    n = len(array)
    half = stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
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


def accuracy_at_coverage(top: Floats, correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Accuracy (percent) of the most confident share of predictions, for each share in COVERAGES."""
    best_first = correct[np.argsort(-top, kind="stable")]
    counts = [max(1, round(share * len(best_first))) for share in COVERAGES]
    return [
        {"coverage": share, "accuracy": round(100 * float(best_first[:n].mean()), 2)}
        for share, n in zip(COVERAGES, counts, strict=True)
    ]
