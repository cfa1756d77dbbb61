"""In which order things are stored and forgotten, so that what was broken off can be asked for again."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import Busy, Unavailable
from service.generation.once import LocalGeneration
from service.settings import Settings
from service.stores.files import FileBundleStore
from tests.service import centroids
from tests.service.live import live

BODY = centroids.task_json(centroids.characters(3))


def full(*_: object) -> None:
    raise Busy("1,000 classifiers are waiting to be made; try again later.", retry_after_s=3.0)


def test_a_full_queue_refuses_before_anything_is_stored(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(settings) as running:
        with monkeypatch.context() as patched:
            patched.setattr(LocalGeneration, "check_room", full)
            refused = running.http.post("/tasks", json=BODY, headers={"Idempotency-Key": "k"})
        assert refused.status_code == 429
        assert refused.headers["Retry-After"]
        assert running.http.get("/tasks").json()["tasks"] == []
        assert running.http.post("/tasks", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 201


def test_a_queue_that_filled_up_since_leaves_the_stored_task_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(settings) as running:
        with monkeypatch.context() as patched:
            patched.setattr(LocalGeneration, "run", full)
            waiting = running.http.post("/tasks", json=BODY)
        assert (waiting.status_code, waiting.json()["state"]) == (202, "queued")
        made = running.http.post("/tasks", json=BODY)
        assert (made.json()["id"], made.json()["state"]) == (waiting.json()["id"], "ready")


def test_equal_requests_for_an_unfinished_task_wait_in_the_same_bounded_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(settings) as running, monkeypatch.context() as patched:
        patched.setattr(LocalGeneration, "run", full)
        assert running.http.post("/tasks", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 202
        patched.setattr(LocalGeneration, "check_room", full)
        for headers in ({}, {"Idempotency-Key": "k"}):
            assert running.http.post("/tasks", json=BODY, headers=headers).status_code == 429


def test_a_delete_that_was_broken_off_can_be_repeated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: FileBundleStore, task_id: str) -> None:
        raise Unavailable("The disk does not answer.")

    with live(settings) as running:
        task = running.task(BODY)
        bundles = _bundles(settings.state_dir)
        assert len(bundles) == 1
        with monkeypatch.context() as patched:
            patched.setattr(FileBundleStore, "delete", away)
            assert running.http.delete(f"/tasks/{task['id']}").status_code == 503
        assert running.http.get(f"/tasks/{task['id']}").json()["state"] == "ready"
        assert running.http.delete(f"/tasks/{task['id']}").status_code == 204
        assert _bundles(settings.state_dir) == []
        assert running.http.delete(f"/tasks/{task['id']}").status_code == 404


def _bundles(state_dir: Path) -> list[Path]:
    return list(state_dir.rglob("*.safetensors"))
