"""What is SQLite's own: durability settings, one connection a thread, and errors in our words."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from models.errors import Unavailable
from service.stores.sqlite import SqliteTaskStore
from tests.contract.places import record


def test_create_and_delete_are_synchronous_and_the_file_is_in_wal_mode(tmp_path: Path) -> None:
    store = SqliteTaskStore(tmp_path / "tasks.sqlite")
    statements: list[str] = []
    store._connection().set_trace_callback(statements.append)
    store.create(record("a1"), b"recipe")
    store.claim("ann", "a1", owner="x", lease_s=1)
    store.delete("ann", "a1")
    modes = [s.rsplit(" ", 1)[1] for s in statements if s.startswith("PRAGMA synchronous")]
    assert modes == ["FULL", "NORMAL", "FULL"]
    assert store._connection().execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_threads_have_their_own_connections_and_those_of_ended_threads_are_closed(tmp_path: Path) -> None:
    store = SqliteTaskStore(tmp_path / "tasks.sqlite")
    for _ in range(10):
        thread = threading.Thread(target=store.ping)
        thread.start()
        thread.join()
    assert len(store._connections) == 2  # this thread's, and the last one's, closed when the next comes
    store.close()


def test_deletion_takes_the_recipe_out_of_the_file(tmp_path: Path) -> None:
    store = SqliteTaskStore(tmp_path / "tasks.sqlite")
    store.create(record("a1"), b"recipe")
    store.delete("ann", "a1")
    assert store._connection().execute("SELECT count(*) FROM recipes").fetchone() == (0,)
    store.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "tasks.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unavailable, match=r"damaged.*classmith recover"):
        SqliteTaskStore(tmp_path / "tasks.sqlite")


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    SqliteTaskStore(tmp_path / "tasks.sqlite").close()
    db = sqlite3.connect(tmp_path / "tasks.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Unavailable, match="newer"):
        SqliteTaskStore(tmp_path / "tasks.sqlite")
