import asyncio
import dataclasses
import gc
import threading
import weakref

import numpy as np
import pytest

from models.errors import Busy, NotFound, Unavailable
from service.observability.telemetry import Metrics
from service.prediction import session_cache
from service.prediction.session_cache import HOT_LEASES, HOT_S, SessionCache
from service.prediction.sessions import OwnNetwork, SharedNetworks, build_session
from tests.service import tiny


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory):
    return tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")


class Clock:
    """Time that moves when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Store:
    """What the cache loads from and checks against: real sessions, counted, and blocked or failing on demand."""

    def __init__(self, meta_model):
        self.meta_model, self.bundle = meta_model, tiny.bundle(meta_model)
        self.loads, self.checks, self.deleted = [], [], set()
        self.gate, self.error, self.check_error = threading.Event(), None, None
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def load(self, tenant, task_id):
        self.loads.append((tenant, task_id))
        self.entered.release()
        assert self.gate.wait(120)
        if self.error:
            raise self.error
        if task_id in self.deleted:
            raise NotFound("There is no such task.")
        return build_session(self.meta_model, self.bundle, tenant, task_id)

    def validate(self, tenant, task_id):
        self.checks.append((tenant, task_id))
        if self.check_error:
            raise self.check_error
        return task_id not in self.deleted


@pytest.fixture
def store(meta_model):
    return Store(meta_model)


@pytest.fixture
def clock():
    return Clock()


def size_of_one(store):
    return build_session(store.meta_model, store.bundle, "t", "x").n_bytes


def run(store, clock, scenario, *, max_sessions=100, **options):
    """Run ``scenario(cache)`` on a cache with room for so many sessions."""
    metrics = Metrics()

    async def main():
        options.setdefault("min_residency_s", 0.0)
        max_bytes = int(size_of_one(store) * max_sessions)
        cache = SessionCache(store.load, store.validate, max_bytes=max_bytes, metrics=metrics, clock=clock, **options)
        try:
            return await asyncio.wait_for(scenario(cache), 120)
        finally:
            store.gate.set()
            await cache.close()

    return asyncio.run(main()), metrics


async def touch(cache, *task_ids):
    for task_id in task_ids:
        async with cache.lease("t", task_id):
            pass


def value(metrics, name):
    return metrics.registry.get_sample_value(f"classmith_{name}", {"tier": "session"})


async def wait_until(condition):
    """Give the loop turns until a condition of its own state holds."""
    while not condition():
        await asyncio.sleep(0.001)


def test_fifty_leases_of_a_cold_task_build_once(store, clock):
    async def scenario(cache):
        async def use():
            async with cache.lease("t", "a") as session:
                return session

        return await asyncio.gather(*(use() for _ in range(50)))

    got, metrics = run(store, clock, scenario)
    assert store.loads == [("t", "a")]
    assert len(set(map(id, got))) == 1
    assert value(metrics, "cache_misses_total") == 1


def test_a_hit_neither_suspends_nor_leaves_the_thread(store, clock):
    async def scenario(cache):
        await touch(cache, "a")
        lease = cache.lease("t", "a")
        with pytest.raises(StopIteration) as entered:  # a coroutine that ends on its first step never suspended
            lease.__aenter__().send(None)
        with pytest.raises(StopIteration):
            lease.__aexit__(None, None, None).send(None)
        return entered.value.value

    session, metrics = run(store, clock, scenario)
    assert session.task_id == "a"
    assert store.checks == []
    assert value(metrics, "cache_hits_total") == 1


def test_tenants_do_not_share_entries(store, clock):
    async def scenario(cache):
        async with cache.lease("one", "a") as first, cache.lease("two", "a") as second:
            return first.tenant, second.tenant

    assert run(store, clock, scenario)[0] == ("one", "two")


def test_a_failing_build_is_passed_to_all_who_wait_and_not_kept(store, clock):
    store.error = RuntimeError("the store is on fire")

    async def scenario(cache):
        failures = await asyncio.gather(*(touch(cache, "a") for _ in range(5)), return_exceptions=True)
        assert [type(f) for f in failures] == [RuntimeError] * 5
        assert len(store.loads) == 1
        assert len(cache) == 0
        store.error = None
        await touch(cache, "a")
        assert len(store.loads) == 2

    run(store, clock, scenario)


def test_the_least_recently_used_goes_first(store, clock):
    async def scenario(cache):
        await touch(cache, "a", "b", "c", "a", "d")  # room for three: b is the oldest in use
        store.loads.clear()
        await touch(cache, "c", "a", "d")
        assert store.loads == []
        await touch(cache, "b")
        assert store.loads == [("t", "b")]
        return cache.n_bytes

    n_bytes, metrics = run(store, clock, scenario, max_sessions=3.5)
    assert n_bytes == 3 * size_of_one(store)
    assert value(metrics, "cache_evictions_total") == 2


def test_a_leased_session_is_not_evicted_and_goes_when_it_is_released(store, clock):
    async def scenario(cache):
        async with cache.lease("t", "a") as session:
            await touch(cache, *"bcdefgh")
            assert session.run(tiny.pixels(2)).shape == (2, 20)
            async with cache.lease("t", "a") as again:
                assert again is session
            assert store.loads.count(("t", "a")) == 1
        await touch(cache, *"xyz")
        await touch(cache, "a")
        assert store.loads.count(("t", "a")) == 2

    run(store, clock, scenario, max_sessions=2.5)


def test_releasing_leases_brings_the_cache_back_to_its_size(store, clock):
    async def scenario(cache):
        leases = [cache.lease("t", task) for task in "abcdef"]
        for lease in leases:
            await lease.__aenter__()
        assert len(cache) == 6
        for lease in leases:
            await lease.__aexit__(None, None, None)
        return len(cache)

    assert run(store, clock, scenario, max_sessions=2.5)[0] == 2


def test_a_new_session_stays_for_its_residency_within_bounds(store, clock):
    async def scenario(cache):
        await touch(cache, *"abcd", "e")
        assert len(cache) == 5  # one over, all young
        await touch(cache, "f", "g")
        assert len(cache) == 5  # memory is bounded all the same
        clock.now += 6
        await touch(cache, "g")
        return len(cache)

    assert run(store, clock, scenario, max_sessions=4.2, min_residency_s=5.0, revalidate_s=100)[0] == 4


def test_drop_while_leased_keeps_the_session_alive_and_frees_it_after(store, clock):
    async def scenario(cache):
        lease = cache.lease("t", "a")
        session = await lease.__aenter__()
        cache.drop("t", "a")
        assert len(cache) == cache.n_bytes == 0
        assert session.run(tiny.pixels(1)).shape == (1, 20)
        ghost = weakref.ref(session)
        await lease.__aexit__(None, None, None)
        del session, lease
        # The loop's own handle of this step holds the session, and the thread that built it may not have let go yet.
        await wait_until(lambda: gc.collect() >= 0 and ghost() is None)

    run(store, clock, scenario)


def test_drop_during_a_build_does_not_keep_what_is_built(store, clock):
    store.gate.clear()

    async def scenario(cache):
        waiter = asyncio.create_task(touch(cache, "a"))
        await asyncio.to_thread(store.entered.acquire)
        cache.drop("t", "a")
        store.gate.set()
        await waiter
        assert len(cache) == 0

    run(store, clock, scenario)


def test_one_who_gives_up_does_not_take_the_build_from_the_others(store, clock):
    store.gate.clear()

    async def scenario(cache):
        quitter, stayer = (asyncio.create_task(touch(cache, "a")) for _ in range(2))
        await asyncio.to_thread(store.entered.acquire)
        quitter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await quitter
        store.gate.set()
        await stayer
        assert store.loads == [("t", "a")]
        assert len(cache) == 1

    run(store, clock, scenario)


def test_a_task_deleted_elsewhere_is_gone_within_the_revalidation_time(store, clock):
    async def scenario(cache):
        await touch(cache, "a")
        store.deleted.add("a")
        clock.now += 90
        await touch(cache, "a")  # trusted still, and not yet due for a check
        assert store.checks == []
        clock.now += 120
        with pytest.raises(NotFound):
            await touch(cache, "a")
        assert len(cache) == 0

    run(store, clock, scenario, revalidate_s=200.0)  # which is also how long the check may take


def test_a_hot_task_is_checked_in_the_background(store, clock):
    async def scenario(cache):
        await touch(cache, "a")
        for _ in range(4):
            clock.now += 1.1
            lease = cache.lease("t", "a")
            with pytest.raises(StopIteration):
                lease.__aenter__().send(None)
            await wait_until(lambda: cache._entries["t", "a"].check is None)
            await lease.__aexit__(None, None, None)
        assert store.checks == [("t", "a")] * 4
        assert store.loads == [("t", "a")]

    run(store, clock, scenario)


def test_a_silent_store_does_not_stop_what_is_in_memory(store, clock):
    store.check_error = Unavailable("no answer")

    async def scenario(cache):
        await touch(cache, "a")
        clock.now += 10
        await asyncio.gather(*(touch(cache, "a") for _ in range(5)))
        assert store.checks == [("t", "a")]
        assert store.loads == [("t", "a")]

    run(store, clock, scenario)


def test_too_many_builds_are_refused_with_a_time_to_come_back(store, clock, monkeypatch):
    monkeypatch.setattr(session_cache, "N_WAITING_BUILDS", 3)
    store.gate.clear()

    async def scenario(cache):
        waiting = [asyncio.create_task(touch(cache, task)) for task in "abc"]
        await asyncio.to_thread(store.entered.acquire)
        with pytest.raises(Busy) as refused:
            await touch(cache, "d")
        assert 0 < refused.value.retry_after_s < 5
        store.gate.set()
        await asyncio.gather(*waiting)
        await touch(cache, "d")

    run(store, clock, scenario)


def test_close_ends_running_builds_and_refuses_new_leases(store, clock):
    store.gate.clear()

    async def scenario(cache):
        waiter = asyncio.create_task(touch(cache, "a"))
        await asyncio.to_thread(store.entered.acquire)
        closing = asyncio.create_task(cache.close())
        store.gate.set()
        await asyncio.gather(waiter, closing)
        assert cache.n_bytes == len(cache) == 0
        with pytest.raises(Unavailable):
            await touch(cache, "a")

    run(store, clock, scenario)


class SharedStore(Store):
    """Its tasks run on one shared network until they are hot."""

    def __init__(self, meta_model):
        super().__init__(meta_model)
        self.networks, self.promotions = SharedNetworks(), 0

    def load(self, tenant, task_id):
        super().load(tenant, task_id)
        session = self.networks.session(self.meta_model, self.bundle, tenant, task_id)
        return dataclasses.replace(session, promote=lambda: self.promote(session))

    def promote(self, session):
        self.promotions += 1
        return session.promote()


@pytest.fixture
def shared(meta_model):
    return SharedStore(meta_model)


def test_a_hot_task_is_promoted_and_answers_alike(shared, clock):
    async def scenario(cache):
        async with cache.lease("t", "a") as before:
            for _ in range(HOT_LEASES - 2):
                await touch(cache, "a")
            await touch(cache, *"bcd")
            assert cache._promotion is None
            await touch(cache, "a")
            await cache._promotion
        async with cache.lease("t", "a") as after, cache.lease("t", "b") as other:
            assert isinstance(after.network, OwnNetwork)
            assert after.promote is None
            assert other.network is before.network
            assert cache.n_bytes == after.n_bytes + 3 * before.n_bytes
        pixels = tiny.pixels(5)
        expected = before.run(pixels)
        np.testing.assert_allclose(after.run(pixels), expected, atol=1e-5 * abs(expected).max())

    run(shared, clock, scenario)
    assert shared.promotions == 1


def test_many_tasks_that_are_used_now_and_then_are_not_hot(shared, clock):
    async def scenario(cache):
        for _ in range(HOT_LEASES + 1):
            await touch(cache, "a")
            clock.now += 1.01 * HOT_S / HOT_LEASES
        await asyncio.sleep(0)
        assert cache._promotion is None

    run(shared, clock, scenario, revalidate_s=1e9)
    assert shared.promotions == 0


def test_a_promotion_that_fails_changes_nothing(shared, clock, monkeypatch, caplog):
    def fail(session):
        raise MemoryError

    monkeypatch.setattr(shared, "promote", fail)

    async def scenario(cache):
        for _ in range(HOT_LEASES):
            await touch(cache, "a")
        await cache._promotion
        async with cache.lease("t", "a") as session:
            assert session.run(tiny.pixels(1)).shape == (1, 20)

    run(shared, clock, scenario)
    assert "could not be promoted" in caplog.text


def test_a_task_deleted_while_it_is_promoted_does_not_come_back(shared, clock):
    began, go_on = threading.Event(), threading.Event()

    def slowly(session):
        began.set()
        assert go_on.wait(60)
        return session.promote()

    shared.promote = slowly

    async def scenario(cache):
        for _ in range(HOT_LEASES):
            await touch(cache, "a")
        promotion = cache._promotion
        await asyncio.to_thread(began.wait)
        cache.drop("t", "a")
        go_on.set()
        await promotion
        assert len(cache) == cache.n_bytes == 0

    run(shared, clock, scenario)
