"""The use cases, without a word of HTTP: create, get, list, delete, follow, predict, explain, export."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from models.errors import Busy, ClassmithError, NotFound, Unavailable
from models.explain import LayerChange
from service.explaining import Explainer, Explanation
from service.exporting import Exporter
from service.generation.leases import queue_again
from service.generation.pending import PendingGenerations
from service.images import check_pixels
from service.observability.statistics import Statistics
from service.ports import BundleStore, Position, TaskRecord, TaskStore
from service.prediction.batching import Batcher, Prediction
from service.prediction.loading import TASK_ID, Loader, unknown_task
from service.prediction.pieces import Given, Request
from service.prediction.session_cache import SessionCache
from service.registration import Creation, Registration
from service.requests import TaskRequest

POLL_S = (0.05, 0.1, 0.2, 0.5, 1.0)
FINISHED = frozenset({"ready", "failed"})
Result = TypeVar("Result")


@dataclass(frozen=True)
class Tasks:
    """The use cases over their parts, all built by the composition root."""

    store: TaskStore
    bundles: BundleStore
    registration: Registration
    loader: Loader
    pending: PendingGenerations
    sessions: SessionCache
    batcher: Batcher
    explainer: Explainer
    exporter: Exporter
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
        creation = await self.registration.of(tenant, request, key=key, max_tasks=max_tasks)
        ident = creation.record.id
        if creation.record.state == "ready":
            return creation
        if creation.record.state == "failed":  # else whoever looks before the new try began is told of the old one
            await self._off_loop(lambda: queue_again(self.store, tenant, ident))
        generation = self.pending.start(tenant, ident)
        await asyncio.wait({generation}, timeout=wait_s)
        try:
            record = generation.result() if generation.done() else await self.get(tenant, ident)
        except Busy:  # the queue has filled up since it was asked: the task is stored, and made when there is room
            record = await self.get(tenant, ident)
        return Creation(record, creation.made)

    async def get(self, tenant: str, ident: str) -> TaskRecord:
        """The record of a task; raises NotFound."""
        return await self._off_loop(lambda: self.loader.record(tenant, ident))

    async def page(self, tenant: str, *, limit: int, after: Position | None) -> tuple[list[TaskRecord], bool]:
        """Up to ``limit`` tasks, newest first, after a position; and whether there are more."""
        found = await self._off_loop(lambda: self.store.list(tenant, limit=limit + 1, after=after))
        return found[:limit], len(found) > limit

    async def delete(self, tenant: str, ident: str) -> None:
        """Forget a task: its bundle, its recipe, its session; raises NotFound.

        Weights go first, so that a delete that was interrupted can be repeated, and once more at the end: a bundle may
        have been made again meanwhile.
        """

        def forget() -> bool:
            self.loader.record(tenant, ident)
            self.bundles.delete(ident)
            return self.store.delete(tenant, ident)

        if not await self._off_loop(forget):
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
            except Unavailable:  # for now: what was said of the task still holds
                record = last
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
    ) -> Request | None:
        """``predict`` one image without a coroutine, where the task is in memory and there is room.

        None where not: nothing has happened then. Else ``answer`` is called, later, with what that returns or raises;
        what fails is not counted: the caller tries again by ``predict``, or answers itself. ``withdraw`` ends it.
        """
        began_at, lease = perf_counter(), self.sessions.lease(tenant, ident)

        def finish(result: Prediction | BaseException) -> None:
            lease.end()
            if isinstance(result, Prediction):
                self.statistics.succeeded(tenant, ident, result, (perf_counter() - began_at) * 1e3)
            answer(result)

        if (session := lease.begin_at_once()) is None:
            return None
        try:
            return self.batcher.submit(session, [image], None, finish)
        except ClassmithError:
            lease.end()
            return None

    def withdraw(self, request: Request) -> None:
        """End what ``predict_at_once`` began, for a caller who has left: ``answer`` gets a CancelledError now."""
        self.batcher.withdraw(request)

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
        """The classifier as an ONNX file that runs anywhere; raises Busy, and what loading it raises."""
        return await self.exporter.export(tenant, ident)

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)
