"""What every BundleStore promises, on each of them."""

from __future__ import annotations

import signal
from multiprocessing.context import SpawnContext

from service.ports import BundleStore
from service.stores.redis_client import CHUNK_BYTES
from tests.contract.places import Place, put_and_die, put_until


def test_what_is_put_is_got(bundles: BundleStore) -> None:
    assert bundles.get("a1") is None
    bundles.put("a1", b"\x00weights\xff")
    bundles.put("a2", b"")
    assert bundles.get("a1") == b"\x00weights\xff"
    assert bundles.get("a2") == b""


def test_the_last_put_holds(bundles: BundleStore) -> None:
    bundles.put("a1", b"first, and longer")
    bundles.put("a1", b"second")
    assert bundles.get("a1") == b"second"


def test_large_bundles_come_back_whole(bundles: BundleStore) -> None:
    data = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"tail"
    bundles.put("a1", data)
    assert bundles.get("a1") == data


def test_delete_removes_one_and_may_be_repeated(bundles: BundleStore) -> None:
    bundles.put("a1", b"one")
    bundles.put("a2", b"two")
    bundles.delete("a1")
    bundles.delete("a1")
    assert bundles.get("a1") is None
    assert bundles.get("a2") == b"two"


def test_a_put_survives_kill_9(place: Place, bundles: BundleStore, spawn: SpawnContext) -> None:
    process = spawn.Process(target=put_and_die, args=(place, "a1", b"weights"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert bundles.get("a1") == b"weights"


def test_readers_never_see_a_mixture_of_two_writers(place: Place, bundles: BundleStore, spawn: SpawnContext) -> None:
    n_bytes = 2 * CHUNK_BYTES + 1
    stop = spawn.Event()
    writers = [spawn.Process(target=put_until, args=(place, "a1", fill, n_bytes, stop)) for fill in (1, 2)]
    for writer in writers:
        writer.start()
    seen: set[int] = set()
    n_reads = 0
    while seen != {1, 2} or n_reads < 30:
        data = bundles.get("a1")
        if data is not None:
            assert len(data) == n_bytes
            assert data.count(data[:1]) == n_bytes
            seen.add(data[0])
            n_reads += 1
    stop.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
