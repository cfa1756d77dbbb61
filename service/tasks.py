"""The use cases, without a word of HTTP: create, get, list, delete, follow, predict, explain, export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from models.errors import ClassmithError, NotFound, QuotaExceeded, ReusedKey
from models.explain import LayerChange
from models.graph import self_contained
from models.metamodel import MetaModel
from models.task import TaskSpec, encode_recipe, task_id
from service.explaining import Explainer, Explanation
from service.generation.pending import PendingGenerations
from service.idempotency import IdempotencyStore, Remembered
from service.images import check_pixels
from service.observability.statistics import Statistics
from service.ports import BundleStore, ClassSummary, TaskRecord, TaskStore
from service.prediction.batching import Batcher, Prediction
from service.prediction.loading import TASK_ID, Loader, unknown_task
from service.prediction.pieces import Given
from service.prediction.session_cache import SessionCache
from service.requests import Specifier, TaskRequest

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
    explainer: Explainer
    pool: ThreadPoolExecutor
    statistics: Statistics = field(default_factory=Statistics)

    async def create(
        self, tenant: str, request: TaskRequest, *, wait_s: float, key: str | None = None, max_tasks: int | None = None
    ) -> Creation:
        """Make the task's classifier, or find it; waits for it at most ``wait_s``.

        Everything is checked before anything is stored. Equal requests lead to the same task. ``key``: a repeated
        request under it is answered as the first one was; raises ReusedKey where that one asked for something else.
        Raises QuotaExceeded where the task is new and the tenant keeps ``max_tasks`` already.
        """
        fingerprint = request.fingerprint() if key else ""
        creation = await self._replay(tenant, key, fingerprint) if key else None
        if creation is None:
            creation = await self._register(tenant, request, key, fingerprint, max_tasks)
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

    def refuse_if_full(self, tenant: str, ident: str) -> None:
        """Raise Busy where too much waits for the task already: what a request sends need not be read then."""
        self.batcher.refuse_if_full(tenant, ident)

    def reading(self, tenant: str, ident: str) -> AbstractContextManager[None]:
        """Around the reading of a request's images; raises as ``refuse_if_full``."""
        return self.batcher.reading(tenant, ident)

    async def predict(self, tenant: str, ident: str, images: Sequence[bytes], top_k: int | None) -> Prediction:
        """The classifier's decisions on encoded images, in their order; each depends on its own image alone."""
        return (await self.infer(tenant, ident, images, top_k))[0]

    def predict_at_once(
        self, tenant: str, ident: str, image: bytes, answer: Callable[[Prediction | BaseException], None]
    ) -> bool:
        """``predict`` one image without a coroutine, where the task is in memory and there is room.

        False where not: nothing has happened then. Else ``answer`` is called, later, with what that returns or raises;
        what fails is not counted: the caller tries again by ``predict``, or answers itself.
        """
        began_at, lease = perf_counter(), self.sessions.lease(tenant, ident)

        def finish(result: Prediction | BaseException) -> None:
            lease.end()
            if isinstance(result, Prediction):
                self.statistics.succeeded(tenant, ident, result, (perf_counter() - began_at) * 1e3)
            answer(result)

        if (session := lease.begin_at_once()) is None:
            return False
        try:
            self.batcher.submit(session, [image], None, finish)
        except ClassmithError:
            lease.end()
            return False
        return True

    async def infer(
        self, tenant: str, ident: str, images: Sequence[Given], top_k: int | None = None
    ) -> tuple[Prediction, tuple[str, ...]]:
        """As ``predict``, for encoded images or pixels as the network takes them; and the classes in their order."""
        if not TASK_ID.fullmatch(ident):
            raise unknown_task(ident)
        began_at = perf_counter()
        async with self.sessions.lease(tenant, ident) as session:
            try:
                check_pixels(images, session.preprocess)
                prediction = await self.batcher.predict(session, images, top_k)
            except ClassmithError:
                self.statistics.failed(tenant, ident, (perf_counter() - began_at) * 1e3)
                raise
            self.statistics.succeeded(tenant, ident, prediction, (perf_counter() - began_at) * 1e3)
            return prediction, session.header.class_names

    async def explain(self, tenant: str, ident: str, image: bytes) -> Explanation:
        """What carried the classifier's decision on an encoded image; raises what ``predict`` raises."""
        await self.load(tenant, ident)
        return await self.explainer.explain(tenant, ident, image)

    async def changes(self, tenant: str, ident: str) -> list[LayerChange]:
        """How far the task changed each layer of the base network that it adapts; raises what loading it raises."""
        await self.load(tenant, ident)
        return await self.explainer.changes(tenant, ident)

    async def load(self, tenant: str, ident: str) -> None:
        """Make a task's classifier ready in memory; raises what loading it raises."""
        if not TASK_ID.fullmatch(ident):
            raise unknown_task(ident)
        async with self.sessions.lease(tenant, ident):
            pass

    async def unload(self, tenant: str, ident: str) -> None:
        """Let go of a task's classifier in memory; the task stays, and its next prediction loads it again."""
        await self.get(tenant, ident)
        self.sessions.drop(tenant, ident)

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

    async def _register(
        self, tenant: str, request: TaskRequest, key: str | None, fingerprint: str, max_tasks: int | None
    ) -> Creation:
        """Check the request whole, and store its task durably if it is not there."""
        spec, meta_model = await self.specifier.specify(request)
        recipe = encode_recipe(spec)
        ident = task_id(
            recipe,
            tenant=tenant,
            meta_model_digest=meta_model.digest,
            preprocessing=meta_model.manifest.preprocess.version,
        )
        known = await self._off_loop(lambda: self.store.get(tenant, ident))
        notes: tuple[str, ...] = ()
        if known is None:
            self.pending.check_room(tenant, ident)
            if max_tasks is not None:
                await self._off_loop(lambda: self._check_quota(tenant, max_tasks))
            notes = await self.specifier.notes(request, spec, meta_model)
        if key:
            entry = Remembered(fingerprint, ident, known is None)
            _check_same(await self._off_loop(lambda: self.keys.put(tenant, key, entry)), fingerprint)
        if known is not None:
            return Creation(known, made=False)
        record = _new_record(tenant, ident, spec, meta_model, notes)
        made = await self._off_loop(lambda: self.store.create(record, recipe))
        return Creation(record if made else await self.get(tenant, ident), made)

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
