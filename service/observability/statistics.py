"""What each task's classifier has answered in this process: counts and times, of the tasks used most recently."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from service.prediction.pieces import Prediction

MAX_TASKS = 10_000
"""Tasks remembered, about 3 MB; the ones not used for longest are forgotten."""


@dataclass
class Tally:
    """Predict calls for one task since its first in this process. Times in ms; ``last_at``: Unix seconds."""

    n_images: int = 0
    n_requests: int = 0
    n_failed: int = 0
    total_ms: float = 0.0
    failed_ms: float = 0.0
    queue_ms: float = 0.0
    decode_ms: float = 0.0
    run_ms: float = 0.0
    last_at: float = 0.0


class Statistics:
    """Tallies by (tenant, task id); used from one event loop."""

    def __init__(self, max_tasks: int = MAX_TASKS) -> None:
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()
        self._max_tasks = max_tasks

    def succeeded(self, tenant: str, task_id: str, prediction: Prediction, total_ms: float) -> None:
        """Count an answered call."""
        tally = self._used(tenant, task_id)
        tally.n_requests += 1
        tally.n_images += len(prediction.decisions)
        tally.total_ms += total_ms
        tally.queue_ms += prediction.queue_ms
        tally.decode_ms += prediction.decode_ms
        tally.run_ms += prediction.run_ms

    def failed(self, tenant: str, task_id: str, total_ms: float) -> None:
        """Count a call that its images, or too much load, made fail."""
        tally = self._used(tenant, task_id)
        tally.n_failed += 1
        tally.failed_ms += total_ms

    def of(self, tenant: str, task_id: str) -> Tally:
        """A task's tally; all zero where it was not used."""
        return self._tallies.get((tenant, task_id)) or Tally()

    def _used(self, tenant: str, task_id: str) -> Tally:
        tally = self._tallies.setdefault((tenant, task_id), Tally())
        self._tallies.move_to_end((tenant, task_id))
        if len(self._tallies) > self._max_tasks:
            self._tallies.popitem(last=False)
        tally.last_at = time.time()
        return tally
