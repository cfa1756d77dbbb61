"""The tables of the embedded task store, their upgrades, and the digests that tell damage from data.

SQLite notices a page that makes no sense, not one that makes another sense. So each row carries a digest of what in it
never changes: a damaged disk can take a task away, and never turn it into another one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from models.errors import Unavailable
from models.task import digest_of

TASKS_FILE, KEYS_FILE = "tasks.sqlite3", "idempotency.sqlite3"
"""In the state directory."""
CHECK_TIMEOUT_S = 60.0
"""For other processes that are starting on the same file."""
SCHEMA_VERSION = 2
TASKS_BY_AGE = "CREATE INDEX IF NOT EXISTS tasks_by_age ON tasks (tenant, created_at DESC, id);"
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, state TEXT NOT NULL, classes TEXT NOT NULL, n_unlabeled INTEGER NOT NULL,
    meta_model TEXT NOT NULL, created_at REAL NOT NULL, generate_ms REAL, bytes INTEGER, error TEXT,
    owner TEXT, lease_until REAL, lease_since REAL, notes TEXT NOT NULL DEFAULT '[]', digest TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS recipes (
    id TEXT PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE, data BLOB NOT NULL, digest TEXT NOT NULL DEFAULT ''
);
{TASKS_BY_AGE}
CREATE INDEX IF NOT EXISTS tasks_unfinished ON tasks (created_at) WHERE state IN ('queued', 'generating');
"""
FROM_1 = """
ALTER TABLE tasks ADD COLUMN lease_since REAL;
ALTER TABLE tasks ADD COLUMN notes TEXT NOT NULL DEFAULT '[]';
ALTER TABLE tasks ADD COLUMN digest TEXT NOT NULL DEFAULT '';
ALTER TABLE recipes ADD COLUMN digest TEXT NOT NULL DEFAULT '';
UPDATE tasks SET owner = NULL, lease_until = NULL, digest = task_digest(tenant, id, classes, n_unlabeled, meta_model,
    created_at, notes);
UPDATE recipes SET digest = recipe_digest(id, data);
"""
FIXED = "tenant, id, classes, n_unlabeled, meta_model, created_at, notes"
"""The columns that never change, in the order of ``task_digest``."""
INCOMPLETE = """SELECT id FROM tasks LEFT JOIN recipes USING (id) WHERE data IS NULL
    UNION ALL SELECT id FROM recipes LEFT JOIN tasks USING (id) WHERE tenant IS NULL LIMIT 1"""
REMEDY = "stop the service, run `classmith recover`, and start it again"


BROKEN = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises on a damaged file: it decodes names and messages from it, too."""


class Damaged(sqlite3.DatabaseError):
    """What the file holds is not what was written."""


def task_digest(*fixed: object) -> str:
    """Of the columns FIXED."""
    return digest_of(repr(value) for value in fixed)


def recipe_digest(task_id: str, data: bytes) -> str:
    """Of a recipe and the task it belongs to."""
    return digest_of((task_id, data))


def prepare(db: sqlite3.Connection, name: str) -> None:
    """Make the tables, or bring them to this version; raises Unavailable where a newer one wrote them."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise Unavailable(f"{name} was written by a newer Classmith (schema {version}); run that version.")
    db.create_function("task_digest", 7, task_digest, deterministic=True)
    db.create_function("recipe_digest", 2, recipe_digest, deterministic=True)
    for statement in (FROM_1 if version == 1 else SCHEMA).split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, rather than that it cannot be used now."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return (
        isinstance(error, Damaged | UnicodeDecodeError)
        or "decode to UTF-8" in str(error)
        or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    )


def as_text(data: bytes) -> str:
    """Text of a file that may be damaged."""
    return data.decode(errors="replace")


def check(path: Path) -> None:
    """Read every page and every row of a store's file; raises Unavailable, with the remedy, where it is damaged."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=CHECK_TIMEOUT_S, isolation_level=None)) as db:
            db.text_factory = as_text
            problem = next(_problems(db), "")
    except BROKEN as error:
        if not is_damage(error):
            raise Unavailable(f"{path.name} cannot be read ({error}); check its disk and its rights.") from error
        problem = str(error)
    if problem:
        raise Unavailable(f"{path.name} is damaged ({problem}); {REMEDY}. Its disk may be failing.")


def _problems(db: sqlite3.Connection) -> Iterator[str]:
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        yield str(found).replace("\n", " ")
    if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
        return  # an empty file, or one to be upgraded: there are no digests yet
    for *fixed, digest in db.execute(f"SELECT {FIXED}, digest FROM tasks"):
        if digest != task_digest(*fixed):
            yield "a task fails its digest"
    for task_id, data, digest in db.execute("SELECT id, data, digest FROM recipes"):
        if not is_recipe(task_id, data, digest):
            yield "a recipe fails its digest"
    if db.execute(INCOMPLETE).fetchone() is not None:
        yield "a task and its recipe are not both there"


def is_recipe(task_id: Any, data: Any, digest: Any) -> bool:
    """Whether a row is the recipe that was written, whatever the file says its columns hold."""
    return isinstance(task_id, str) and isinstance(data, bytes) and digest == recipe_digest(task_id, data)
