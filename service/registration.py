"""From a request to a task that is stored: everything is checked first, so that what is refused leaves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from models.errors import QuotaExceeded, ReusedKey
from models.metamodel import MetaModel
from models.task import TaskSpec, encode_recipe, task_id
from service.generation.pending import PendingGenerations
from service.idempotency import IdempotencyStore, Remembered
from service.ports import ClassSummary, TaskRecord, TaskStore
from service.prediction.loading import Loader
from service.requests import Specifier, TaskRequest

Result = TypeVar("Result")


@dataclass(frozen=True)
class Creation:
    """A task and whether this request made it."""

    record: TaskRecord
    made: bool


@dataclass(frozen=True)
class Registration:
    """Finds or stores the task of a request; generating it is not its business."""

    store: TaskStore
    keys: IdempotencyStore
    specifier: Specifier
    loader: Loader
    pending: PendingGenerations
    pool: ThreadPoolExecutor

    async def of(self, tenant: str, request: TaskRequest, *, key: str | None, max_tasks: int | None) -> Creation:
        """The task of a request, stored durably; raises as ``Tasks.create``, and Busy where it could not wait."""
        fingerprint = await self._off_loop(request.fingerprint) if key else ""
        creation = await self._replay(tenant, key, fingerprint) if key else None
        return creation or await self._register(tenant, request, key, fingerprint, max_tasks)

    async def _replay(self, tenant: str, key: str, fingerprint: str) -> Creation | None:
        """What the first request under this key led to; None where there was none, or its task is gone."""
        first = await self._off_loop(lambda: self.keys.get(tenant, key))
        if first is None:
            return None
        _check_same(first, fingerprint)
        record = await self._off_loop(lambda: self._known(tenant, first.task_id))
        if record is None:
            await self._off_loop(lambda: self.keys.forget(tenant, key))
            return None
        self._check_room(tenant, first.task_id, record)
        return Creation(record, first.made)

    async def _register(
        self, tenant: str, request: TaskRequest, key: str | None, fingerprint: str, max_tasks: int | None
    ) -> Creation:
        """Check the request whole, and store its task durably if it is not there."""
        found = await self.specifier.specify(request)
        spec, meta_model = found.spec, found.meta_model
        recipe, ident, known = await self._off_loop(lambda: self._looked_up(tenant, spec, meta_model))
        self._check_room(tenant, ident, known)
        notes: tuple[str, ...] = ()
        if known is None:
            if max_tasks is not None:
                await self._off_loop(lambda: self._check_quota(tenant, max_tasks))
            notes = await self.specifier.notes(request, found)
        if key:
            entry = Remembered(fingerprint, ident, known is None)
            _check_same(await self._off_loop(lambda: self.keys.put(tenant, key, entry)), fingerprint)
        if known is not None:
            return Creation(known, made=False)
        record = _new_record(tenant, ident, spec, meta_model, notes)
        made = await self._off_loop(lambda: self.store.create(record, recipe))
        return Creation(record if made else await self._off_loop(lambda: self.loader.record(tenant, ident)), made)

    def _looked_up(self, tenant: str, spec: TaskSpec, meta_model: MetaModel) -> tuple[bytes, str, TaskRecord | None]:
        """A task's recipe and id, and its record where it is there; hashes all pixels, 20 to 100 ms for tens of MB."""
        recipe = encode_recipe(spec)
        ident = task_id(
            recipe,
            tenant=tenant,
            meta_model_digest=meta_model.digest,
            preprocessing=meta_model.manifest.preprocess.version,
        )
        return recipe, ident, self._known(tenant, ident)

    def _known(self, tenant: str, ident: str) -> TaskRecord | None:
        """The record of a task, if it is there; raises Busy where it is still to be made, and the queue is full."""
        record = self.store.get(tenant, ident)
        if record is None or record.state != "ready":
            self.pending.check_queue()
        return record

    def _check_room(self, tenant: str, ident: str, record: TaskRecord | None) -> None:
        if record is None or record.state != "ready":
            self.pending.check_room(tenant, ident)

    def _check_quota(self, tenant: str, max_tasks: int) -> None:
        if self.store.count(tenant) >= max_tasks:
            message = f"You keep {max_tasks} tasks already, which is your limit; delete one you no longer need."
            raise QuotaExceeded(message)

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def _check_same(first: Remembered, fingerprint: str) -> None:
    if first.fingerprint != fingerprint:
        message = "This Idempotency-Key came before with another request; use a new key for a new request."
        raise ReusedKey(message, where="Idempotency-Key")


def _new_record(tenant: str, ident: str, spec: TaskSpec, meta_model: MetaModel, notes: tuple[str, ...]) -> TaskRecord:
    classes = tuple(ClassSummary(c.name, c.description, len(c.images)) for c in spec.classes)
    n_unlabeled = len(spec.unlabeled)
    return TaskRecord(tenant, ident, "queued", classes, n_unlabeled, meta_model.name, time.time(), notes=notes)
