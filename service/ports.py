"""What the use cases need from storage and generation. Each Protocol has two real implementations.

All calls are synchronous and thread-safe; the service runs them off the event loop. None is on the hot path of a
prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["queued", "generating", "ready", "failed"]


@dataclass(frozen=True)
class ClassSummary:
    """A class of a stored task, without its pixels."""

    name: str
    description: str
    n_images: int


@dataclass(frozen=True)
class Position:
    """A place in a tenant's list: where a task made then (Unix seconds) stands, or stood before it was deleted."""

    created_at: float
    id: str


@dataclass(frozen=True)
class TaskRecord:
    """A stored task as it is listed. ``created_at``: Unix seconds. ``bytes``: size of its bundle once ready.

    ``notes``: what its author should know of how it was read.
    """

    tenant: str
    id: str
    state: State
    classes: tuple[ClassSummary, ...]
    n_unlabeled: int
    meta_model: str
    created_at: float
    generate_ms: float | None = None
    bytes: int | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def position(self) -> Position:
        """Where the task stands in its tenant's list."""
        return Position(self.created_at, self.id)


class TaskStore(Protocol):
    """Durable tasks: a record and its recipe. What ``create`` returned for is never lost; each tenant its own."""

    def create(self, record: TaskRecord, recipe: bytes) -> bool:
        """Store durably unless the task is there; True if it is new. Never overwrites."""

    def get(self, tenant: str, task_id: str) -> TaskRecord | None:
        """The record, or None (also for another tenant's task)."""

    def recipe(self, tenant: str, task_id: str) -> bytes | None:
        """The recipe's bytes, or None."""

    def list(self, tenant: str, *, limit: int, after: Position | None = None) -> list[TaskRecord]:
        """Newest first, then by id; ``after`` is the last position of the page before."""

    def count(self, tenant: str) -> int:
        """How many tasks a tenant has; one made or deleted at this moment may be in it or not."""

    def delete(self, tenant: str, task_id: str) -> bool:
        """Remove record and recipe; False if there was none."""

    def claim(self, tenant: str, task_id: str, *, owner: str, lease_s: float) -> bool:
        """Atomically become the one generator of a task: state -> generating, with a lease that others respect.

        False where the task is gone, or another owner's lease still runs. Allowed in every state (a ready task whose
        bundle was evicted is generated again); the same owner may claim again, which renews the lease.
        """

    def release(
        self,
        tenant: str,
        task_id: str,
        *,
        owner: str,
        state: State,
        generate_ms: float | None = None,
        bytes: int | None = None,
        error: str | None = None,
    ) -> bool:
        """End this owner's lease with a state; False (and no change) where it no longer holds the lease."""

    def unfinished(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """(tenant, id) of tasks queued, or generating under a lease that ran out: work a crash left behind."""

    def ping(self) -> None:
        """Raise Unavailable where the store does not answer."""

    def close(self) -> None:
        """Let go of connections and files."""


class BundleStore(Protocol):
    """A cache of bundles by task id (which is unique across tenants): anything may be evicted at any time."""

    def put(self, task_id: str, data: bytes) -> None:
        """Store whole or not at all; evicts older bundles over the size limit."""

    def get(self, task_id: str) -> bytes | None:
        """The bundle's bytes, or None."""

    def delete(self, task_id: str) -> None:
        """Forget the bundle, if it is there."""

    def close(self) -> None:
        """Let go of connections and files."""


class Generation(Protocol):
    """Brings a task to an end: generated in this process, or by a worker behind a queue."""

    def run(self, tenant: str, task_id: str) -> TaskRecord:
        """Block until the task is ready or failed, generating it if need be; returns its record.

        At most one process works on a task at a time (``TaskStore.claim``): others wait for it, and take over when its
        lease runs out. A ready task is generated again only if its bundle is missing or corrupt. Raises NotFound where
        the task was deleted meanwhile, Unavailable after ``close`` and where a task that was made before cannot be made
        again now.
        """

    def check_room(self) -> None:
        """Raise Busy where a queue is full: asked before a new task is stored."""

    def close(self) -> None:
        """Take no more work, and end what runs."""
