"""Generations under way in this process: one for each task, however many requests wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable
from functools import partial

from models.errors import Busy, Unavailable
from service.backpressure import jittered
from service.fair_pool import FairPool
from service.observability.telemetry import Metrics
from service.ports import Generation, TaskRecord, TaskStore

FIRST_GUESS_S = 0.05
SMOOTHING = 0.2
N_RECOVERED = 100
Key = tuple[str, str]
"""(tenant, task id)."""
log = logging.getLogger(__name__)


class PendingGenerations:
    """Runs generations in a few threads, which tenants take in turns; used from one event loop.

    ``on_ready`` is called in the loop with each task that came out ready. Tasks that a crash left unfinished, here or
    in another process, are taken up at the start and every ``recover_s`` seconds, those last that ended in an error
    here; with a queue in between, only those older than ``min_age_s``.
    """

    def __init__(
        self,
        generation: Generation,
        store: TaskStore,
        *,
        n_threads: int,
        max_pending: int,
        recover_s: float,
        min_age_s: float = 0.0,
        on_ready: Callable[[TaskRecord], None],
        metrics: Metrics | None = None,
    ) -> None:
        self._generation, self._store, self._on_ready = generation, store, on_ready
        self._pool = FairPool(n_threads, "classmith-generate")
        self._n_threads, self._max_pending = n_threads, max_pending
        self._recover_s, self._min_age_s = recover_s, min_age_s
        self._pending: dict[Key, asyncio.Task[TaskRecord]] = {}
        self._put_off: dict[Key, float] = {}
        self._mean_s = FIRST_GUESS_S
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False
        metrics = metrics or Metrics()
        self._shed = metrics.shed.labels("generation_queue_full")
        metrics.generations_pending.set_function(lambda: len(self._pending))

    def start_recovery(self) -> None:
        """Begin to take up unfinished tasks."""
        self._recovery = asyncio.create_task(self._recover())

    def check_queue(self) -> None:
        """Raise Busy where the queue takes no more; blocking."""
        try:
            self._generation.check_room()
        except Busy:
            self._shed.inc()
            raise

    def check_room(self, tenant: str, task_id: str) -> None:
        """Raise Busy where no more generations can wait here."""
        if self._closed:
            raise Unavailable("The service is stopping; try again in a moment, or on another replica.")
        if (tenant, task_id) not in self._pending and not self._pool.has_room(tenant, self._max_pending):
            self._shed.inc()
            wait_s = self._mean_s * len(self._pending) / self._n_threads
            raise Busy("Too many classifiers are being made; try again later.", retry_after_s=jittered(wait_s))

    def start(self, tenant: str, task_id: str) -> asyncio.Task[TaskRecord]:
        """The generation of a task, begun if it is not under way; wait with ``asyncio.wait`` (never cancel it)."""
        key = (tenant, task_id)
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._run(key))
            self._pending[key].add_done_callback(lambda done: self._end(key, done))
        return self._pending[key]

    async def close(self) -> None:
        """Stop taking up work, let generations end (or be refused), and stop the threads."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        await asyncio.to_thread(self._generation.close)
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        self._pool.shutdown()

    async def _run(self, key: Key) -> TaskRecord:
        def timed() -> tuple[TaskRecord, float]:
            started = time.perf_counter()
            return self._generation.run(*key), time.perf_counter() - started

        run = contextvars.copy_context().run  # part of the request that began it, in logs and traces
        record, seconds = await self._pool.run(key[0], partial(run, timed))
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        return record

    def _end(self, key: Key, done: asyncio.Task[TaskRecord]) -> None:
        self._pending.pop(key, None)
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self._put_off[key] = time.monotonic()
            log.warning("a generation ended early", exc_info=error, extra={"task_id": key[1]})
        elif done.result().state == "ready":
            self._on_ready(done.result())

    async def _recover(self) -> None:
        while True:
            try:
                left = await asyncio.to_thread(self._left_behind, N_RECOVERED + len(self._put_off))
                self._put_off = {key: self._put_off[key] for key in left if key in self._put_off}
                for key in sorted(left, key=lambda key: self._put_off.get(key, 0.0)):
                    if len(self._pending) < self._n_threads:  # the others next time: requests come first
                        self.start(*key)
            except Unavailable as error:
                log.warning("cannot look for unfinished tasks", exc_info=error)
            await asyncio.sleep(self._recover_s)

    def _left_behind(self, limit: int) -> list[Key]:
        keys = self._store.unfinished(limit=limit)
        if not self._min_age_s:
            return list(keys)
        now = time.time()
        records = [self._store.get(*key) for key in keys]
        is_young = [r is None or now - self._min_age_s <= r.created_at <= now for r in records]  # the clock may go back
        return [key for key, young in zip(keys, is_young, strict=True) if not young]
