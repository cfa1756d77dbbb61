"""From logits to an answer: calibrated probabilities, and "I don't know" below a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decision:
    """The answer for one image. ``abstain``: the top probability is under the meta-model's validated threshold."""

    label: str
    probability: float
    probabilities: dict[str, float]
    abstain: bool


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Softmax of ``logits / temperature`` over the last axis (Guo et al., On Calibration, 2017, eq. 9)."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def temperature_of(n_classes: int, n_images: int, *, temperature: float, by_images: float, by_classes: float) -> float:
    """Of a task's logits: ``temperature (1 + images a class)^by_images (classes / 2)^by_classes``.

    Networks fitted to more images, or to more classes, are surer of themselves than they are right; how much so is
    fitted on validation classes, with the temperature (``training.calibration``).
    """
    return float(temperature * (1 + n_images / n_classes) ** by_images * (n_classes / 2) ** by_classes)


def decide(
    logits: NDArray[np.float32],
    class_names: tuple[str, ...],
    *,
    temperature: float,
    abstain_below: float,
    top_k: int | None = None,
) -> list[Decision]:
    """Logits ``(N, K)`` -> N decisions; ``probabilities`` lists the ``top_k`` best (all by default), best first."""
    found = probabilities(logits, temperature)
    best_first = np.argsort(-found, axis=-1, kind="stable")[:, :top_k]
    ranked = np.take_along_axis(found, best_first, axis=-1)
    abstain = (ranked[:, 0] < abstain_below).tolist()
    decisions = []
    for order, values, unsure in zip(best_first.tolist(), ranked.round(6).tolist(), abstain, strict=True):
        names = [class_names[k] for k in order]
        decisions.append(Decision(names[0], values[0], dict(zip(names, values, strict=True)), unsure))
    return decisions
