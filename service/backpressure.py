"""When to come back: the time told to those who are refused."""

from __future__ import annotations

import random


def jittered(wait_s: float) -> float:
    """A time to come back after a wait, spread out so that those refused together don't return together."""
    return max(0.05, wait_s * random.uniform(0.75, 1.5))
