"""A damaged database is never served from: it is told, its whole tasks are kept, and the others are named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from models.errors import Unavailable
from service.recovery import PAGE_BYTES, Recovered, recover
from service.settings import InvalidSettings
from service.stores.in_use import use
from service.stores.sqlite import SqliteTaskStore
from service.stores.sqlite_schema import KEYS_FILE, TASKS_FILE, check
from tests.contract.places import record

N_TASKS = 80
IDS = [f"{i:032x}" for i in range(N_TASKS)]


def recipe(task_id: str) -> bytes:
    return Random(task_id).randbytes(700)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with tasks on many pages, closed, all of it in the file."""
    store = SqliteTaskStore(tmp_path / TASKS_FILE)
    for i, task_id in enumerate(IDS):
        assert store.create(record(task_id, created_at=float(i)), recipe(task_id))
        store.claim("ann", task_id, owner="x", lease_s=60)
        store.release("ann", task_id, owner="x", state="ready", generate_ms=1.0, bytes=10)
    store.close()
    return tmp_path / TASKS_FILE


def overwrite(path: Path, page: int, data: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES + offset)
        file.write(data)


def n_pages(path: Path) -> int:
    return path.stat().st_size // PAGE_BYTES


def state_of(path: Path) -> dict[str, bytes]:
    store = SqliteTaskStore(path)
    found = {r.id: store.recipe("ann", r.id) for r in store.list("ann", limit=N_TASKS)}
    store.close()
    assert None not in found.values()
    return {task_id: data for task_id, data in found.items() if data is not None}


def test_a_whole_store_is_left_alone(path: Path) -> None:
    before = path.read_bytes()
    check(path)
    assert recover(path.parent) == [Recovered(TASKS_FILE, "", 0, []), Recovered(KEYS_FILE, "", 0, [])]
    assert path.read_bytes() == before


def test_a_store_that_services_run_on_is_not_mended(path: Path) -> None:
    overwrite(path, 0, bytes(PAGE_BYTES))
    before = path.read_bytes()
    with use(path.parent), use(path.parent), pytest.raises(Unavailable, match="stop it first"):
        recover(path.parent)
    assert path.read_bytes() == before
    assert recover(path.parent)[0].n_kept == N_TASKS


def test_no_service_starts_on_a_store_that_is_being_mended(path: Path) -> None:
    with use(path.parent, alone=True), pytest.raises(Unavailable, match="start later"):
        use(path.parent)
    use(path.parent).close()


