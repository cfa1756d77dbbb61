"""The whole path with the real meta-model, over HTTP, in processes of its own."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from models.metamodel import ZOO
from models.preprocess import PreprocessSpec, to_pixels
from service.demo.alphabet import drawing
from tests.e2e.processes import Service, serve, value
from tests.service import centroids
from tests.service.processes import until
from tests.service.prototypes import SLOW_LOOPS

N_WAYS = 20
META_MODEL = "omniglot-8"
PNG = {"Content-Type": "image/png"}


def body(hand: int = 0) -> dict[str, Any]:
    shown = {f"character {k}": drawing(k, hand) for k in range(N_WAYS)}
    return centroids.task_json(shown, generator=META_MODEL)


def predict(service: Service, task_id: str, image: bytes) -> dict[str, Any]:
    response = service.http.post(f"/tasks/{task_id}/predict", content=image, headers=PNG)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()["predictions"][0]
    return answer


@pytest.fixture(autouse=True)
def needs_the_meta_model() -> None:
    if not (ZOO / META_MODEL).is_dir():
        pytest.skip(f"{META_MODEL} is not in models/zoo")


def test_made_used_taken_away_and_kept(tmp_path: Path) -> None:
    queries = [drawing(k, hand) for k in range(N_WAYS) for hand in (1, 2)]
    with serve(state_dir=tmp_path) as service:
        response = service.http.post("/tasks", json=body())
        assert response.status_code == 201, response.text
        task = response.json()
        answers = [predict(service, task["id"], query) for query in queries]
        labels = [f"character {k}" for k in range(N_WAYS) for _ in range(2)]
        n_right = sum(answer["label"] == label for answer, label in zip(answers, labels, strict=True))
        assert n_right >= len(queries) / 4  # guessing: 1 in 20
        exported = service.http.get(f"/tasks/{task['id']}/model.onnx").content
        assert service.stop() == 0
    check_exported(exported, queries, answers)
    with serve(state_dir=tmp_path) as service:
        assert service.http.get(f"/tasks/{task['id']}").json() == task
        assert [predict(service, task["id"], query) for query in queries] == answers
        assert service.http.get(f"/tasks/{task['id']}/model.onnx").content == exported


def check_exported(exported: bytes, queries: list[bytes], answers: list[dict[str, Any]]) -> None:
    """Plain ONNX Runtime, as anyone would run the file, gives the served answers."""
    session = ort.InferenceSession(exported)
    properties = session.get_modelmeta().custom_metadata_map
    names, spec = json.loads(properties["class_names"]), PreprocessSpec(**json.loads(properties["preprocess"]))
    rows = session.run(["probabilities"], {"pixels": np.stack([to_pixels(query, spec) for query in queries])})[0]
    for row, answer in zip(rows, answers, strict=True):
        assert names[int(row.argmax())] == answer["label"]
        found = [answer["probabilities"][name] for name in names]
        np.testing.assert_allclose(found, row, atol=5e-5)  # logits are up to 260, where float32 steps are 3e-5


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with serve(state_dir=tmp_path) as service:
        task = service.http.post("/tasks", json=body()).json()
        answer = predict(service, task["id"], drawing(3, 1))
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    with serve(state_dir=tmp_path) as service:
        assert service.http.get("/tasks").json()["tasks"] == [task]
        assert predict(service, task["id"], drawing(3, 1)) == answer


def test_work_left_by_a_kill_is_taken_up_again(tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "meta-models", n_loops=10 * SLOW_LOOPS)
    settings = {"state_dir": tmp_path / "state", "meta_models": tmp_path / "meta-models", "lease_s": 1.0}
    with serve(**settings) as service:
        response = service.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "wait=0"})
        assert response.status_code == 202
        service.stop(signal.SIGKILL)
    with serve(**settings) as service:
        events = service.http.get(f"{response.headers['location']}/events").text
        assert "event: ready" in events


def test_two_processes_on_one_folder_make_a_task_once(tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "meta-models", n_loops=2 * SLOW_LOOPS)
    settings = {"state_dir": tmp_path / "state", "meta_models": tmp_path / "meta-models"}
    with serve(**settings) as one, serve(**settings) as other, ThreadPoolExecutor(8) as pool:
        asked = [service for service in (one, other) for _ in range(4)]
        responses = list(pool.map(lambda service: service.http.post("/tasks", json=centroids.task_json()), asked))
        assert sorted(response.status_code for response in responses) == [200] * 7 + [201]
        (answer,) = {response.text for response in responses}  # one generation: one time, for all
        task_id = json.loads(answer)["id"]
        image = drawing(1, 0)
        assert predict(one, task_id, image) == predict(other, task_id, image)
        made = [n_generated(service) for service in (one, other)]
        assert sorted(made) == [0, 1]
        assert other.http.delete(f"/tasks/{task_id}").status_code == 204
        assert one.http.get(f"/tasks/{task_id}").status_code == 404


def n_generated(service: Service) -> int:
    return int(value(service.http, "classmith_generation_duration_seconds_count"))


def test_a_service_told_to_stop_finishes_what_it_has(tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "meta-models", n_loops=2 * SLOW_LOOPS)
    settings = {"state_dir": tmp_path / "state", "meta_models": tmp_path / "meta-models", "shutdown_s": 240}
    with serve(**settings) as service, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.http.post, "/tasks", json=centroids.task_json(), headers={"Prefer": "wait=120"})
        until(lambda: bool(service.http.get("/tasks").json()["tasks"]))  # the request has been taken
        assert service.stop() == 0
        assert asked.result().status_code == 201


def test_it_is_not_ready_while_it_drains(tmp_path: Path) -> None:
    with serve(state_dir=tmp_path, drain_s=600) as service:
        assert service.http.get("/readyz").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.http.get("/readyz").status_code == 503)
        assert service.http.get("/healthz").status_code == 200
        assert service.stop() == 0  # the second signal ends the wait
