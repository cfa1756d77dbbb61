"""Processes under test: started on free ports of the loopback interface, waited for, stopped."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
START_TIMEOUT_S, STOP_TIMEOUT_S = 240.0, 60.0


@dataclass(frozen=True)
class Server:
    """A ready server. ``ready_ms``: from starting its process to its first answer that it is ready."""

    port: int
    pid: int
    ready_ms: float

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Its processes stand still during the block: another's turn, which even idle ones would disturb."""
        family = _family(self.pid)
        _signal(family, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(family, signal.SIGCONT)


@contextmanager
def service(state_dir: Path, **settings: str) -> Iterator[Server]:
    """`classmith serve` with its embedded store in ``state_dir``; ``settings`` are CLASSMITH_... without the prefix."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLASSMITH_")}
    environment |= {"CLASSMITH_STATE_DIR": str(state_dir), **{f"CLASSMITH_{k}": v for k, v in settings.items()}}
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with process(command, port, environment, log=state_dir.with_suffix(".log")) as server:
        yield server


@contextmanager
def baseline(model: Path) -> Iterator[Server]:
    """The barest FastAPI endpoint around ``model`` (an ONNX file exported by the service)."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.baseline", "--model", str(model), "--port", str(port)]
    with process(command, port, dict(os.environ), log=model.with_suffix(".log")) as server:
        yield server


def says_ready(port: int) -> bool:
    return ask(port, "GET", "/readyz") == 200


@contextmanager
def process(
    command: list[str],
    port: int,
    environment: dict[str, str],
    *,
    log: Path,
    is_ready: Callable[[int], bool] = says_ready,
) -> Iterator[Server]:
    """A server and the processes it starts, which end with it."""
    started = time.perf_counter()
    with log.open("ab") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        while not is_ready(port):
            if running.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.005)
        yield Server(port, running.pid, 1e3 * (time.perf_counter() - started))
    finally:
        running.terminate()
        try:
            running.wait(STOP_TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # what is left of its group; most leave nothing
            running.wait()


def post(port: int, path: str, body: bytes, media_type: str) -> int:
    return ask(port, "POST", path, body, {"Content-Type": media_type})


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = NO_HEADERS) -> int:
    """The status of the answer; 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _family(pid: int) -> set[int]:
    """A process, its group, and all that descend from them."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    family, n_known = {one for one, _, group in rows if group == pid}, 0
    while len(family) > n_known:
        n_known = len(family)
        family |= {one for one, parent, _ in rows if parent in family}
    return family


def _signal(family: set[int], number: signal.Signals) -> None:
    for one in family:
        with suppress(ProcessLookupError):
            os.kill(one, number)


def resident_mb(pid: int) -> float:
    """Memory a process has resident, in MB (10^6 bytes)."""
    kib = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return int(kib) * 1024 / 1e6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
