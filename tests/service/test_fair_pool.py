"""Threads that tenants take in turns: in which order, how much may wait, and what becomes of those who give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from service.fair_pool import FairPool


class Held:
    """A pool whose first work holds its one thread until ``open`` is set; ``order`` tells what ran."""

    def __init__(self) -> None:
        self.pool = FairPool(1, "test")
        self.open, self.order = threading.Event(), list[str]()

    def ask(self, tenant: str, name: str) -> asyncio.Task[str]:
        return asyncio.ensure_future(self.pool.run(tenant, self._work(name)))

    def _work(self, name: str) -> Callable[[], str]:
        def work() -> str:
            assert self.open.wait(10)
            self.order.append(name)
            return name

        return work


@asynccontextmanager
async def held() -> AsyncIterator[Held]:
    made = Held()
    first = made.ask("first", "first")
    await asyncio.sleep(0)
    yield made
    made.open.set()
    await first
    assert made.pool.n_work == 0
    made.pool.shutdown()


def test_tenants_take_turns_and_each_its_own_in_order() -> None:
    async def scenario() -> None:
        async with held() as made:
            asked = [made.ask("greedy", f"greedy {i}") for i in range(4)]
            asked += [made.ask("modest", "modest 0"), made.ask("other", "other 0"), made.ask("modest", "modest 1")]
            await asyncio.sleep(0)
            assert made.pool.n_work == 8
            made.open.set()
            assert sorted(await asyncio.gather(*asked)) == sorted(made.order[1:])
        assert made.order[1:] == ["greedy 0", "modest 0", "other 0", "greedy 1", "modest 1", "greedy 2", "greedy 3"]

    asyncio.run(scenario())


def test_one_who_fills_it_keeps_out_himself_and_nobody_else() -> None:
    async def scenario() -> None:
        async with held() as made:
            asked = [made.ask("greedy", str(i)) for i in range(3)]
            await asyncio.sleep(0)
            assert not made.pool.has_room("greedy", 4)
            assert made.pool.has_room("modest", 4)
            made.open.set()
            await asyncio.gather(*asked)
            assert made.pool.has_room("greedy", 4)

    asyncio.run(scenario())


def test_who_gives_up_is_passed_over() -> None:
    async def scenario() -> None:
        async with held() as made:
            gone, stays = made.ask("a", "gone"), made.ask("a", "stays")
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert made.pool.n_work == 2
            made.open.set()
            assert await stays == "stays"
        assert made.order == ["first", "stays"]

    asyncio.run(scenario())


def test_who_gives_up_as_his_turn_comes_hands_it_on() -> None:
    async def scenario() -> None:
        pool = FairPool(1, "test")
        await pool._turn("a")
        late, after = (asyncio.ensure_future(pool.run(name, lambda: "done")) for name in "bc")
        await asyncio.sleep(0)
        pool._pass_on()  # to b, which is cancelled before it takes it
        late.cancel()
        assert await asyncio.wait_for(after, 10) == "done"
        with pytest.raises(asyncio.CancelledError):
            await late
        assert await asyncio.wait_for(pool.run("d", lambda: "free again"), 10) == "free again"
        pool.shutdown()

    asyncio.run(scenario())


def test_an_error_is_the_callers_and_frees_the_thread() -> None:
    async def scenario() -> None:
        pool = FairPool(1, "test")
        with pytest.raises(ZeroDivisionError):
            await pool.run("a", lambda: 1 // 0)
        assert await pool.run("a", lambda: 2) == 2
        pool.shutdown()

    asyncio.run(scenario())
