"""The two processes: one that serves HTTP, one that takes generations from the queue. SIGTERM and Ctrl-C stop both."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server

from models.device import providers_on
from models.errors import MissingDevice, Unavailable
from models.text import Encoders
from service.api.state import Served
from service.app import create_app
from service.catalogue import read_catalogue
from service.generation.worker import run_worker
from service.observability.otel import exported
from service.observability.siblings import Siblings
from service.observability.telemetry import Metrics, configure_logging
from service.serving.connections import Limits, most_connections, notice_dead_peers, sweep
from service.serving.direct import DirectProtocol
from service.serving.supervisor import Supervisor
from service.settings import InvalidSettings, Settings
from service.storage import MeasuredGenerator
from service.stores.in_use import use
from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import connect
from service.stores.sqlite_schema import KEYS_FILE, TASKS_FILE, check

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 75
"""Idle connections are kept longer than the usual balancers keep theirs, so that none reuses one that is closing."""
SWITCH_INTERVAL_S = 0.0005
"""How long a busy thread keeps the interpreter from the others. A runner asks for it several times an image, so that at
Python's 5 ms a loop that is busy with refusing leaves runners next to nothing (docs/decisions.md)."""


def serve(settings: Settings) -> int:
    """Serve until told to stop; the exit status. Raises InvalidSettings where it cannot even begin."""
    configure_logging(settings.log_level)
    _check_state_dir(settings)
    if settings.device == "cuda":  # "auto" does without, and a process that only supervises wants no GPU
        _providers(settings)
    with _listen(settings) as listening:
        announce = partial(
            print, f"Classmith listens on http://{_address(listening)} (documentation: /docs)", flush=True
        )
        if settings.processes == 1:
            return serve_on(settings, listening, None, announce)
        settings.keys()  # what is wrong with them is said here, not by each process
        return Supervisor(partial(serve_on, settings), settings.processes, listening).run(announce)


def serve_on(
    settings: Settings, listening: socket.socket, siblings: Siblings | None, on_started: Callable[[], None]
) -> int:
    """Serve as one process, which calls ``on_started`` once it answers; the exit status."""
    if siblings:
        configure_logging(settings.log_level)
        settings = _share_of(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    metrics = Metrics()
    with exported(os.environ, metrics, "classmith-api") as tracing:
        server = _server(settings, create_app(settings, metrics, tracing, siblings), on_started)
        server.run(sockets=[listening])
    return 0 if server.started else 1


def _share_of(settings: Settings) -> Settings:
    """What one of several processes may use: its part of the threads, where nobody said how many."""
    if "n_runners" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"n_runners": max(1, settings.n_runners // settings.processes)})


def _server(settings: Settings, app: FastAPI, on_started: Callable[[], None]) -> _Server:
    most = most_connections(settings.max_connections)
    limits = Limits(most, body_s=settings.body_s, stall_s=KEEP_ALIVE_S)
    config = uvicorn.Config(
        app,
        http=partial(DirectProtocol, app=app, limits=limits),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
    )
    return _Server(config, app, on_started, drain_s=settings.drain_s)


def work(settings: Settings) -> int:
    """Make classifiers for services that share a Redis, until told to stop; the exit status."""
    if not settings.redis_url:
        raise InvalidSettings("A worker takes its jobs from Redis; give --redis-url or set CLASSMITH_REDIS_URL.")
    configure_logging(settings.log_level)
    providers = _providers(settings)
    encoders = Encoders(settings.text_encoder, download=settings.download_encoder)
    catalogue = read_catalogue(settings.meta_models)
    if not catalogue.names:
        raise InvalidSettings(f"No meta-model is in {settings.meta_models}; set CLASSMITH_META_MODELS to their folder.")
    client, prefix, metrics = connect(settings.redis_url), settings.redis_prefix, Metrics()
    with _metrics_given(settings, metrics), exported(os.environ, metrics, "classmith-worker") as tracing:
        return run_worker(
            client,
            RedisTaskStore(client, prefix),
            RedisBundleStore(client, settings.bundle_ttl_s, prefix=prefix),
            catalogue.by_name,
            generator=MeasuredGenerator(metrics, encoders, tracing, providers=providers),
            prefix=prefix,
            lease_s=settings.lease_s,
            alive_s=settings.lease_s,
            tracing=tracing,
        )


def _providers(settings: Settings) -> list[str]:
    """Of ``settings.device``; raises InvalidSettings."""
    try:
        return providers_on(settings.device)
    except MissingDevice as error:
        raise InvalidSettings(f"CLASSMITH_DEVICE is {settings.device}. {error.message}") from error


@contextmanager
def _metrics_given(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """A worker's metrics over HTTP during the block, where a port is set for them."""
    if settings.metrics_port is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        address = f"{settings.metrics_host}:{settings.metrics_port}"
        message = f"Metrics cannot be given at {address} ({error.strerror}); set another CLASSMITH_METRICS_PORT."
        raise InvalidSettings(message) from error
    log.info("metrics are at /metrics of this port", extra={"port": server.server_port})
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(uvicorn.Server):
    """On the first signal: not ready any more, then, ``drain_s`` later, no more connections; on the second: at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_started: Callable[[], None], *, drain_s: float) -> None:
        super().__init__(config)
        self._app, self._on_started, self._drain_s = app, on_started, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = threading.Event()
        self._sweep: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where once connections are answered; not where another process has the port by now."""
        try:
            await super().startup(sockets)
            for listening in sockets or ():
                listening.listen(self.config.backlog)  # it does, or else this says so: uvloop closes it without a word
        except OSError:
            log.error("cannot listen: another process has begun to use the port; choose another with --port")
            await self.shutdown(sockets)
            self.started, self.should_exit = False, True
            return
        self._loop = asyncio.get_running_loop()
        self._sweep = self._loop.create_task(sweep(self.server_state.connections))
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; slow clients are swept until all are gone."""
        await super().shutdown(sockets)
        if self._sweep is not None:
            self._sweep.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a plain return instead of uvicorn's death by the same signal, so that the status is 0."""
        served: Served | None = self._app.state.served
        if served is None or self._loop is None or self._told.is_set():
            self.should_exit = True
            return
        self._told.set()
        self._loop.call_soon_threadsafe(served.stopping.set)
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_s, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


def _check_state_dir(settings: Settings) -> None:
    if settings.redis_url:
        return
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.state_dir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may be starting, too
        with use(settings.state_dir):
            for name in (TASKS_FILE, KEYS_FILE):
                check(settings.state_dir / name)
    except OSError as error:
        message = f"CLASSMITH_STATE_DIR {settings.state_dir} cannot be written ({error.strerror}); choose another."
        raise InvalidSettings(message) from error
    except Unavailable as error:
        raise InvalidSettings(error.message) from error


def _listen(settings: Settings) -> socket.socket:
    """A listening socket, taken before anything is built so that a busy port is the first thing said."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        message = f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another with --port."
        raise InvalidSettings(message) from error
    listening.set_inheritable(True)
    notice_dead_peers(listening)
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
