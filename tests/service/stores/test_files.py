"""What is the file store's own: whole files, eviction by use, and names that stay in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.errors import NotFound, Unavailable
from service.stores.files import STALE_TEMPORARY_S, FileBundleStore


def test_the_oldest_used_go_first_and_the_newest_stays(tmp_path: Path) -> None:
    store = FileBundleStore(tmp_path, max_bytes=1000)
    for name in ("a", "b", "c"):
        store.put(name, bytes(300))
    store.get("a")
    store.put("d", bytes(300))
    assert _stored(tmp_path) == {"a", "c", "d"}
    store.put("huge", bytes(2000))
    assert _stored(tmp_path) == {"huge"}
    assert store.get("huge") == bytes(2000)


def test_a_file_that_cannot_be_evicted_is_an_outage_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileBundleStore(tmp_path, max_bytes=1000)
    store.put("a", bytes(900))

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Unavailable, match="disk"):
        store.put("b", bytes(900))


def test_bundles_of_other_processes_count(tmp_path: Path) -> None:
    ours, theirs = FileBundleStore(tmp_path, max_bytes=1000), FileBundleStore(tmp_path, max_bytes=1000)
    for i in range(20):
        (ours if i % 2 else theirs).put(f"t{i}", bytes(100))
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total <= 1000
    assert "t19" in _stored(tmp_path)


def test_only_whole_files_are_seen_and_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    half, fresh = tmp_path / ".put-crashed", tmp_path / ".put-running"
    for path in (half, fresh):
        path.write_bytes(b"half")
    old = half.stat().st_mtime - 2 * STALE_TEMPORARY_S
    os.utime(half, (old, old))
    store = FileBundleStore(tmp_path, max_bytes=1000)
    assert store.get("put-crashed") is None
    store.put("a", b"whole")
    assert not half.exists()
    assert fresh.exists()
    assert store.get("a") == b"whole"


def test_a_failed_put_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    store = FileBundleStore(tmp_path / "bundles", max_bytes=1000)
    (tmp_path / "bundles" / "a.safetensors").mkdir()  # a rename onto it fails, as a full disk would
    with pytest.raises(Unavailable, match="disk"):
        store.put("a", b"data")
    assert _stored(tmp_path / "bundles") == {"a"}
    assert not [*(tmp_path / "bundles").glob(".put-*")]
    with pytest.raises(Unavailable, match="disk"):
        store.get("a")


@pytest.mark.parametrize("task_id", ["../secret", "a/b", "", ".", "x" * 200, "a\0b"])
def test_ids_cannot_leave_the_folder(tmp_path: Path, task_id: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    store = FileBundleStore(tmp_path / "bundles", max_bytes=1000)
    with pytest.raises(NotFound):
        store.get(task_id)
    with pytest.raises(NotFound):
        store.put(task_id, b"data")


def _stored(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.safetensors")}
