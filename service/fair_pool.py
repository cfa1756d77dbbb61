"""Threads that tenants take in turns: who asks for much keeps nobody waiting who asks for little."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class FairPool:
    """A few threads, used from one event loop."""

    def __init__(self, n_threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(n_threads, name)
        self._n_free = n_threads
        self._n_of: Counter[str] = Counter()
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def n_work(self) -> int:
        """How much runs or waits."""
        return self._n_of.total()

    def has_room(self, tenant: str, max_work: int) -> bool:
        """Whether more of a tenant's work fits into ``max_work`` that run or wait, or into the tenant's share of it."""
        n_tenants = len(self._n_of) + (tenant not in self._n_of)
        return self.n_work < max_work or n_tenants * (self._n_of[tenant] + 1) <= max_work

    async def run(self, tenant: str, work: Callable[[], Result]) -> Result:
        """``work()`` in a thread, when it is the tenant's turn; who has room is for the caller to ask."""
        self._n_of[tenant] += 1
        try:
            await self._turn(tenant)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
            finally:
                self._pass_on()
        finally:
            self._n_of[tenant] -= 1
            if not self._n_of[tenant]:
                del self._n_of[tenant]

    def shutdown(self) -> None:
        """Let what runs end, and stop the threads."""
        self._pool.shutdown()

    async def _turn(self, tenant: str) -> None:
        """Return with a thread that is the caller's, to be passed on."""
        if self._n_free:
            self._n_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """A free thread to the tenant whose turn it is; those who gave up waiting are passed over."""
        while self._turns:
            tenant, turns = next(iter(self._turns.items()))
            turn = turns.popleft()
            self._turns.move_to_end(tenant)
            if not turns:
                del self._turns[tenant]
            if not turn.done():
                turn.set_result(None)
                return
        self._n_free += 1
