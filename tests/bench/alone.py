"""One image at a time: what a server adds to the call of the network.

A machine's speed drifts by more between long turns than a good server adds to the call of a large network, so the turns
are short, and what counts is the difference within each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

from tests.bench.classifier import Classifier
from tests.bench.measure import Bench, Figures


def one_at_a_time(
    bench: Bench, classifier: Classifier, images: Sequence[bytes], ask: Callable[[bytes], object]
) -> Figures:
    """Median ms of the raw call (decoding and running, in this process), of ``ask``, and of what that is longer by."""

    def median_ms(call: Callable[[bytes], object]) -> float:
        times_ms = []
        for image in images:
            started = perf_counter()
            call(image)
            times_ms.append(1e3 * (perf_counter() - started))
        return statistics.median(times_ms)

    turns = [
        (median_ms(lambda image: classifier.answers([image])), median_ms(ask)) for _ in range(1 + bench.repeats(30))
    ][1:]  # the first warms up
    return {
        "raw_call_ms": statistics.median(raw for raw, _ in turns),
        "alone_p50_ms": statistics.median(asked for _, asked in turns),
        "overhead_ms": statistics.median(asked - raw for raw, asked in turns),
    }
