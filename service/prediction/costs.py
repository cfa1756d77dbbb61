"""What images cost, learned from measured batches: for predicted waits, and for how many to take at once."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_GUESS_S = 0.005
"""Time an image, before any was measured."""
LEARNING_RATE = 0.1
WORTHWHILE = 1.25
"""A batch size is not used where an image costs this many times what it does in smaller batches."""
SHORT = 0.1
"""Batches that take less than this part of the target are not judged: there, measured times are mostly noise."""
FORGETTING = 0.999
"""Of a size that is not used, its cost with each decision: a size judged by a hiccup is tried again."""


@dataclass(eq=False)
class _Kind:
    """Seconds an image costs with one kind of network: at all, and by size of batch (n: 2^(n-1) < size <= 2^n)."""

    image_s: float
    by_size: dict[int, float] = field(default_factory=dict)


class Costs:
    """Of each kind of network (kinds are few: meta-models, twice). Not thread-safe; the waiting line guards it."""

    def __init__(self, *, max_batch: int, batch_s: float) -> None:
        self._max_batch, self._batch_s = max_batch, batch_s
        self._kinds: dict[str, _Kind] = {}

    def image_s(self, kind: str) -> float:
        """Seconds an image takes of one runner."""
        known = self._kinds.get(kind)
        return known.image_s if known else FIRST_GUESS_S

    def learn(self, kind: str, n_images: int, spent_s: float) -> None:
        """A batch took so long, decoding included."""
        measured_s, index = spent_s / n_images, (n_images - 1).bit_length()
        known = self._kinds.setdefault(kind, _Kind(measured_s))
        known.image_s += LEARNING_RATE * (measured_s - known.image_s)
        before_s = known.by_size.setdefault(index, measured_s)
        known.by_size[index] = before_s + LEARNING_RATE * (measured_s - before_s)

    def limit(self, kind: str) -> int:
        """Most images for one batch: what takes ``batch_s`` at most, and costs an image no more than in smaller ones.

        A size not measured yet is tried where the cost of smaller ones lets it fit.
        """
        known = self._kinds.get(kind)
        if known is None:
            return self._max_batch
        limit, best_s = 1, known.by_size.get(0, known.image_s)
        for index in range(1, (self._max_batch - 1).bit_length() + 1):
            size = min(2**index, self._max_batch)
            image_s = known.by_size.get(index, best_s)
            is_short = image_s * size <= SHORT * self._batch_s
            if image_s * size > self._batch_s or (image_s > WORTHWHILE * best_s and not is_short):
                if index in known.by_size:
                    known.by_size[index] *= FORGETTING
                break
            limit, best_s = size, min(best_s, image_s)
        return limit
