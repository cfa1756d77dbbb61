"""Processes that are killed and started again: services, workers, and the Redis between them, each behind a proxy."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import httpx

from tests.e2e.processes import COMMAND, ROOT, environment
from tests.redis_server import free_port

START_S = 240.0
TICK_S = 0.01


@dataclass
class Process:
    """A command that can end in any way and be started again as it was. What it says goes to ``log``."""

    command: list[str]
    env: dict[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(self.command, cwd=ROOT, env=self.env, stdout=log, stderr=log)

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        if self.running is None:
            return 0
        self.running.send_signal(with_signal)
        status = self.running.wait(60)
        self.running = None
        return status

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@dataclass
class Service(Process):
    """`classmith serve` on a port of its own, and a client of it."""

    port: int = 0
    http: httpx.Client = field(default_factory=httpx.Client)

    def wait_until_ready(self, *, within_s: float = START_S) -> None:
        deadline = monotonic() + within_s
        while not self.is_ready():
            assert self.running is None or self.running.poll() is None, f"the service ended: {self.said()}"
            assert monotonic() < deadline, f"the service is not ready: {self.said()}"
            tick()

    def is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def service(folder: Path, name: str, *, clock: Path | None = None, **settings: object) -> Service:
    """A service that is not started yet, with a free port that it keeps. ``clock``: see ``clocked``."""
    port = free_port()
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
    command = [*_command(clock), "serve", "--port", str(port)]
    return Service(command, _environment(settings), folder / f"{name}.log", port=port, http=http)


def worker(folder: Path, name: str, *, clock: Path | None = None, **settings: object) -> Process:
    """A worker that is not started yet."""
    return Process([*_command(clock), "worker"], _environment(settings), folder / f"{name}.log")


def tick() -> None:
    """Between two looks at another process."""
    threading.Event().wait(TICK_S)


def _command(clock: Path | None) -> list[str]:
    return [sys.executable, "-m", "tests.chaos.clocked", str(clock)] if clock else COMMAND


def _environment(settings: dict[str, object]) -> dict[str, str]:
    return environment(**{"log_level": "warning", **settings})
