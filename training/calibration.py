"""Calibration: the temperature and the threshold under which probabilities mean what they say, on unseen classes.

Shapes: K classes, Q queries, U images of classes that a task does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from models.decision import probabilities, temperature_of
from models.metamodel import Manifest
from training import metrics
from training.metrics import Floats

TEMPERATURES = 0.05, 20.0
POWER = 1.0
RIDGE = 1e-3
"""Holds the powers at zero where all tasks have as many classes, or images."""


class Answered(NamedTuple):
    """A task's answers: logits ``(Q, K)``, labels ``(Q,)``, and logits ``(U, K)`` of images that are of no class."""

    n_images: int
    """Support images of the task."""
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    unknown: NDArray[np.float32]


class Calibration(NamedTuple):
    """The fields of a manifest (``models.metamodel.Manifest``) of the same names."""

    temperature: float
    temperature_by_images: float
    temperature_by_classes: float
    abstain_below: float


def fit(tasks: Sequence[Answered]) -> Calibration:
    """The temperatures of least negative log-likelihood (Guo et al., 2017, section 4.2), and then the threshold."""
    temperature, by_images, by_classes = _fit_temperature(tasks)
    rule = {"temperature": temperature, "by_images": by_images, "by_classes": by_classes}
    found = [(task, temperature_of(task.logits.shape[1], task.n_images, **rule)) for task in tasks]
    top = [probabilities(z, t).max(-1, initial=0) for task, t in found for z in (task.logits, task.unknown)]
    good = [part for t in tasks for part in (t.logits.argmax(-1) == t.labels, np.zeros(len(t.unknown), bool))]
    threshold = fit_abstention(np.concatenate(top), np.concatenate(good))
    return Calibration(*(round(x, 4) for x in (temperature, by_images, by_classes, threshold)))


def report(tasks: Sequence[Answered], manifest: Manifest) -> dict[str, Any]:
    """Calibration and abstention of several tasks, as the meta-model ships them."""
    temperatures = [manifest.temperature_for(t.logits.shape[1], t.n_images) for t in tasks]
    threshold = manifest.abstain_below
    top = np.concatenate([probabilities(t.logits, T).max(-1) for t, T in zip(tasks, temperatures, strict=True)])
    others = np.concatenate(
        [probabilities(t.unknown, T).max(-1, initial=0) for t, T in zip(tasks, temperatures, strict=True)]
    )
    correct = np.concatenate([t.logits.argmax(-1) == t.labels for t in tasks])
    answered = top >= threshold
    return {
        "expected_calibration_error": round(metrics.expected_calibration_error(top, correct), 4),
        "reliability": metrics.reliability(top, correct),
        "accuracy_at_coverage": metrics.accuracy_at_coverage(top, correct),
        "abstention": {
            "threshold": round(threshold, 4),
            "answered_percent": round(100 * float(answered.mean()), 2),
            "accuracy_when_answered": round(100 * float(correct[answered].mean()), 2) if answered.any() else None,
            "unknown_classes_abstained_percent": round(100 * float((others < threshold).mean()), 2)
            if len(others)
            else None,
        },
    }


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
    below, above = ranked[np.argmax(gain) :][:2].tolist()
    middle = (below + above) / 2
    return float(middle if middle > below else above)  # neighbouring floats have none between them


def _fit_temperature(tasks: Sequence[Answered]) -> tuple[float, float, float]:
    """``temperature``, ``by_images`` and ``by_classes`` of ``models.decision.temperature_of``."""

    def loss(x: Floats) -> float:
        rule = {"temperature": float(np.exp(x[0])), "by_images": x[1], "by_classes": x[2]}
        losses = [_loss(task, temperature_of(task.logits.shape[1], task.n_images, **rule)) for task in tasks]
        return float(np.mean(losses) + RIDGE * (x[1] ** 2 + x[2] ** 2))

    bounds = [np.log(TEMPERATURES), (-POWER, POWER), (-POWER, POWER)]
    log_t, by_images, by_classes = minimize(loss, np.zeros(3), method="L-BFGS-B", bounds=bounds).x.tolist()
    return float(np.exp(log_t)), by_images, by_classes


def _loss(task: Answered, temperature: float) -> float:
    """The mean negative log-likelihood of the right classes."""
    scaled = task.logits.astype(np.float64) / temperature
    return -float(log_softmax(scaled, axis=-1)[np.arange(len(task.labels)), task.labels].mean())
