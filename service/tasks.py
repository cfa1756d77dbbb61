"""The use cases, without a word of HTTP: create, get, list, delete, follow, predict, export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from models.errors import NotFound, ReusedKey
from models.graph import self_contained
from models.metamodel import MetaModel
from models.task import TaskSpec, encode_recipe, task_id
from service.batching import Batcher, Prediction
from service.idempotency import IdempotencyStore, Remembered
from service.loading import TASK_ID, Loader, unknown_task
from service.pending import PendingGenerations
from service.ports import BundleStore, ClassSummary, TaskRecord, TaskStore
from service.requests import Specifier, TaskRequest
from service.sessions import SessionCache

POLL_S = (0.05, 0.1, 0.2, 0.5, 1.0)
FINISHED = frozenset({"ready", "failed"})
Result = TypeVar("Result")


@dataclass(frozen=True)
class Creation:
    """A task and whether this request made it."""

    record: TaskRecord
    made: bool


@dataclass(frozen=True)
class Tasks:
    """The use cases over their parts, all built by the composition root."""

    store: TaskStore
    bundles: BundleStore
    keys: IdempotencyStore
    specifier: Specifier
    loader: Loader
    pending: PendingGenerations
    sessions: SessionCache
    batcher: Batcher
    pool: ThreadPoolExecutor

    async def create(self, tenant: str, request: TaskRequest, *, wait_s: float, key: str | None = None) -> Creation:
        """Make the task's classifier, or find it; waits for it at most ``wait_s``.

        Everything is checked before anything is stored. Equal requests lead to the same task. ``key``: a repeated
        request under it is answered as the first one was; raises ReusedKey where that one asked for something else.
        """
        fingerprint = request.fingerprint() if key else ""
        creation = await self._replay(tenant, key, fingerprint) if key else None
        if creation is None:
            creation = await self._register(tenant, request, key, fingerprint)
        if creation.record.state == "ready":
            return creation
        generation = self.pending.start(tenant, creation.record.id)
        await asyncio.wait({generation}, timeout=wait_s)
        record = generation.result() if generation.done() else await self.get(tenant, creation.record.id)
        return Creation(record, creation.made)

    async def get(self, tenant: str, ident: str) -> TaskRecord:
        """The record of a task; raises NotFound."""
        return await self._off_loop(lambda: self.loader.record(tenant, ident))

    async def page(self, tenant: str, *, limit: int, after: str | None) -> tuple[list[TaskRecord], bool]:
        """Up to ``limit`` tasks, newest first, after the one named; and whether there are more."""
        found = await self._off_loop(lambda: self.store.list(tenant, limit=limit + 1, after=after))
        return found[:limit], len(found) > limit

    async def delete(self, tenant: str, ident: str) -> None:
        """Forget a task: its recipe, its bundle, its session; raises NotFound."""
        if not TASK_ID.fullmatch(ident) or not await self._off_loop(lambda: self.store.delete(tenant, ident)):
            raise unknown_task(ident)
        self.sessions.drop(tenant, ident)
        await self._off_loop(lambda: self.bundles.delete(ident))

    async def follow(self, tenant: str, ident: str) -> AsyncIterator[TaskRecord | None]:
        """The task's record, then again at each change until it is ready, failed or deleted; None: nothing new."""
        last, polls = await self.get(tenant, ident), 0
        yield last
        while last.state not in FINISHED:
            await asyncio.sleep(POLL_S[min(polls, len(POLL_S) - 1)])
            polls += 1
            try:
                record = await self.get(tenant, ident)
            except NotFound:
                return
            yield record if record != last else None
            last = record

    async def predict(self, tenant: str, ident: str, images: Sequence[bytes], top_k: int | None) -> Prediction:
        """The classifier's decisions on encoded images, in their order; each depends on its own image alone."""
        if not TASK_ID.fullmatch(ident):
            raise unknown_task(ident)
        async with self.sessions.lease(tenant, ident) as session:
            return await self.batcher.predict(session, images, top_k)

    async def export_model(self, tenant: str, ident: str) -> bytes:
        """The classifier as an ONNX file that runs anywhere; raises what loading it raises."""

        def export() -> bytes:
            record = self.loader.record(tenant, ident)
            bundle = self.loader.bundle(record)
            return self_contained(self.loader.catalogue.get(record.meta_model), bundle.header, bundle.tensors)

        return await self._off_loop(export)

    async def _replay(self, tenant: str, key: str, fingerprint: str) -> Creation | None:
        """What the first request under this key led to; None where there was none, or its task is gone."""
        first = await self._off_loop(lambda: self.keys.get(tenant, key))
        if first is None:
            return None
        _check_same(first, fingerprint)
        try:
            return Creation(await self.get(tenant, first.task_id), first.made)
        except NotFound:
            await self._off_loop(lambda: self.keys.forget(tenant, key))
            return None

    async def _register(self, tenant: str, request: TaskRequest, key: str | None, fingerprint: str) -> Creation:
        """Check the request whole, and store its task durably if it is not there."""
        spec, meta_model = await self.specifier.specify(request)
        recipe = encode_recipe(spec)
        ident = task_id(
            recipe,
            tenant=tenant,
            meta_model_digest=meta_model.digest,
            preprocessing=meta_model.manifest.preprocess.version,
        )
        record = _new_record(tenant, ident, spec, meta_model)
        known = await self._off_loop(lambda: self.store.get(tenant, ident))
        if known is None:
            self.pending.check_room(tenant, ident)
        if key:
            entry = Remembered(fingerprint, ident, known is None)
            _check_same(await self._off_loop(lambda: self.keys.put(tenant, key, entry)), fingerprint)
        if known is not None:
            return Creation(known, made=False)
        made = await self._off_loop(lambda: self.store.create(record, recipe))
        return Creation(record if made else await self.get(tenant, ident), made)

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def _check_same(first: Remembered, fingerprint: str) -> None:
    if first.fingerprint != fingerprint:
        message = "This Idempotency-Key came before with another request; use a new key for a new request."
        raise ReusedKey(message, where="Idempotency-Key")


def _new_record(tenant: str, ident: str, spec: TaskSpec, meta_model: MetaModel) -> TaskRecord:
    classes = tuple(ClassSummary(c.name, c.description, len(c.images)) for c in spec.classes)
    return TaskRecord(tenant, ident, "queued", classes, len(spec.unlabeled), meta_model.name, time.time())
