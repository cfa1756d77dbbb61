"""What happens to a site: each fault is a block; entering it does the harm, leaving it takes the cause away.

All of it is real: signals, a full disk, a limit on file sizes, connections that are delayed, cut or silent, bytes that
are overwritten, a wall clock that jumps. None needs special rights but the mounted disk, which needs root.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from random import Random
from time import monotonic

from redis import Redis

from service.stores.redis_client import PREFIX
from tests.chaos.clocked import set_clock
from tests.chaos.processes import START_S, Process, tick
from tests.chaos.proxy import CLEAR, Weather
from tests.chaos.sites import Site
from tests.e2e.processes import COMMAND, ROOT

PAGE_BYTES = 4096
HOUR_S = 3600
CLOCK_JUMPS_S = (-48 * HOUR_S, -HOUR_S, -30, 30, HOUR_S, 48 * HOUR_S)
Reported = set[str]
"""Ids of tasks that the site itself reported as lost, and only a damaged disk may make it do so."""
Fault = Callable[[Site, Random], AbstractContextManager[Reported]]


@contextmanager
def kill_service(site: Site, rng: Random) -> Iterator[Reported]:
    """kill -9 of a service, which is started again."""
    yield from _killed(rng.choice(site.services))


@contextmanager
def kill_worker(site: Site, rng: Random) -> Iterator[Reported]:
    """kill -9 of a worker, which is started again."""
    yield from _killed(rng.choice(site.workers))


def _killed(victim: Process) -> Iterator[Reported]:
    victim.end(signal.SIGKILL)
    yield set()
    victim.start()


@contextmanager
def kill_redis(site: Site, rng: Random) -> Iterator[Reported]:
    """kill -9 of Redis, which reads its append-only file when it is started again."""
    assert site.redis is not None
    site.redis.kill()
    yield set()
    site.redis.start()


@contextmanager
def slow_redis(site: Site, rng: Random) -> Iterator[Reported]:
    """Every piece that travels to or from Redis is held back."""
    yield from _weather(site, range(4), Weather(delay_s=rng.uniform(0.02, 0.3)))


@contextmanager
def cut_off(site: Site, rng: Random) -> Iterator[Reported]:
    """One process loses its connections to Redis, some times in a row, and is brought back in the end."""
    which = rng.randrange(4)
    for _ in range(rng.randrange(5)):  # each cut may fall between a command and its reply
        site.proxies[which].become(Weather(is_cut=True))
        site.proxies[which].become(CLEAR)
        tick()
    yield from _weather(site, [which], Weather(is_cut=True))


@contextmanager
def silent_redis(site: Site, rng: Random) -> Iterator[Reported]:
    """One process's connections to Redis stay open, and nothing comes through them."""
    yield from _weather(site, [rng.randrange(4)], Weather(is_silent=True))


def _weather(site: Site, which: range | list[int], weather: Weather) -> Iterator[Reported]:
    for i in which:
        site.proxies[i].become(weather)
    yield set()
    for i in which:
        site.proxies[i].become(CLEAR)


@contextmanager
def redis_out_of_memory(site: Site, rng: Random) -> Iterator[Reported]:
    """Redis must evict: some bundles, or all of them and still have no memory to write."""
    with site.client() as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", int(used * rng.choice([0.5, 0.9, 0.97, 0.99])))
        yield set()
        client.config_set("maxmemory", 0)


@contextmanager
def redis_disk_full(site: Site, rng: Random) -> Iterator[Reported]:
    """Redis cannot add to its append-only file any more, and ends, perhaps in the middle of a record."""
    assert site.redis is not None
    largest = max(path.stat().st_size for path in (site.folder / "redis").rglob("*.aof"))
    before = resource.prlimit(site.redis.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(site.redis.pid, resource.RLIMIT_FSIZE, (largest + rng.randrange(1, PAGE_BYTES), before[1]))
    yield set()
    site.redis.kill()
    site.redis.start()


@contextmanager
def full_disk(site: Site, rng: Random) -> Iterator[Reported]:
    """The mounted disk has not a byte left."""
    filler = site.state / "filler"
    with filler.open("wb", buffering=0) as file:
        size = PAGE_BYTES * 64
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2  # to the last byte
    yield set()
    filler.unlink()


@contextmanager
def file_size_limit(site: Site, rng: Random) -> Iterator[Reported]:
    """The service's files cannot grow past a few kB: writes fail, or end in the middle."""
    pid = site.services[0].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (rng.randrange(100, 3 * PAGE_BYTES), before[1]))
    yield set()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def corrupt_bundle_files(site: Site, rng: Random) -> Iterator[Reported]:
    """Some stored bundles are overwritten in places, cut short, emptied or deleted."""
    files = sorted((site.state / "bundles").glob("*.safetensors"))
    for path in rng.sample(files, len(files) // 2):
        path.write_bytes(_damaged(path.read_bytes(), rng))
    yield set()


@contextmanager
def corrupt_bundle_keys(site: Site, rng: Random) -> Iterator[Reported]:
    """The same in Redis: heads and chunks are overwritten or deleted."""
    with site.client() as client:
        names = sorted(client.scan_iter(f"{PREFIX}:*:bundle:*"))
        for name in rng.sample(names, len(names) // 2):
            _damage_key(client, name, rng)
        yield set()


def _damage_key(client: Redis, name: bytes, rng: Random) -> None:
    data = client.get(name)
    if rng.random() < 0.2:
        client.delete(name)
    elif isinstance(data, bytes):
        client.set(name, _damaged(data, rng), xx=True, keepttl=True)


def _damaged(data: bytes, rng: Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0 or not data:
        return b""
    if kind == 1:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@contextmanager
def corrupt_page(site: Site, rng: Random) -> Iterator[Reported]:
    """A page of the database is overwritten under the running service; it is then killed, and starts or refuses to.

    Where it refuses, it must say why, and ``classmith recover`` must say what it could not keep.
    """
    victim, path = site.services[0], site.state / "tasks.sqlite3"
    with closing(sqlite3.connect(path)) as db:  # else all pages are still in the log, which has checksums
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(rng.randrange(path.stat().st_size // PAGE_BYTES) * PAGE_BYTES)
        start = rng.choice([0, rng.randrange(PAGE_BYTES)])
        file.seek(start, os.SEEK_CUR)
        file.write(rng.randbytes(rng.randrange(1, PAGE_BYTES - start + 1)))
    reported: Reported = set()
    yield reported
    victim.end(signal.SIGKILL)
    victim.start()
    deadline = monotonic() + START_S
    while not victim.is_ready():
        assert monotonic() < deadline, victim.said()
        if victim.running is not None and victim.running.poll() is not None:
            assert "damaged" in victim.said(), victim.said()
            assert "classmith recover" in victim.said(), victim.said()
            reported |= recover(site.state)
            victim.start()
            return
        tick()


def recover(state_dir: Path) -> Reported:
    """Run the documented recovery; the ids that it could not keep."""
    command = [*COMMAND, "recover", "--state-dir", str(state_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.removeprefix("lost: ") for line in done.stdout.splitlines() if line.startswith("lost: ")}


@contextmanager
def clock_jump(site: Site, rng: Random) -> Iterator[Reported]:
    """The wall clock of every service and worker jumps by seconds, hours or days, and one of them is killed."""
    assert site.clock is not None
    set_clock(site.clock, rng.choice(CLOCK_JUMPS_S))
    victim = rng.choice([*site.services, *site.workers])
    victim.end(signal.SIGKILL)
    yield set()
    victim.start()
