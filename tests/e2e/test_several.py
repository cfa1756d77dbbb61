"""`classmith serve --processes 2`: one service to its clients, on one port, whatever becomes of one process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.demo.alphabet import drawing
from tests.e2e.processes import COMMAND, ROOT, Service, serve
from tests.service import centroids
from tests.service.processes import until

PNG = {"Content-Type": "image/png"}
N_REQUESTS = 200


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    centroids.meta_model(tmp_path / "meta-models")
    folders = {"meta_models": tmp_path / "meta-models", "state_dir": tmp_path / "state"}
    with serve(**folders, processes=2) as running:
        yield running


def workers(service: Service) -> list[int]:
    """The processes that serve; another of its children only keeps track of what multiprocessing leaves behind."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(service.process.pid)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if "spawn_main" in line]


def counted(service: Service, name: str) -> dict[str, float]:
    """A counter by process, over all its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                process = sample.labels["process"]
                found[process] = found.get(process, 0) + sample.value
    return found


def on_new_connections(service: Service, path: str) -> list[bytes]:
    """Answers to as many predictions, each on a connection of its own."""

    def ask(_: int) -> bytes:
        response = httpx.post(f"{service.url}{path}", content=drawing(1, 0), headers=PNG, timeout=240, trust_env=False)
        assert response.status_code == 200, response.text
        return response.content

    with ThreadPoolExecutor(8) as pool:
        return [*pool.map(ask, range(N_REQUESTS))]


def test_they_make_a_task_once_answer_alike_and_tell_what_all_did(service: Service) -> None:
    body = centroids.task_json(centroids.characters(5))

    def create(_: int) -> str:
        made: str = httpx.post(f"{service.url}/tasks", json=body, timeout=240, trust_env=False).json()["id"]
        return made

    with ThreadPoolExecutor(8) as pool:
        (ident,) = set(pool.map(create, range(24)))
    assert sum(counted(service, "classmith_generations_total").values()) == 1
    assert len(set(on_new_connections(service, f"/tasks/{ident}/predict"))) == 1
    answered = counted(service, "classmith_batch_size_sum")
    assert set(answered) == {"0", "1"}
    assert sum(answered.values()) == N_REQUESTS
    assert service.stop() == 0


def test_one_is_killed_and_nothing_is_lost(service: Service) -> None:
    made = service.http.post("/tasks", json=centroids.task_json(centroids.characters(5))).json()
    path = f"/tasks/{made['id']}/predict"
    (answer,) = set(on_new_connections(service, path))
    first = workers(service)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(set(workers(service)) - set(first)) == 1)
    assert set(on_new_connections(service, path)) == {answer}
    until(lambda: set(counted(service, "classmith_generations_total")) == {"0", "1"})
    everyone = {*first, *workers(service)}
    assert service.stop(signal.SIGINT) == 0
    for pid in everyone:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_settings_that_cannot_be_are_said_by_one(tmp_path: Path) -> None:
    command = [*COMMAND, "serve", "--processes", "2", "--port", "0", "--state-dir", str(tmp_path / "state")]
    given = {**os.environ, "CLASSMITH_API_KEYS_FILE": str(tmp_path / "nowhere.json")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=given, cwd=ROOT)
    assert done.returncode != 0
    assert done.stderr.count("The API keys cannot be read") == 1
    assert "Traceback" not in done.stderr
