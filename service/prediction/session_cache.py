"""Tasks that are ready to run: an LRU cache of their sessions by bytes, with leases.

A hit answers from memory: no await that suspends, no thread, no store. A miss is built once for all who wait, in a
small pool of its own, so that slow builds never hold up predictions of tasks that are there. A leased session is never
evicted, and a new one stays for a while, so that many cold tasks don't evict each other before they answer. A task that
turns hot gets a network of its own, made in the background, where that is faster.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.errors import Busy, Unavailable
from service.backpressure import jittered
from service.observability.telemetry import Metrics
from service.prediction.sessions import Session

log = logging.getLogger(__name__)

TIER = "session"
N_BUILDERS, N_CHECKERS, N_WAITING_BUILDS = 4, 2, 256
OVERSHOOT = 1.25
"""Past this multiple of ``max_bytes`` the minimum residency protects no longer."""
HOT_LEASES, HOT_S = 500, 10.0
"""A task leased so often within so long is hot. A network of its own repays being made after about 500 images."""

Key = tuple[str, str]  # tenant, task id


@dataclass(eq=False)
class _Entry:
    session: Session
    built_at: float
    checked_at: float
    check: asyncio.Task[None] | None = None
    check_began_at: float = 0.0
    n_leases: int = 0
    n_counted: int = 0
    counted_from: float = 0.0


class Lease:
    """``async with`` gives the session, which stays in the cache until the end of the block.

    Or ``begin_at_once`` and, where it gave a session, ``end``.
    """

    def __init__(self, cache: SessionCache, key: Key) -> None:
        self._cache, self._key = cache, key
        self._entry: _Entry | None = None

    async def __aenter__(self) -> Session:
        return self._begin(self._cache._hit(self._key) or await self._cache._find(self._key))

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def begin_at_once(self) -> Session | None:
        """The session, if it is in memory and may be trusted without waiting; else None, and nothing is leased."""
        entry = self._cache._hit(self._key)
        return self._begin(entry) if entry else None

    def end(self) -> None:
        """The session may be evicted again."""
        if self._entry is not None:
            self._entry.n_leases -= 1
            self._cache._evict()

    def _begin(self, entry: _Entry) -> Session:
        entry.n_leases += 1
        self._entry = entry
        self._cache._count(self._key, entry)
        return entry.session


class SessionCache:
    """Sessions by (tenant, task id); used from one event loop, which alone changes its state.

    ``load`` makes a session, blocking, in a thread (it may raise NotFound); a failure is passed to all who wait and
    not kept. ``validate`` says, blocking, whether the task still exists: an entry is trusted for ``revalidate_s``, and
    checked in the background from half of that, so that a hot task never waits. Where the store does not answer, what
    is in memory goes on answering.
    """

    def __init__(
        self,
        load: Callable[[str, str], Session],
        validate: Callable[[str, str], bool],
        *,
        max_bytes: int,
        min_residency_s: float,
        revalidate_s: float = 2.0,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._validate, self._clock, self._revalidate_s = load, validate, clock, revalidate_s
        self._max_bytes, self._min_residency_s = max_bytes, min_residency_s
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._builds: dict[Key, asyncio.Task[_Entry]] = {}
        self._promotion: asyncio.Task[None] | None = None
        self._builders = ThreadPoolExecutor(N_BUILDERS, "classmith-build")
        self._checkers = ThreadPoolExecutor(N_CHECKERS, "classmith-check")
        self._n_bytes, self._mean_build_s, self._closed = 0, 0.01, False
        metrics = metrics or Metrics()
        self._hits, self._misses = metrics.cache_hits.labels(TIER), metrics.cache_misses.labels(TIER)
        self._evictions = metrics.cache_evictions.labels(TIER)
        metrics.cache_bytes.labels(TIER).set_function(lambda: self._n_bytes)
        self._build_seconds, self._shed = metrics.session_create_seconds, metrics.shed.labels("cold_queue_full")

    @property
    def n_bytes(self) -> int:
        """The size of all entries."""
        return self._n_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def lease(self, tenant: str, task_id: str) -> Lease:
        """Lease a task's session; entering raises what ``load`` raises, Busy (too many builds wait), or Unavailable."""
        return Lease(self, (tenant, task_id))

    def drop(self, tenant: str, task_id: str) -> None:
        """Forget a task (deleted, or made anew); leases that run keep their session until they end."""
        self._builds.pop((tenant, task_id), None)  # who waits for it still gets it; it is not kept
        self._remove((tenant, task_id))

    async def close(self) -> None:
        """Refuse further leases, let running builds and checks end, and let go of every session."""
        self._closed = True
        running = [entry.check for entry in self._entries.values() if entry.check]
        running += [self._promotion] if self._promotion else []
        await asyncio.gather(*self._builds.values(), *running, return_exceptions=True)
        self._builders.shutdown()
        self._checkers.shutdown()
        for key in list(self._entries):
            self._remove(key)

    def _hit(self, key: Key) -> _Entry | None:
        """The entry, if it is there and may be trusted without waiting; starts its check when that is due."""
        entry = self._entries.get(key)
        if entry is None or self._closed:
            return None
        age_s = self._clock() - entry.checked_at
        if age_s > self._revalidate_s / 2 and entry.check is None:
            entry.check_began_at = self._clock()
            entry.check = asyncio.create_task(self._check(key, entry))
        if age_s > self._revalidate_s:
            return None
        self._entries.move_to_end(key)
        self._hits.inc()
        return entry

    async def _find(self, key: Key) -> _Entry:
        """The entry once its check has ended, or else built."""
        if self._closed:
            raise Unavailable("The service is shutting down; send the request again.")
        entry = self._entries.get(key)
        if entry is not None and entry.check is not None:
            patience_s = entry.check_began_at + self._revalidate_s - self._clock()
            await asyncio.wait({entry.check}, timeout=max(0.0, patience_s))
        if entry is not None and self._entries.get(key) is entry:
            self._hits.inc()
            return entry
        return await self._built(key)

    async def _check(self, key: Key, entry: _Entry) -> None:
        try:
            valid = await asyncio.get_running_loop().run_in_executor(self._checkers, self._validate, *key)
            entry.checked_at = entry.check_began_at
        except Exception as error:
            log.warning("a task in memory could not be checked", extra={"error_type": type(error).__name__})
            valid, entry.checked_at = True, self._clock()
        entry.check = None
        if not valid and self._entries.get(key) is entry:
            self._remove(key)

    async def _built(self, key: Key) -> _Entry:
        """The entry of the one build under way for this key, begun here if there is none."""
        build = self._builds.get(key)
        if build is None:
            self._misses.inc()
            if len(self._builds) >= N_WAITING_BUILDS:
                self._shed.inc()
                wait_s = len(self._builds) / N_BUILDERS * self._mean_build_s
                raise Busy("Too many tasks are being loaded; try again shortly.", retry_after_s=jittered(wait_s))
            build = self._builds[key] = asyncio.create_task(self._build(key))
        return await asyncio.shield(build)  # one who gives up does not take the network from the others

    async def _build(self, key: Key) -> _Entry:
        began_at = self._clock()
        try:
            load = contextvars.copy_context().run  # part of the request that began it, in logs and traces
            session = await asyncio.get_running_loop().run_in_executor(self._builders, load, self._load, *key)
            entry = _Entry(session, built_at=self._clock(), checked_at=began_at, counted_from=began_at)
            self._build_seconds.observe(entry.built_at - began_at)
            self._mean_build_s += 0.1 * (entry.built_at - began_at - self._mean_build_s)
            if self._builds.get(key) is asyncio.current_task():  # not dropped meanwhile
                self._entries[key] = entry
                self._n_bytes += session.n_bytes
                self._evict()
            return entry
        finally:
            if self._builds.get(key) is asyncio.current_task():
                del self._builds[key]

    def _count(self, key: Key, entry: _Entry) -> None:
        """Count a lease; a task that turns out hot is promoted, one at a time."""
        entry.n_counted += 1
        if entry.session.promote is None or entry.n_counted < HOT_LEASES:
            return
        is_hot = self._clock() - entry.counted_from <= HOT_S
        entry.n_counted, entry.counted_from = 0, self._clock()
        if is_hot and self._promotion is None and not self._closed:
            self._promotion = asyncio.create_task(self._promote(key, entry, entry.session.promote))

    async def _promote(self, key: Key, entry: _Entry, make: Callable[[], Session]) -> None:
        """Put a faster session in the place of the entry's; leases that run keep theirs until they end."""
        try:
            session = await asyncio.get_running_loop().run_in_executor(self._builders, make)
            if self._entries.get(key) is entry:
                self._n_bytes += session.n_bytes - entry.session.n_bytes
                entry.session = session
                self._evict()
        except Exception as error:  # it goes on answering as it did
            log.warning("a hot task could not be promoted", extra={"error_type": type(error).__name__})
        finally:
            self._promotion = None

    def _remove(self, key: Key) -> None:
        if entry := self._entries.pop(key, None):
            self._n_bytes -= entry.session.n_bytes

    def _evict(self) -> None:
        """Least recently used first, until the rest fits: none leased, not the newest, nor (in bounds) a young one."""
        if self._n_bytes <= self._max_bytes:
            return
        for key, entry in list(self._entries.items())[:-1]:
            if self._n_bytes <= self._max_bytes:
                return
            is_young = self._clock() < entry.built_at + self._min_residency_s
            if entry.n_leases == 0 and not (is_young and self._n_bytes <= OVERSHOOT * self._max_bytes):
                self._remove(key)
                self._evictions.inc()
