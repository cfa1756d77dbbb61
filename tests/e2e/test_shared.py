"""Several processes on one Redis: services and a worker, each task made once, by the worker while there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from service.demo.alphabet import drawing
from service.stores.redis_client import connect
from tests.e2e.processes import Service, serve, worker
from tests.e2e.test_service import n_generated, predict
from tests.redis_server import RedisServer
from tests.service import centroids


@pytest.fixture
def shared(shared: dict[str, object], tmp_path: Path) -> dict[str, object]:
    centroids.meta_model(tmp_path / "meta-models")
    return shared


def test_services_share_tasks_and_generate_themselves_without_a_worker(shared: dict[str, object]) -> None:
    with serve(**shared) as one, serve(**shared) as other, ThreadPoolExecutor(6) as pool:
        asked = [service for service in (one, other) for _ in range(3)]
        responses = list(pool.map(lambda service: service.http.post("/tasks", json=centroids.task_json()), asked))
        assert sorted(response.status_code for response in responses) == [200] * 5 + [201]
        task_id = responses[0].json()["id"]
        assert predict(one, task_id, drawing(1, 0)) == predict(other, task_id, drawing(1, 0))
        assert sorted([n_generated(one), n_generated(other)]) == [0, 1]
        key = {"Idempotency-Key": "k"}
        assert one.http.post("/tasks", json=centroids.task_json(), headers=key).status_code == 200
        refused = other.http.post("/tasks", json=centroids.task_json(centroids.characters(4)), headers=key)
        assert refused.status_code == 422


def test_a_worker_makes_the_tasks_while_there_is_one(shared: dict[str, object], redis_client: Redis) -> None:
    with serve(**shared) as service:
        with worker(redis_client, shared):
            task_id = made(service, 3)
            assert n_generated(service) == 0
            assert predict(service, task_id, drawing(2, 0))["label"] == "character 2"
        task_id = made(service, 4)
        assert n_generated(service) == 1
        assert predict(service, task_id, drawing(3, 0))["label"] == "character 3"


def made(service: Service, n_classes: int) -> str:
    response = service.http.post("/tasks", json=centroids.task_json(centroids.characters(n_classes)))
    assert response.status_code == 201, response.text
    ident: str = response.json()["id"]
    return ident


def test_a_service_without_its_redis_is_not_ready_and_says_so(tmp_path: Path, shared: dict[str, object]) -> None:
    server_folder = tmp_path / "redis"
    server_folder.mkdir()
    server = RedisServer(server_folder)
    with connect(server.url) as client:
        client.config_set("appendfsync", "always")  # as the compose file has it: a kill loses nothing
    try:
        with serve(**{**shared, "redis_url": server.url}) as service:
            task_id = made(service, 3)
            answer = predict(service, task_id, drawing(1, 0))
            server.kill()
            assert service.http.get("/readyz").status_code == 503
            assert service.http.get("/healthz").status_code == 200
            refused = service.http.get(f"/tasks/{task_id}")
            assert (refused.status_code, refused.json()["title"]) == (503, "Unavailable")
            assert predict(service, task_id, drawing(1, 0)) == answer  # what is in memory goes on answering
            server.start()
            assert service.http.get(f"/tasks/{task_id}").json()["state"] == "ready"
    finally:
        server.stop()
