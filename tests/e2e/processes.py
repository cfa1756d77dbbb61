"""Real processes of `classmith serve`, on free loopback ports, that end with the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

COMMAND = [sys.executable, "-m", "service.cli"]
ROOT = Path(__file__).parents[2]


def environment(**settings: object) -> dict[str, str]:
    """The environment of a command: none of this process's own settings, and those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLASSMITH_")}
    return kept | {f"CLASSMITH_{name.upper()}": str(value) for name, value in settings.items()}


@dataclass
class Service:
    """A running process and a client of it."""

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        self.process.send_signal(with_signal)
        return self.process.wait(240)


@contextmanager
def serve(**settings: object) -> Iterator[Service]:
    """A service that is ready; settings by their names."""
    command = [*COMMAND, "serve", "--port", "0"]
    env = environment(**{"log_level": "warning", **settings})
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the service did not start: {line!r}"
        with httpx.Client(base_url=found[0], timeout=240, trust_env=False) as http:
            yield Service(process, found[0], http)
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.kill()
        process.wait()
