"""Idempotency keys: the first request wins, in every process, for as long as said."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis

from models.errors import Unavailable
from service.idempotency import (
    EXPIRE,
    SCHEMA,
    IdempotencyStore,
    RedisIdempotencyStore,
    Remembered,
    SqliteIdempotencyStore,
)
from service.stores.redis_client import connect

Open = Callable[[float], IdempotencyStore]
FIRST, OTHER = Remembered("f1", "t1", True), Remembered("f2", "t2", False)


@pytest.fixture(params=["embedded", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, redis_prefix: str) -> Open:
    """Opens the same store again and again, as processes do; takes how long keys are kept."""
    if request.param == "embedded":
        return lambda keep_s: SqliteIdempotencyStore(tmp_path / "keys.sqlite3", keep_s=keep_s)
    client: Redis = request.getfixturevalue("redis_client")
    return lambda keep_s: RedisIdempotencyStore(client, keep_s=keep_s, prefix=redis_prefix)


def test_the_first_entry_stays(open_store: Open) -> None:
    assert open_store(60).get("ann", "k") is None
    assert open_store(60).put("ann", "k", FIRST) == FIRST
    assert open_store(60).put("ann", "k", OTHER) == FIRST
    assert open_store(60).get("ann", "k") == FIRST


def test_keys_belong_to_their_tenant(open_store: Open) -> None:
    store = open_store(60)
    store.put("ann", "k", FIRST)
    assert store.get("bob", "k") is None
    assert store.put("bob", "k", OTHER) == OTHER
    assert store.get("an", "nk") is None


def test_a_forgotten_key_is_free(open_store: Open) -> None:
    store = open_store(60)
    store.put("ann", "k", FIRST)
    store.forget("ann", "k")
    store.forget("ann", "never there")
    assert store.get("ann", "k") is None
    assert store.put("ann", "k", OTHER) == OTHER


def test_a_key_is_kept_for_its_time(open_store: Open) -> None:
    store = open_store(0.001)
    store.put("ann", "k", FIRST)
    while store.get("ann", "k") is not None:
        pass
    assert store.put("ann", "k", OTHER) == OTHER


def test_of_many_at_once_one_wins(open_store: Open) -> None:
    entries = [Remembered(f"f{i}", f"t{i}", True) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda entry: open_store(60).put("ann", "k", entry), entries))
    assert set(held) == {open_store(60).get("ann", "k")}


def test_expired_keys_are_found_by_an_index_also_in_a_file_from_before_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.sqlite3"
    with closing(sqlite3.connect(file)) as db:
        db.execute(SCHEMA)
    SqliteIdempotencyStore(file, keep_s=60).put("ann", "k", FIRST)
    with closing(sqlite3.connect(file)) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {EXPIRE}", (0.0,)).fetchall()
    (step,) = (words for *_, words in plan)
    assert step.startswith("SEARCH")
    assert "keys_by_expiry" in step


def test_an_outage_is_said_to_be_one(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite3"
    broken.write_bytes(b"not a database, but long enough to be taken for one" * 40)
    with pytest.raises(Unavailable):
        SqliteIdempotencyStore(broken, keep_s=60)
    with pytest.raises(Unavailable):
        RedisIdempotencyStore(connect("redis://127.0.0.1:1", timeout_s=0.2), keep_s=60).get("ann", "k")
