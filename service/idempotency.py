"""Idempotency keys: a retried request is answered like the first one, and a key is never reused for another request.

Keys belong to their tenant, are kept as digests, and are forgotten after a set time. What they point at is durable:
the task itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, cast

from redis import Redis

from models.errors import Unavailable
from models.task import digest_of
from service.stores.redis_client import PREFIX, redis_errors

BUSY_TIMEOUT_S = 10.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    digest TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, task_id TEXT NOT NULL, made INTEGER NOT NULL,
    expires_at REAL NOT NULL
) WITHOUT ROWID
"""
BY_EXPIRY = "CREATE INDEX IF NOT EXISTS keys_by_expiry ON keys (expires_at)"
EXPIRE = "DELETE FROM keys WHERE expires_at < ?"


@dataclass(frozen=True)
class Remembered:
    """The first request under a key: what it asked for, the task it led to, and whether that task was new."""

    fingerprint: str
    task_id: str
    made: bool


class IdempotencyStore(Protocol):
    """Blocking and thread-safe, like the other stores."""

    def get(self, tenant: str, key: str) -> Remembered | None:
        """The first request under this key, or None."""

    def put(self, tenant: str, key: str, entry: Remembered) -> Remembered:
        """Remember durably unless the key is taken; returns what holds now: this entry or the earlier one."""

    def forget(self, tenant: str, key: str) -> None:
        """Free a key whose task is gone."""


class SqliteIdempotencyStore:
    """In a SQLite file of its own; a connection a call, since calls are rare beside what they guard."""

    def __init__(self, path: Path, *, keep_s: float) -> None:
        self._path, self._keep_s = path, keep_s
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as db:
            db.execute(SCHEMA)
            db.execute(BY_EXPIRY)

    def get(self, tenant: str, key: str) -> Remembered | None:
        """The first request under this key, or None."""
        with self._connection() as db:
            return self._read(db, _digest(tenant, key))

    def put(self, tenant: str, key: str, entry: Remembered) -> Remembered:
        """Remember durably (fsync) unless the key is taken; returns what holds now."""
        digest, now = _digest(tenant, key), time.time()
        row = (digest, entry.fingerprint, entry.task_id, entry.made, now + self._keep_s)
        with self._connection() as db:
            db.execute(EXPIRE, (now,))
            db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?, ?)", row)
            return self._read(db, digest) or entry

    def forget(self, tenant: str, key: str) -> None:
        """Free a key."""
        with self._connection() as db:
            db.execute("DELETE FROM keys WHERE digest = ?", (_digest(tenant, key),))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = FULL")
                yield db
        except sqlite3.Error as error:
            remedy = "check that its disk has room and is writable"
            raise Unavailable(f"{self._path.name} does not answer ({error}); {remedy}.") from error

    def _read(self, db: sqlite3.Connection, digest: str) -> Remembered | None:
        query = "SELECT fingerprint, task_id, made FROM keys WHERE digest = ? AND expires_at >= ?"
        row = db.execute(query, (digest, time.time())).fetchone()
        return Remembered(row[0], row[1], bool(row[2])) if row else None


class RedisIdempotencyStore:
    """In Redis: ``{prefix}:idempotency:DIGEST`` -> JSON, with a TTL."""

    def __init__(self, client: Redis, *, keep_s: float, prefix: str = PREFIX) -> None:
        self._client, self._keep_ms, self._prefix = client, max(1, round(keep_s * 1000)), prefix

    def get(self, tenant: str, key: str) -> Remembered | None:
        """The first request under this key, or None."""
        with redis_errors():
            data = self._client.get(self._name(tenant, key))
        return Remembered(**json.loads(cast("bytes", data))) if data else None

    def put(self, tenant: str, key: str, entry: Remembered) -> Remembered:
        """Remember unless the key is taken, atomically; returns what holds now."""
        name, value = self._name(tenant, key), json.dumps(asdict(entry))
        with redis_errors():
            data = self._client.set(name, value, nx=True, get=True, px=self._keep_ms)
        return Remembered(**json.loads(cast("bytes", data))) if data else entry

    def forget(self, tenant: str, key: str) -> None:
        """Free a key."""
        with redis_errors():
            self._client.delete(self._name(tenant, key))

    def _name(self, tenant: str, key: str) -> str:
        return f"{self._prefix}:idempotency:{_digest(tenant, key)}"


def _digest(tenant: str, key: str) -> str:
    return digest_of((tenant, key))
