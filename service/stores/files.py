"""The embedded bundle store: one file a bundle in one folder, which several processes of a machine may share.

Bundles are a cache, so any file may be deleted at any time. Each appears whole or not at all to other processes
(temporary file, rename). After a power cut one may be empty; its checksum says so, and it is made again, so that no
creation waits for the disk.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import NotFound, Unavailable

EVICT_TO = 0.9
"""Eviction makes some room, so that a full store does not list its folder at every put."""
STALE_TEMPORARY_S = 3600.0
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class FileBundleStore:
    """A BundleStore of one file a bundle. Over ``max_bytes`` in total, those used longest ago go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._unlisted_bytes = 0
        self._room_bytes = 0
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, task_id: str, data: bytes) -> None:
        """Store whole or not at all, then evict; what was just stored stays, even if it alone is over the limit."""
        path = self._path(task_id)
        with _disk_errors():
            _write_whole(path, data)
        with self._lock, _disk_errors():
            self._unlisted_bytes += len(data)
            if self._unlisted_bytes > self._room_bytes:
                self._evict(keep=path)

    def get(self, task_id: str) -> bytes | None:
        """The bytes, now the most recently used, or None."""
        path = self._path(task_id)
        with _disk_errors():
            try:
                data = path.read_bytes()
                _touch(path)
            except FileNotFoundError:
                return None
        return data

    def delete(self, task_id: str) -> None:
        """Remove the file, if there is one."""
        with _disk_errors():
            self._path(task_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, task_id: str) -> Path:
        if not TASK_ID.fullmatch(task_id):
            raise NotFound("There is no such task; task ids are letters and digits only.")
        return self._folder / f"{task_id}.safetensors"

    def _evict(self, *, keep: Path) -> None:
        """List the folder; over the limit, delete the oldest-used down to EVICT_TO of it.

        The folder is next listed when a quarter of the room is filled: other processes may be filling it too.
        """
        bundles = sorted(_bundles(self._folder))
        total = sum(size for _, _, size in bundles)
        target = self._max_bytes * EVICT_TO if total > self._max_bytes else self._max_bytes
        for _, path, size in bundles:
            if total <= target:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
        self._unlisted_bytes = 0
        self._room_bytes = max(0, self._max_bytes - total) // 4


def _write_whole(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=".put-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        _touch(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _touch(path: Path) -> None:
    """Record a use in the modification time: access times are off on many disks, and coarse."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _bundles(folder: Path) -> Iterator[tuple[int, Path, int]]:
    """(last use in ns, path, bytes) of each bundle; temporary files of crashed processes are removed."""
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:  # another process evicted it
            continue
        if entry.name.endswith(".safetensors"):
            yield status.st_mtime_ns, Path(entry.path), status.st_size
        elif entry.name.startswith(".put-") and time.time() - status.st_mtime > STALE_TEMPORARY_S:
            Path(entry.path).unlink(missing_ok=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "check that its disk has room and is writable, or lower the limit on bundles"
        raise Unavailable(f"The bundle store does not work ({error.strerror}); {remedy}.") from error
