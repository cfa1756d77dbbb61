"""Waiting for a task that another process is making, and holding one that this process makes."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import NotFound, Unavailable
from service.ports import TaskRecord, TaskStore

LEASE_S = 30.0
QUEUE_AGAIN_S = 1.0
"""The lease of ``queue_again``: two calls of the store."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.25
log = logging.getLogger(__name__)


def existing(tasks: TaskStore, tenant: str, task_id: str) -> TaskRecord:
    """The task's record; raises NotFound where it was deleted meanwhile."""
    record = tasks.get(tenant, task_id)
    if record is None:
        raise NotFound("The task was deleted; create it again.")
    return record


def queue_again(tasks: TaskStore, tenant: str, task_id: str) -> None:
    """Queue a task that came to an end, with what is known of it; one that somebody is at, or that is gone, is left.

    So that an end seen later is that of the try which begins now.
    """
    owner = uuid.uuid4().hex
    if tasks.claim(tenant, task_id, owner=owner, lease_s=QUEUE_AGAIN_S):
        record = existing(tasks, tenant, task_id)
        tasks.release(tenant, task_id, owner=owner, state="queued", generate_ms=record.generate_ms, bytes=record.bytes)


def pauses() -> Iterator[float]:
    """Seconds to wait between looks at a task that another process is making: short at first, without end."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)


@contextmanager
def renewing(tasks: TaskStore, tenant: str, task_id: str, *, owner: str, lease_s: float) -> Iterator[None]:
    """Renew a lease while the block runs, from a thread of its own, so that slow is not taken for dead."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease_s / 3):
            try:
                tasks.claim(tenant, task_id, owner=owner, lease_s=lease_s)
            except Unavailable:
                log.warning("the lease of task %s could not be renewed", task_id)

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
