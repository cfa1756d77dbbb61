"""The learning rate of a step: linear warm-up, then cosine decay to zero."""

from __future__ import annotations

import math


def learning_rate(peak: float, step: int, n_steps: int, n_warmup: int) -> float:
    """Of step 0 .. ``n_steps - 1``; the first ``n_warmup`` rise to ``peak``."""
    warm = min(1.0, (step + 1) / n_warmup)
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))
