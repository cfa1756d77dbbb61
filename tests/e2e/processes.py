"""Real processes of `classmith serve` and `classmith worker`, that end with the test, and what their metrics say."""

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
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from redis import Redis

from service.generation.jobs import JobQueue
from tests.service.processes import until

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


@contextmanager
def worker(redis_client: Redis, shared: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has said it is alive."""
    env = environment(**{"log_level": "warning", **shared})
    process = subprocess.Popen([*COMMAND, "worker"], cwd=ROOT, env=env)
    try:
        queue = JobQueue(redis_client, prefix=str(shared["redis_prefix"]))
        until(lambda: process.poll() is not None or bool(queue.n_workers()))
        assert process.poll() is None
        yield process
    finally:
        process.terminate()
        assert process.wait(240) == 0


def scrape(http: httpx.Client) -> list[Sample]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def value(http: httpx.Client, name: str, **labels: str) -> float:
    """One sample of a scrape."""
    (found,) = (sample.value for sample in scrape(http) if sample.name == name and sample.labels == labels)
    return float(found)
