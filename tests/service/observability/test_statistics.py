"""Statistics: sums by task, a tenant's own, and no more of them than there is room for."""

from __future__ import annotations

import pytest

from models.decision import Decision
from service.observability.statistics import Statistics, Tally
from service.prediction.batching import Prediction

DECISION = Decision("a", 1.0, {"a": 1.0}, False)


def prediction(n_images: int) -> Prediction:
    return Prediction([DECISION] * n_images, queue_ms=1.0, decode_ms=2.0, run_ms=4.0)


def test_calls_add_up() -> None:
    statistics = Statistics()
    statistics.succeeded("ann", "t", prediction(2), 8.0)
    statistics.succeeded("ann", "t", prediction(3), 9.0)
    statistics.failed("ann", "t", 0.5)
    tally = statistics.of("ann", "t")
    assert (tally.n_requests, tally.n_images, tally.n_failed) == (2, 5, 1)
    assert (tally.total_ms, tally.failed_ms) == (17.0, 0.5)
    assert (tally.queue_ms, tally.decode_ms, tally.run_ms) == (2.0, 4.0, 8.0)
    assert tally.last_at > 0


@pytest.mark.parametrize(("tenant", "task"), [("bob", "t"), ("ann", "u")])
def test_what_was_not_used_is_zero_and_takes_no_room(tenant: str, task: str) -> None:
    statistics = Statistics(max_tasks=1)
    statistics.failed("ann", "t", 1.0)
    assert statistics.of(tenant, task) == Tally()
    assert statistics.of("ann", "t").n_failed == 1


def test_the_ones_not_used_for_longest_are_forgotten() -> None:
    statistics = Statistics(max_tasks=2)
    for task in ("a", "b", "a", "c"):
        statistics.succeeded("ann", task, prediction(1), 1.0)
    assert [statistics.of("ann", task).n_requests for task in "abc"] == [2, 0, 1]
