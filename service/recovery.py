"""`classmith recover`: keep every whole task of a damaged state directory, and say which could not be kept.

For the embedded store, while no service runs on it. The damaged file stays beside the new one. Two things are tried:
a first page that makes no sense is replaced by that of an empty database, since the tables are the same in every one;
then each row is read by its number, so that a page in the middle hides only its own rows.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import Unavailable
from service.settings import InvalidSettings
from service.stores.in_use import use
from service.stores.sqlite_schema import (
    BROKEN,
    FIXED,
    KEYS_FILE,
    TASKS_FILE,
    as_text,
    check,
    is_recipe,
    prepare,
    task_digest,
)

TASK_ID = re.compile(r"[0-9a-f]{32}")
PAGE_BYTES = 4096
HEADER_WAL, HEADER_N_PAGES = slice(18, 20), slice(28, 32)
"""Of SQLite's file format: the versions that say there is a WAL, and the size in pages."""
BEYOND = 20_000
"""Row numbers that are tried past the last one found, where the end of a table cannot be read."""
N_FIXED = len(FIXED.split(","))
ROW = f"{FIXED}, state, generate_ms, bytes, error, digest"
ID_SOURCES = (
    "SELECT id FROM tasks INDEXED BY tasks_by_age ORDER BY tenant, created_at DESC, id",
    "SELECT id FROM tasks INDEXED BY tasks_by_age ORDER BY tenant DESC, created_at, id DESC",
    "SELECT id FROM tasks ORDER BY id",
    "SELECT id FROM tasks ORDER BY id DESC",
    "SELECT id FROM recipes ORDER BY id",
    "SELECT id FROM recipes ORDER BY id DESC",
)


@dataclass(frozen=True)
class Recovered:
    """What became of a file. ``kept_as``: where its damaged form is now; empty where it was whole."""

    file: str
    kept_as: str
    n_kept: int
    lost: list[str]

    def __str__(self) -> str:
        if not self.kept_as:
            return f"{self.file}: whole"
        lost = "".join(f"\nlost: {task_id}" for task_id in self.lost)
        return f"{self.file}: {self.n_kept} tasks kept, {len(self.lost)} lost; the old file is {self.kept_as}{lost}"


def recover(state_dir: Path) -> list[Recovered]:
    """Mend the files of an embedded store that are damaged; those that are whole are left alone.

    Raises InvalidSettings where there is no store, Unavailable where a service runs on it.
    """
    if not any((state_dir / name).exists() for name in (TASKS_FILE, KEYS_FILE)):
        message = f"There is no store in {state_dir}; name its folder with --state-dir or CLASSMITH_STATE_DIR."
        raise InvalidSettings(message)
    with use(state_dir, alone=True):
        return [_mended(state_dir / name, mend) for name, mend in ((TASKS_FILE, _mend_tasks), (KEYS_FILE, _set_aside))]


def _mended(path: Path, mend: Callable[[Path], Recovered]) -> Recovered:
    try:
        check(path)
    except Unavailable:
        return mend(path)
    return Recovered(path.name, "", 0, [])


def _mend_tasks(path: Path) -> Recovered:
    """A new file of all that is whole takes the damaged one's place."""
    source, fresh = path.with_suffix(".source"), path.with_suffix(".fresh")
    for leftover in (*_with_journals(source), *_with_journals(fresh)):
        leftover.unlink(missing_ok=True)
    for one, other in zip(_with_journals(path), _with_journals(source), strict=True):
        if one.exists():
            shutil.copyfile(one, other)
    with closing(sqlite3.connect(fresh, isolation_level=None)) as new:
        prepare(new, path.name)
        if not _opens(source):
            _replace_first_page(source, fresh)
        kept, seen = _copy(source, new)
    kept_as = _set_aside(path).kept_as
    os.replace(fresh, path)
    for leftover in (*_with_journals(source), *_with_journals(fresh)):
        leftover.unlink(missing_ok=True)
    _sync(path)
    return Recovered(path.name, kept_as, len(kept), sorted(seen - kept))