def test_each_page_in_turn_overwritten_is_noticed_and_costs_its_own_rows_at_most(path: Path) -> None:
    whole, n_kept = path.read_bytes(), []
    for page in range(n_pages(path)):
        path.write_bytes(whole)
        overwrite(path, page, Random(page).randbytes(PAGE_BYTES))
        with pytest.raises(Unavailable, match="classmith recover"):
            check(path)
        tasks, _ = recover(path.parent)
        kept = state_of(path)
        assert kept == {task_id: recipe(task_id) for task_id in kept}
        assert sorted([*kept, *tasks.lost]) == IDS  # every task is there, or named
        assert tasks.n_kept == len(kept)
        assert (path.parent / tasks.kept_as).is_file()
        check(path)
        n_kept.append(len(kept))
    assert n_kept[0] == N_TASKS  # the first page is the same in every store
    assert sorted(n_kept)[len(n_kept) // 2] >= 0.9 * N_TASKS


@pytest.mark.parametrize("table", ["tasks", "recipes"])
def test_a_row_changed_behind_sqlites_back_is_noticed(path: Path, table: str) -> None:
    change = {"tasks": "UPDATE tasks SET classes = '[]' WHERE id = ?",
              "recipes": "UPDATE recipes SET data = x'00' WHERE id = ?"}[table]  # fmt: skip
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(change, (IDS[3],))
    store = SqliteTaskStore(path)
    store.ping()
    read: dict[str, Callable[[], object]] = {
        "tasks": lambda: store.get("ann", IDS[3]),
        "recipes": lambda: store.recipe("ann", IDS[3]),
    }
    with pytest.raises(Unavailable, match=r"damaged.*digest"):
        read[table]()
    with pytest.raises(Unavailable, match="damaged"):  # from then on, the service is not ready
        store.ping()
    assert store.recipe("ann", IDS[4]) == recipe(IDS[4])  # what is whole is served on
    store.close()
    assert recover(path.parent)[0].lost == [IDS[3]]


@pytest.mark.parametrize("table", ["tasks", "recipes"])
def test_a_row_that_went_missing_is_not_taken_for_a_deleted_task(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"DELETE FROM {table} WHERE id = ?", (IDS[5],))  # no foreign keys here: the other row stays
    with pytest.raises(Unavailable, match="not both there"):
        check(path)
    store = SqliteTaskStore(path)
    with pytest.raises(Unavailable, match="not both there"):
        store.recipe("ann", IDS[5])
    assert store.get("ann", "0" * 31 + "x") is None
    assert store.delete("ann", IDS[6])
    assert store.get("ann", IDS[6]) is None
    store.close()


def test_names_that_are_no_text_are_noticed(path: Path) -> None:
    at = path.read_bytes().index(b"tasks_by_age")
    overwrite(path, 0, b"\x92\x93", offset=at + 2)
    with pytest.raises(Unavailable, match="damaged"):
        check(path)
    assert recover(path.parent)[0].lost == []
    assert sorted(state_of(path)) == IDS


def test_what_was_only_in_the_log_is_kept(tmp_path: Path) -> None:
    store = SqliteTaskStore(tmp_path / TASKS_FILE)
    for task_id in IDS[:3]:
        store.create(record(task_id), recipe(task_id))
    assert (tmp_path / f"{TASKS_FILE}-wal").stat().st_size > 0
    (tmp_path / "copy").mkdir()
    for one in tmp_path.glob(f"{TASKS_FILE}*"):  # as a kill leaves them
        (tmp_path / "copy" / one.name).write_bytes(one.read_bytes())
    store.close()
    copy = tmp_path / "copy" / TASKS_FILE
    with closing(sqlite3.connect(copy)) as db, db:
        db.execute("UPDATE recipes SET data = x'00' WHERE id = ?", (IDS[0],))
    assert recover(copy.parent)[0].lost == [IDS[0]]
    assert state_of(copy) == {task_id: recipe(task_id) for task_id in IDS[1:3]}


def test_a_damaged_file_of_idempotency_keys_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / KEYS_FILE).write_bytes(b"not a database" * 1_000)
    assert recover(tmp_path)[1].kept_as.startswith(f"{KEYS_FILE}.damaged-")
    assert not (tmp_path / KEYS_FILE).exists()


def test_a_folder_without_a_store_is_not_called_whole(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no store"):
        recover(tmp_path / "mistyped")


def test_a_store_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    path = tmp_path / TASKS_FILE
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("""
            CREATE TABLE tasks (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, state TEXT NOT NULL, classes TEXT NOT NULL,
                n_unlabeled INTEGER NOT NULL, meta_model TEXT NOT NULL, created_at REAL NOT NULL, generate_ms REAL,
                bytes INTEGER, error TEXT, owner TEXT, lease_until REAL);
            CREATE TABLE recipes (id TEXT PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE, data BLOB NOT NULL);
            PRAGMA user_version = 1""")
        db.execute("""INSERT INTO tasks VALUES ('a1', 'ann', 'generating', '[]', 3, 'm', 1.5, 2.5, 10, NULL, 'x',
            9e9)""")
        db.execute("INSERT INTO recipes VALUES ('a1', x'ff00')")
    check(path)
    store = SqliteTaskStore(path)
    kept = store.get("ann", "a1")
    assert kept is not None
    assert (kept.created_at, kept.generate_ms, kept.bytes) == (1.5, 2.5, 10)
    assert store.recipe("ann", "a1") == b"\xff\x00"
    assert list(store.unfinished(limit=5)) == [("ann", "a1")]  # leases of then were by another clock
    store.close()
    check(path)


def test_a_lease_from_before_the_machine_started_has_run_out(tmp_path: Path) -> None:
    store = SqliteTaskStore(tmp_path / TASKS_FILE)
    store.create(record("a1"), b"")
    store.claim("ann", "a1", owner="x", lease_s=60)
    with closing(sqlite3.connect(tmp_path / TASKS_FILE)) as db, db:
        db.execute("UPDATE tasks SET lease_since = lease_since + 1e9, lease_until = lease_until + 1e9")
    assert list(store.unfinished(limit=5)) == [("ann", "a1")]
    assert store.claim("ann", "a1", owner="y", lease_s=60)
    store.close()
