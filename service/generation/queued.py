"""Bringing a task to its end on a worker behind the queue, and in this process where none could."""

from __future__ import annotations

import random
import threading
import time

from models import errors
from service.generation.jobs import JobQueue
from service.generation.leases import existing, pauses, queue_again
from service.generation.once import LocalGeneration
from service.generation.single_flight import SingleFlight
from service.ports import TaskRecord, TaskStore

CHECK_WORKERS_S = 1.0
REMAKE_WAIT_S = 15.0
"""For workers to make a lost bundle again: the threads that load tasks wait so long. A dead one is noticed sooner."""
MAX_JOBS = 1_000
TYPICAL_GENERATE_S = 0.05


class QueuedGeneration:
    """A Generation on the workers behind a queue; in this process where none is alive, or could make it again.

    At most ``max_jobs`` wait in the queue; over that, Busy says when to come again, by the times measured here. What
    was made before is waited for REMAKE_WAIT_S at most, then Unavailable says so; asking again waits for the same job.
    """

    def __init__(self, queue: JobQueue, tasks: TaskStore, local: LocalGeneration, *, max_jobs: int = MAX_JOBS) -> None:
        self._queue = queue
        self._tasks = tasks
        self._local = local
        self._max_jobs = max_jobs
        self._generate_s = TYPICAL_GENERATE_S
        self._message_ids: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._flights: SingleFlight[TaskRecord] = SingleFlight()

    def run(self, tenant: str, task_id: str) -> TaskRecord:
        """Block until the task is ready or failed; raises Busy where the queue is full."""
        return self._flights.run((tenant, task_id), lambda: self._bring_to_end(tenant, task_id))

    def check_room(self) -> None:
        """Raise Busy, with when to come again, where workers have as many jobs as may wait."""
        n_jobs = self._queue.n_jobs()
        if n_jobs >= self._max_jobs and (n_workers := self._queue.n_workers()):
            message = f"{n_jobs} classifiers are waiting to be made; try again later."
            raise errors.Busy(message, retry_after_s=n_jobs * self._generate_s / n_workers * random.uniform(1.0, 1.5))

    def close(self) -> None:
        """Stop waiting for workers (their jobs go on), and close the local generation."""
        self._flights.closing.set()
        self._local.close()
        self._flights.close()

    def _bring_to_end(self, tenant: str, task_id: str) -> TaskRecord:
        record = existing(self._tasks, tenant, task_id)
        if record.state == "ready" and self._local.is_intact(record):
            return record
        if not self._queue.n_workers():
            return self._local.run(tenant, task_id)
        self._local.check_remake(record)
        has_ended = record.state in ("ready", "failed")
        message_id = None if has_ended else self._message_ids.get((tenant, task_id))
        if message_id is None or not self._queue.holds(message_id):
            self.check_room()
            if has_ended:
                queue_again(self._tasks, tenant, task_id)
            message_id = self._put(tenant, task_id)
        ended = self._wait(tenant, task_id, message_id)
        with self._lock:
            self._message_ids.pop((tenant, task_id), None)
        return ended

    def _put(self, tenant: str, task_id: str) -> str:
        """A new job's message id; as many are kept as may wait, since not every wait comes to an end."""
        message_id = self._queue.put(tenant, task_id)
        with self._lock:
            self._message_ids.pop((tenant, task_id), None)
            self._message_ids[tenant, task_id] = message_id
            if len(self._message_ids) > self._max_jobs:
                del self._message_ids[next(iter(self._message_ids))]
        return message_id

    def _wait(self, tenant: str, task_id: str, message_id: str) -> TaskRecord:
        began_at = checked_at = time.monotonic()
        for pause_s in pauses():
            now = time.monotonic()
            is_due = now - checked_at > CHECK_WORKERS_S
            is_gone = is_due and not self._queue.holds(message_id)
            record = existing(self._tasks, tenant, task_id)  # after the look at the job: it ends after its task
            if record.state in ("ready", "failed"):
                self._measure(record)
                return record
            is_remake = record.generate_ms is not None
            if is_remake and now - began_at > REMAKE_WAIT_S:
                raise errors.Unavailable("The workers are still making this classifier again; try again in a moment.")
            if is_due:
                checked_at = now
                if not self._queue.n_workers() or (is_gone and is_remake):  # none is alive, or the one asked could not
                    return self._local.run(tenant, task_id)
                if is_gone:
                    message_id = self._put(tenant, task_id)
            if self._flights.closing.wait(pause_s):
                self._flights.check_open()
        raise AssertionError  # pauses() has no end

    def _measure(self, record: TaskRecord) -> None:
        if record.generate_ms is not None:
            self._generate_s = 0.9 * self._generate_s + 0.1 * record.generate_ms / 1000
