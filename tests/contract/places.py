"""Where a store of each kind lives, in a form that other processes can be given; and what they do there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Literal

from service.ports import BundleStore, ClassSummary, TaskRecord, TaskStore
from service.stores.files import FileBundleStore
from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import connect
from service.stores.sqlite import SqliteTaskStore

MAX_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Place:
    """An address: a folder, or a Redis URL and the prefix of the keys."""

    kind: Literal["embedded", "redis"]
    address: str
    prefix: str = ""

    @contextmanager
    def tasks(self) -> Iterator[TaskStore]:
        store: TaskStore = (
            SqliteTaskStore(Path(self.address) / "tasks.sqlite")
            if self.kind == "embedded"
            else RedisTaskStore(connect(self.address), self.prefix)
        )
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def bundles(self) -> Iterator[BundleStore]:
        store: BundleStore = (
            FileBundleStore(Path(self.address) / "bundles", MAX_BYTES)
            if self.kind == "embedded"
            else RedisBundleStore(connect(self.address), prefix=self.prefix)
        )
        try:
            yield store
        finally:
            store.close()


def record(task_id: str, *, tenant: str = "ann", created_at: float = 1.0) -> TaskRecord:
    classes = (ClassSummary("zebra", "striped", 2), ClassSummary("Äffchen 🐒", "", 0))
    return TaskRecord(tenant, task_id, "queued", classes, 3, "omniglot-8", created_at)


def claim_each(place: Place, ids: list[str], owner: str, start: Barrier) -> list[str]:
    """The tasks that this process got, claiming all in the same order at the same time as the others."""
    with place.tasks() as tasks:
        start.wait()
        return [i for i in ids if tasks.claim("ann", i, owner=owner, lease_s=600)]


def create_each(place: Place, ids: list[str], owner: str, start: Barrier) -> list[str]:
    """The tasks that were new when this process created them; the recipe says who did."""
    start.wait()
    with place.tasks() as tasks:
        return [i for i in ids if tasks.create(record(i), owner.encode())]


def create_and_die(place: Place, task_id: str) -> None:
    """Killed as soon as ``create`` returns: nothing is closed or flushed."""
    with place.tasks() as tasks:
        tasks.create(record(task_id), b"recipe")
        os.kill(os.getpid(), signal.SIGKILL)


def claim_and_hang(place: Place, task_id: str, lease_s: float, claimed: Event) -> None:
    """A generator that hangs with its lease, until it is killed."""
    with place.tasks() as tasks:
        assert tasks.claim("ann", task_id, owner="victim", lease_s=lease_s)
        claimed.set()
        signal.pause()


def put_and_die(place: Place, task_id: str, data: bytes) -> None:
    with place.bundles() as bundles:
        bundles.put(task_id, data)
        os.kill(os.getpid(), signal.SIGKILL)


def put_until(place: Place, task_id: str, fill: int, n_bytes: int, stop: Event) -> None:
    """Overwrites a bundle again and again, each time whole with one byte value."""
    with place.bundles() as bundles:
        while not stop.is_set():
            bundles.put(task_id, bytes([fill]) * n_bytes)
