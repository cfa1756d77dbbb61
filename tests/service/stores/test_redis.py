"""What is Redis's own: TTLs and limits, hash slots, indices that mend themselves, outages and crashes of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.crc import key_slot

from models.errors import TooLarge, Unavailable
from service.ports import Position
from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import Keys, connect, durability_problems
from tests.contract.places import record
from tests.redis_server import RedisServer

TTL_S = 10_000.0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_recipes_have_no_ttl_and_bundles_one_that_use_renews(redis_client: Redis, redis_prefix: str) -> None:
    tasks, bundles = _stores(redis_client, redis_prefix)
    tasks.create(record("a1"), b"recipe")
    bundles.put("a1", b"weights")
    bundle_keys = [*redis_client.scan_iter(f"{redis_prefix}:{{a1}}:bundle*")]
    assert len(bundle_keys) == 2
    assert all(TTL_S / 2 < redis_client.ttl(key) <= TTL_S for key in bundle_keys)
    others = set(redis_client.scan_iter(f"{redis_prefix}:*")) - set(bundle_keys)
    assert {redis_client.ttl(key) for key in others} == {-1}
    for key in bundle_keys:
        redis_client.expire(key, round(TTL_S / 4))
    bundles.get("a1")
    assert all(TTL_S / 2 < redis_client.ttl(key) <= TTL_S for key in bundle_keys)


def test_a_bundle_with_a_chunk_gone_is_a_miss(redis_client: Redis, redis_prefix: str) -> None:
    _, bundles = _stores(redis_client, redis_prefix)
    bundles.put("a1", b"weights")
    redis_client.delete(*redis_client.scan_iter(f"{redis_prefix}:{{a1}}:bundle:*"))
    assert bundles.get("a1") is None


def test_overwriting_and_deleting_leave_no_chunks(redis_client: Redis, redis_prefix: str) -> None:
    _, bundles = _stores(redis_client, redis_prefix)
    bundles.put("a1", b"one")
    bundles.put("a1", b"two")
    assert len([*redis_client.scan_iter(f"{redis_prefix}:*")]) == 2
    bundles.delete("a1")
    assert [*redis_client.scan_iter(f"{redis_prefix}:*")] == []


def test_deleting_a_task_leaves_no_key(redis_client: Redis, redis_prefix: str) -> None:
    tasks, _ = _stores(redis_client, redis_prefix)
    tasks.create(record("a1"), b"recipe")
    tasks.claim("ann", "a1", owner="x", lease_s=60)
    tasks.delete("ann", "a1")
    assert [*redis_client.scan_iter(f"{redis_prefix}:*")] == []


def test_a_bundle_over_the_limit_is_refused(redis_client: Redis, redis_prefix: str) -> None:
    bundles = RedisBundleStore(redis_client, TTL_S, max_bundle_bytes=10, prefix=redis_prefix)
    bundles.put("a1", bytes(10))
    with pytest.raises(TooLarge, match="raise the limit"):
        bundles.put("a2", bytes(11))
    assert bundles.get("a2") is None


def test_keys_of_a_task_share_a_slot() -> None:
    keys = Keys("any")
    names = [keys.record("a1"), keys.recipe("a1"), keys.bundle("a1"), *keys.chunks("a1", "abc 2")]
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert key_slot(keys.record("a2").encode()) != key_slot(keys.record("a1").encode())


def test_a_task_whose_making_was_cut_off_is_listed_once_it_is_acknowledged(
    redis_client: Redis, redis_prefix: str
) -> None:
    tasks, _ = _stores(redis_client, redis_prefix)
    keys = Keys(redis_prefix)
    assert tasks.create(record("a1"), b"recipe")
    redis_client.delete(keys.index("ann"), keys.unfinished)  # as an older version's crash left it
    assert not tasks.create(record("a1", created_at=9.0), b"recipe")  # the client's next attempt
    assert [r.created_at for r in tasks.list("ann", limit=9)] == [1.0]
    assert list(tasks.unfinished(limit=9)) == [("ann", "a1")]


def test_a_lease_from_before_the_clock_was_set_back_has_run_out(redis_client: Redis, redis_prefix: str) -> None:
    tasks, _ = _stores(redis_client, redis_prefix)
    tasks.create(record("a1"), b"recipe")
    assert tasks.claim("ann", "a1", owner="dead", lease_s=60)
    name = Keys(redis_prefix).record("a1")
    for field in ("lease_since", "lease_until"):  # what the server's clock says now was an hour ago
        redis_client.hincrby(name, field, 3_600_000)
    assert list(tasks.unfinished(limit=9)) == [("ann", "a1")]
    assert tasks.claim("ann", "a1", owner="heir", lease_s=60)
    assert not tasks.claim("ann", "a1", owner="other", lease_s=60)


def test_a_list_skips_and_mends_entries_without_a_record(redis_client: Redis, redis_prefix: str) -> None:
    tasks, _ = _stores(redis_client, redis_prefix)
    for i in range(4):
        tasks.create(record(f"t{i}", created_at=float(i)), b"")
    redis_client.delete(Keys(redis_prefix).record("t2"))  # a delete that crashed half way
    assert [r.id for r in tasks.list("ann", limit=2)] == ["t3", "t1"]
    assert redis_client.zcard(Keys(redis_prefix).index("ann")) == 3
    assert [r.id for r in tasks.list("ann", limit=2, after=Position(2.0, "t2"))] == ["t1", "t0"]
    assert list(tasks.unfinished(limit=10)) == [("ann", "t0"), ("ann", "t1"), ("ann", "t3")]
    assert redis_client.zcard(Keys(redis_prefix).unfinished) == 3


def test_tasks_survive_a_crash_of_redis(own_server: RedisServer) -> None:
    client = connect(own_server.url)
    tasks, bundles = _stores(client, "p")
    tasks.create(record("a1"), b"recipe")
    bundles.put("a1", b"weights")
    own_server.kill()
    own_server.start()
    assert tasks.get("ann", "a1") == record("a1")
    assert tasks.recipe("ann", "a1") == b"recipe"
    assert bundles.get("a1") == b"weights"
    client.close()


def test_a_record_of_the_first_version_has_no_notes(redis_client: Redis, redis_prefix: str) -> None:
    tasks, _ = _stores(redis_client, redis_prefix)
    tasks.create(record("a1"), b"recipe")
    key = Keys(redis_prefix).record("a1")
    fixed = json.loads(str(redis_client.hget(key, "fixed"), "utf-8"))
    del fixed["notes"]
    redis_client.hset(key, "fixed", json.dumps(fixed))
    assert tasks.get("ann", "a1") == record("a1")


def test_an_outage_is_unavailable_with_a_remedy(own_server: RedisServer) -> None:
    client = connect(own_server.url)
    tasks, bundles = _stores(client, "p")
    own_server.stop()
    calls = [
        tasks.ping,
        lambda: tasks.create(record("a1"), b""),
        lambda: tasks.get("ann", "a1"),
        lambda: tasks.recipe("ann", "a1"),
        lambda: tasks.list("ann", limit=1),
        lambda: tasks.delete("ann", "a1"),
        lambda: tasks.claim("ann", "a1", owner="x", lease_s=1),
        lambda: tasks.release("ann", "a1", owner="x", state="ready"),
        lambda: tasks.unfinished(limit=1),
        lambda: bundles.put("a1", b""),
        lambda: bundles.get("a1"),
        lambda: bundles.delete("a1"),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="check that it runs"):
            call()
    client.close()


def test_a_full_redis_is_unavailable_and_keeps_what_it_has(own_server: RedisServer) -> None:
    client = connect(own_server.url)
    tasks, bundles = _stores(client, "p")
    tasks.create(record("a1"), b"recipe")
    client.config_set("maxmemory", 1)
    with pytest.raises(Unavailable, match="memory"):
        bundles.put("a1", bytes(1000))
    assert tasks.recipe("ann", "a1") == b"recipe"
    client.close()


def test_a_configuration_that_could_lose_tasks_is_named(own_server: RedisServer) -> None:
    client = connect(own_server.url)
    client.config_set("maxmemory", 10**9)  # and noeviction, the default: bundles would fill it
    assert [p.split(" ")[-1] for p in durability_problems(client)] == ["volatile-lfu.", "always."]
    client.config_set("appendfsync", "always")
    client.config_set("maxmemory-policy", "volatile-lfu")
    assert durability_problems(client) == []
    client.config_set("appendonly", "no")
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert [p.split(" ")[-1] for p in durability_problems(client)] == ["yes.", "volatile-lfu."]
    client.close()


def _stores(client: Redis, prefix: str) -> tuple[RedisTaskStore, RedisBundleStore]:
    return RedisTaskStore(client, prefix), RedisBundleStore(client, TTL_S, prefix=prefix)
