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
from typing import Any, cast

from models.errors import InvalidRequest, Unavailable
from service.ports import ClassSummary, State, TaskRecord

BUSY_TIMEOUT_MS = 10_000
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, state TEXT NOT NULL, classes TEXT NOT NULL, n_unlabeled INTEGER NOT NULL,
    meta_model TEXT NOT NULL, created_at REAL NOT NULL, generate_ms REAL, bytes INTEGER, error TEXT,
    owner TEXT, lease_until REAL
);
CREATE TABLE IF NOT EXISTS recipes (
    id TEXT PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS tasks_by_age ON tasks (tenant, created_at DESC, id);
CREATE INDEX IF NOT EXISTS tasks_unfinished ON tasks (created_at) WHERE state IN ('queued', 'generating');
"""
Parameters = list[str | float]
Rows = Sequence[tuple[Any, ...]]
COLUMNS = "tenant, id, state, classes, n_unlabeled, meta_model, created_at, generate_ms, bytes, error"


class SqliteTaskStore:
    """A TaskStore in one SQLite file. ``create`` and ``delete`` are on the disk before they return."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as db:
            self._prepare(db)

    def create(self, record: TaskRecord, recipe: bytes) -> bool:
        """Store durably (fsync) unless the id is taken; True if it is new."""
        classes = json.dumps([asdict(c) for c in record.classes], ensure_ascii=False)
        row = (record.tenant, record.id, record.state, classes, record.n_unlabeled, record.meta_model,
               record.created_at, record.generate_ms, record.bytes, record.error)  # fmt: skip
        with self._transaction(durable=True) as db:
            made = db.execute(f"INSERT OR IGNORE INTO tasks ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", row).rowcount
            if made:
                db.execute("INSERT INTO recipes (id, data) VALUES (?, ?)", (record.id, recipe))
        return bool(made)

    def get(self, tenant: str, task_id: str) -> TaskRecord | None:
        """The record, or None."""
        rows = self._read(f"SELECT {COLUMNS} FROM tasks WHERE id = ? AND tenant = ?", task_id, tenant)
        return _record(rows[0]) if rows else None

    def recipe(self, tenant: str, task_id: str) -> bytes | None:
        """The recipe's bytes, or None."""
        query = "SELECT data FROM tasks JOIN recipes USING (id) WHERE id = ? AND tenant = ?"
        rows = self._read(query, task_id, tenant)
        return cast("bytes", rows[0][0]) if rows else None

    def list(self, tenant: str, *, limit: int, after: str | None = None) -> list[TaskRecord]:
        """One page, newest first, then by id."""
        where = "tenant = ?"
        parameters: Parameters = [tenant]
        if after is not None:
            last = self.get(tenant, after)
            if last is None:
                message = f"There is no task {after!r} to list after; start at the first page."
                raise InvalidRequest(message, where="after")
            where += " AND (created_at < ? OR (created_at = ? AND id > ?))"
            parameters += [last.created_at, last.created_at, last.id]
        query = f"SELECT {COLUMNS} FROM tasks WHERE {where} ORDER BY created_at DESC, id LIMIT ?"
        return [_record(row) for row in self._read(query, *parameters, limit)]

    def delete(self, tenant: str, task_id: str) -> bool:
        """Remove record and recipe, durably."""
        with self._transaction(durable=True) as db:
            return bool(db.execute("DELETE FROM tasks WHERE id = ? AND tenant = ?", (task_id, tenant)).rowcount)

    def claim(self, tenant: str, task_id: str, *, owner: str, lease_s: float) -> bool:
        """Become the one generator of a task, unless another owner's lease runs."""
        now = time.time()
        change = """UPDATE tasks SET state = 'generating', error = NULL, owner = ?1, lease_until = ?2
                    WHERE id = ?3 AND tenant = ?4 AND (owner IS NULL OR owner = ?1 OR lease_until <= ?5)"""
        with self._transaction() as db:
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
                   AND (state = 'queued' OR lease_until <= ?) ORDER BY created_at LIMIT ?"""
        return [(tenant, task_id) for tenant, task_id in self._read(query, time.time(), limit)]

    def ping(self) -> None:
        """Raise Unavailable where the file cannot be read."""
        self._read("SELECT id FROM tasks LIMIT 1")

    def close(self) -> None:
        """Close the connections of all threads; later calls raise Unavailable."""
        with self._lock:
            self._closed = True
            connections = [*self._connections.values()]
            self._connections.clear()
        for connection in connections:
            connection.close()

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

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            message = f"{self._path.name} was written by a newer Classmith (schema {version}); run that version."
            raise Unavailable(message)
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "check that the disk has room, is writable and local, and that the file is a Classmith database"
            raise Unavailable(f"The task store {self._path.name} does not answer ({error}); {remedy}.") from error


def _record(row: tuple[Any, ...]) -> TaskRecord:
    tenant, task_id, state, classes, *rest = row
    summaries = tuple(ClassSummary(**c) for c in json.loads(classes))
    return TaskRecord(tenant, task_id, state, summaries, *rest)


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
