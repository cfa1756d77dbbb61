"""A whole installation on this machine for faults to happen to: embedded, or two services, two workers and a Redis."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from service.stores.redis_client import connect
from tests.chaos.clocked import set_clock
from tests.chaos.processes import Process, Service, service, worker
from tests.chaos.proxy import Proxy
from tests.redis_server import RedisServer
from tests.service import centroids

N_LOOPS = 1_000
"""Makes a generation take some tens of milliseconds, so that faults fall into it."""
SETTINGS = {
    "lease_s": 1.0,
    "session_bytes": 60_000,
    "min_residency_s": 0.1,
    "revalidate_s": 0.5,
    "n_runners": 2,
}
"""Few sessions fit, so that predictions reach the stores; leases are short, so that trials are."""


@dataclass
class Site:
    """What runs, and what a fault can reach. ``proxies``: one between each process and Redis, by the process."""

    folder: Path
    services: list[Service]
    workers: list[Process] = field(default_factory=list)
    redis: RedisServer | None = None
    proxies: list[Proxy] = field(default_factory=list)
    clock: Path | None = None
    state: Path = field(default_factory=Path)

    @property
    def urls(self) -> list[str]:
        return [str(one.http.base_url).rstrip("/") for one in self.services]

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """Straight to Redis, past every proxy."""
        assert self.redis is not None
        with connect(self.redis.url) as client:
            yield client

    def start(self) -> None:
        for process in [*self.workers, *self.services]:
            process.start()
        for one in self.services:
            one.wait_until_ready()

    def stop(self) -> None:
        for process in [*self.services, *self.workers]:
            process.end(signal.SIGKILL)
        for one in self.services:
            one.http.close()


@contextmanager
def embedded(folder: Path, *, state: Path | None = None, with_clock: bool = False) -> Iterator[Site]:
    """One service on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    centroids.meta_model(folder / "meta-models", n_loops=N_LOOPS)
    clock = _clock(folder) if with_clock else None
    state = state or folder / "state"
    settings = SETTINGS | {"meta_models": folder / "meta-models", "state_dir": state}
    site = Site(folder, [service(folder, "service", clock=clock, **settings)], clock=clock, state=state)
    try:
        site.start()
        yield site
    finally:
        site.stop()


@contextmanager
def shared(folder: Path, *, with_clock: bool = False) -> Iterator[Site]:
    """Two services and two workers, each with a proxy of its own to one Redis that keeps every write."""
    folder.mkdir(parents=True, exist_ok=True)
    centroids.meta_model(folder / "meta-models", n_loops=N_LOOPS)
    clock = _clock(folder) if with_clock else None
    (folder / "redis").mkdir()
    with ExitStack() as stack:
        options = ["--appendfsync", "always", "--maxmemory-policy", "volatile-lfu"]
        redis = RedisServer(folder / "redis", options=options)
        stack.callback(redis.stop)
        proxies = [Proxy(redis.port) for _ in range(4)]
        for proxy in proxies:
            stack.callback(proxy.close)
        settings = SETTINGS | {"meta_models": folder / "meta-models", "state_dir": folder / "unused"}
        urls = [f"redis://127.0.0.1:{proxy.port}/0" for proxy in proxies]
        services = [service(folder, f"service-{i}", clock=clock, redis_url=urls[i], **settings) for i in range(2)]
        workers = [worker(folder, f"worker-{i}", clock=clock, redis_url=urls[2 + i], **settings) for i in range(2)]
        site = Site(folder, services, workers, redis, proxies, clock)
        stack.callback(site.stop)
        site.start()
        yield site


def _clock(folder: Path) -> Path:
    set_clock(folder / "clock", 0.0)
    return folder / "clock"