def _set_aside(path: Path) -> Recovered:
    """Rename a file, with its journals: for idempotency keys nothing more is needed, since they only save work."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1_000_000:06}")
    for one, other in zip(_with_journals(path), _with_journals(aside), strict=True):
        if one.exists():
            os.replace(one, other)
    return Recovered(path.name, aside.name, 0, [])


def _copy(source: Path, new: sqlite3.Connection) -> tuple[set[str], set[str]]:
    """Whole tasks with whole recipes into a new database; (ids kept, ids seen anywhere)."""
    with closing(sqlite3.connect(source, isolation_level=None)) as old:
        old.text_factory = as_text
        new.execute("BEGIN")
        for row in _rows(old, "tasks", ROW):
            if row[-1] == task_digest(*row[:N_FIXED]):
                new.execute(f"INSERT OR IGNORE INTO tasks ({ROW}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", row)
        for row in _rows(old, "recipes", "id, data, digest"):
            if is_recipe(*row):
                new.execute("INSERT OR IGNORE INTO recipes (id, data, digest) VALUES (?, ?, ?)", row)
        seen = set(_ids(old))
    new.execute("DELETE FROM tasks WHERE id NOT IN (SELECT id FROM recipes)")
    new.execute("DELETE FROM recipes WHERE id NOT IN (SELECT id FROM tasks)")
    new.execute("UPDATE tasks SET state = 'queued' WHERE state NOT IN ('ready', 'failed')")
    new.execute("UPDATE tasks SET generate_ms = NULL WHERE typeof(generate_ms) <> 'real'")
    new.execute("UPDATE tasks SET bytes = NULL WHERE typeof(bytes) <> 'integer'")
    new.execute("COMMIT")
    kept = {task_id for (task_id,) in new.execute("SELECT id FROM tasks")}
    return kept, seen | kept


def _rows(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[object, ...]]:
    """The rows that can be read: from both ends, then one by one in between."""
    first, last = 0, 0
    for order in ("ASC", "DESC"):
        with suppress(*BROKEN):
            for number, *row in db.execute(f"SELECT rowid, {columns} FROM {table} NOT INDEXED ORDER BY rowid {order}"):
                first, last = (number, last) if order == "ASC" else (first, number)
                yield tuple(row)
            return  # the whole table was read
    for number in range(first + 1, last or first + BEYOND):
        with suppress(*BROKEN):
            yield from db.execute(f"SELECT {columns} FROM {table} NOT INDEXED WHERE rowid = ?", (number,))


def _ids(db: sqlite3.Connection) -> Iterator[str]:
    """Every task id that any table or index still names."""
    for query in ID_SOURCES:
        with suppress(*BROKEN):
            for (found,) in db.execute(query):
                if isinstance(found, str) and TASK_ID.fullmatch(found):
                    yield found


def _opens(path: Path) -> bool:
    with suppress(*BROKEN), closing(sqlite3.connect(path)) as db:
        db.execute("SELECT COUNT(*) FROM (SELECT id FROM tasks LIMIT 1)").fetchone()
        return True
    return False


def _replace_first_page(path: Path, fresh: Path) -> None:
    """Put an empty database's first page, which says where the tables begin, over a damaged one."""
    page = bytearray(fresh.read_bytes()[:PAGE_BYTES])
    page[HEADER_WAL] = b"\2\2"
    page[HEADER_N_PAGES] = (path.stat().st_size // PAGE_BYTES).to_bytes(4, "big")
    with path.open("r+b") as file:
        file.write(page)


def _with_journals(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _sync(path: Path) -> None:
    for one, flags in ((path, os.O_RDWR), (path.parent, os.O_RDONLY)):
        handle = os.open(one, flags)
        os.fsync(handle)
        os.close(handle)
