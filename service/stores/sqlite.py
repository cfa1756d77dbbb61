"""The embedded task store: one SQLite file, nothing to install or to run.

Several processes and threads of one machine may share it, each thread with its own connection. SQLite runs in WAL mode,
whose shared memory needs a local disk: not NFS.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from models.errors import Unavailable
from service.ports import ClassSummary, Position, State, TaskRecord
from service.stores.sqlite_schema import (
    BROKEN,
    FIXED,
    REMEDY,
    Damaged,
    is_damage,
    is_recipe,
    prepare,
    recipe_digest,
    task_digest,
)

BUSY_TIMEOUT_MS = 10_000
Parameters = list[str | float]
Rows = Sequence[tuple[Any, ...]]
COLUMNS = f"{FIXED}, state, generate_ms, bytes, error, digest"
STATES = frozenset(get_args(State))
HALF_THERE = "SELECT (SELECT COUNT(*) FROM tasks WHERE id = ?1) <> (SELECT COUNT(*) FROM recipes WHERE id = ?1)"
"""Tasks and recipes lie on different pages: what one damaged page hides, the other table still has."""


class SqliteTaskStore:
    """A TaskStore in one SQLite file. ``create`` and ``delete`` are on the disk before they return."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._damage = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            prepare(db, path.name)

    def create(self, record: TaskRecord, recipe: bytes) -> bool:
        """Store durably (fsync) unless the id is taken; True if it is new."""
        classes = json.dumps([asdict(c) for c in record.classes], ensure_ascii=False)
        notes = json.dumps(record.notes, ensure_ascii=False)
        fixed = (record.tenant, record.id, classes, record.n_unlabeled, record.meta_model, record.created_at, notes)
        row = (*fixed, record.state, record.generate_ms, record.bytes, record.error, task_digest(*fixed))
        insert = f"INSERT OR IGNORE INTO tasks ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
        with self._transaction(durable=True) as db:
            made = db.execute(insert, row).rowcount
            if made:
                written = (record.id, recipe, recipe_digest(record.id, recipe))
                db.execute("INSERT INTO recipes (id, data, digest) VALUES (?, ?, ?)", written)
        return bool(made)

    def get(self, tenant: str, task_id: str) -> TaskRecord | None:
        """The record, or None."""
        return next(iter(self._records("id = ? AND tenant = ?", task_id, tenant) or self._none(task_id)), None)

    def recipe(self, tenant: str, task_id: str) -> bytes | None:
        """The recipe's bytes, or None."""
        query = """SELECT id, data, recipes.digest FROM tasks JOIN recipes USING (id) WHERE id = ? AND tenant = ?"""
        rows = self._read(query, task_id, tenant) or self._none(task_id)
        with self._errors():
            if rows and not is_recipe(*rows[0]):
                raise Damaged("a recipe fails its digest")
        return cast("bytes", rows[0][1]) if rows else None

    def list(self, tenant: str, *, limit: int, after: Position | None = None) -> list[TaskRecord]:
        """One page, newest first, then by id."""
        where = "tenant = ?"
        parameters: Parameters = [tenant]
        if after is not None:
            where += " AND (created_at < ? OR (created_at = ? AND id > ?))"
            parameters += [after.created_at, after.created_at, after.id]
        return [*self._records(f"{where} ORDER BY created_at DESC, id LIMIT ?", *parameters, limit)]

    def count(self, tenant: str) -> int:
        """How many tasks a tenant has."""
        return int(self._read("SELECT COUNT(*) FROM tasks WHERE tenant = ?", tenant)[0][0])

    def delete(self, tenant: str, task_id: str) -> bool:
        """Remove record and recipe, durably."""
        with self._transaction(durable=True) as db:
            return bool(db.execute("DELETE FROM tasks WHERE id = ? AND tenant = ?", (task_id, tenant)).rowcount)

    def claim(self, tenant: str, task_id: str, *, owner: str, lease_s: float) -> bool:
        """Become the one generator of a task, unless another owner's lease runs.

        Leases run by the machine's monotonic clock, which no one sets. It starts again when the machine does: a lease
        that began in the future is one from before that.
        """
        change = """UPDATE tasks SET state = 'generating', error = NULL, owner = ?1, lease_since = ?5, lease_until = ?2
                    WHERE id = ?3 AND tenant = ?4
                    AND (owner IS NULL OR owner = ?1 OR lease_until <= ?5 OR lease_since > ?5)"""
        with self._transaction() as db:
            now = time.monotonic()  # not before: waiting for the transaction can take longer than another's lease
            return bool(db.execute(change, (owner, now + lease_s, task_id, tenant, now)).rowcount)

    def release(self, tenant: str, task_id: str, *, owner: str, state: State, generate_ms: float | None = None,
                bytes: int | None = None, error: str | None = None) -> bool:  # fmt: skip
        """End this owner's lease with a state."""
        change = """UPDATE tasks SET state = ?, generate_ms = ?, bytes = ?, error = ?, owner = NULL, lease_until = NULL
                    WHERE id = ? AND tenant = ? AND owner = ?"""
        with self._transaction() as db:
            values = (state, generate_ms, bytes, error, task_id, tenant, owner)
            return bool(db.execute(change, values).rowcount)

    def unfinished(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """(tenant, id) of what is queued, or was left behind by a crash; oldest first."""
        query = """SELECT tenant, id FROM tasks WHERE state IN ('queued', 'generating')
                   AND (state = 'queued' OR owner IS NULL OR lease_until <= ?1 OR lease_since > ?1)
                   ORDER BY created_at LIMIT ?2"""
        return [(tenant, task_id) for tenant, task_id in self._read(query, time.monotonic(), limit)]

    def ping(self) -> None:
        """Raise Unavailable where the file cannot be read, or was found damaged since it was opened."""
        self._read("SELECT id FROM tasks LIMIT 1")
        with self._errors():
            if self._damage:
                raise Damaged(self._damage)

    def close(self) -> None:
        """Close the connections of all threads; later calls raise Unavailable."""
        with self._lock:
            self._closed = True
            connections = [*self._connections.values()]
            self._connections.clear()
        for connection in connections:
            connection.close()

    def _records(self, where: str, *parameters: object) -> Sequence[TaskRecord]:
        rows = self._read(f"SELECT {COLUMNS} FROM tasks WHERE {where}", *parameters)
        with self._errors():
            return [_record(row) for row in rows]

    def _none(self, task_id: str) -> tuple[()]:
        """No rows, once it is sure that none were there: a damaged page must not pass for a deletion."""
        with self._errors():
            if self._connection().execute(HALF_THERE, (task_id,)).fetchone()[0]:
                raise Damaged("a task and its recipe are not both there")
        return ()

    def _read(self, query: str, *parameters: object) -> Rows:
        with self._errors():
            return self._connection().execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction. Leases need no fsync: losing one to a power cut only means generating once more."""
        with self._errors():
            db = self._connection()
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        """A connection for this thread; those of threads that ended are closed on the way."""
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA foreign_keys = ON")
            _set_wal(db)
            with self._lock:
                if self._closed:
                    raise Unavailable("The task store is closed: the service is stopping; try again in a moment.")
                for thread in [t for t in self._connections if not t.is_alive()]:
                    self._connections.pop(thread).close()
                self._connections[threading.current_thread()] = db
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            if is_damage(error):
                self._damage = str(error)
                raise Unavailable(f"The task store {self._path.name} is damaged ({error}); {REMEDY}.") from error
            remedy = "check that the disk has room, is writable and local, and that the file is a Classmith database"
            raise Unavailable(f"The task store {self._path.name} does not answer ({error}); {remedy}.") from error


def _record(row: tuple[Any, ...]) -> TaskRecord:
    """A row of COLUMNS and its digest; raises Damaged where it is not what was written."""
    *fixed, state, generate_ms, n_bytes, error, digest = row
    if digest != task_digest(*fixed) or state not in STATES:
        raise Damaged("a task fails its digest")
    tenant, task_id, classes, n_unlabeled, meta_model, created_at, notes = fixed
    summaries = tuple(ClassSummary(**c) for c in json.loads(classes))
    return TaskRecord(tenant, task_id, state, summaries, n_unlabeled, meta_model, created_at, generate_ms, n_bytes,
                      error, tuple(json.loads(notes)))  # fmt: skip


def _set_wal(db: sqlite3.Connection) -> None:
    """WAL mode, kept in the file; the first switch needs the file alone and does not honour the busy timeout."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
