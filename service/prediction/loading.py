"""From storage to something that runs: a task's bundle, remade from its recipe where it was lost, and its session."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

from models.bundle import Bundle, decode
from models.errors import Conflict, CorruptBundle, GenerationFailed, NotFound, Unavailable
from service.catalogue import Catalogue
from service.ports import BundleStore, Generation, TaskRecord, TaskStore
from service.prediction.sessions import Session, SharedNetworks, check

TASK_ID = re.compile(r"[0-9a-f]{32}")
N_TRIES = 3
"""A store short of memory may evict a bundle as soon as it has it."""
log = logging.getLogger(__name__)


def unknown_task(task_id: str) -> NotFound:
    """The same answer for a task that never was, was deleted, or is another tenant's."""
    return NotFound(f"There is no task {task_id[:64]!r}; create it, or list yours with GET /tasks.")


@dataclass(frozen=True)
class Loader:
    """Blocking and thread-safe; used by the session cache, for exports and for explanations."""

    store: TaskStore
    bundles: BundleStore
    generation: Generation
    catalogue: Catalogue
    networks: SharedNetworks = field(default_factory=SharedNetworks)

    def record(self, tenant: str, task_id: str) -> TaskRecord:
        """The record of a tenant's task; raises NotFound."""
        record = self.store.get(tenant, task_id) if TASK_ID.fullmatch(task_id) else None
        if record is None:
            raise unknown_task(task_id)
        return record

    def exists(self, tenant: str, task_id: str) -> bool:
        """Whether a task is still there."""
        return self.store.get(tenant, task_id) is not None

    def session(self, tenant: str, task_id: str) -> Session:
        """A session of the task; raises NotFound, Conflict (not ready yet) or GenerationFailed."""
        record = self.record(tenant, task_id)
        return self.networks.session(self.catalogue.get(record.meta_model), self.bundle(record), tenant, task_id)

    def bundle(self, record: TaskRecord) -> Bundle:
        """The stored bundle, or the same made again, here or by whoever is at it; raises Unavailable as ``check``."""
        is_new = record.state in {"queued", "generating"} and record.generate_ms is None  # never made
        if is_new and self.bundles.get(record.id) is None:
            raise Conflict(f"The task is still {record.state}; wait for it with GET /tasks/{record.id}/events.")
        if record.state == "failed":
            raise Conflict(f"The task failed ({record.error}); create it again, or with other images.")
        if (data := self.bundles.get(record.id)) is not None:
            try:
                found = decode(data)
                check(self.catalogue.get(record.meta_model), found)
                return found
            except CorruptBundle:
                self.bundles.delete(record.id)
        return self._remade(record)

    def _remade(self, record: TaskRecord) -> Bundle:
        log.info("remaking a lost bundle", extra={"task_id": record.id})
        for _ in range(N_TRIES):
            done = self.generation.run(record.tenant, record.id)
            if done.state != "ready":
                raise GenerationFailed(f"The task could not be made again ({done.error}); create it again.")
            if (data := self.bundles.get(record.id)) is not None:
                return decode(data)
        raise Unavailable("The bundle is made again and again and is gone; give the store more memory or disk.")
