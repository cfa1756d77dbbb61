"""In which order things are stored and forgotten, so that what was broken off can be asked for again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from models import metamodel
from models.errors import Busy, GenerationFailed, Unavailable
from models.generator import OnnxGenerator
from service.generation.once import LocalGeneration
from service.ports import TaskRecord
from service.settings import Settings
from service.stores.files import FileBundleStore
from service.tasks import FINISHED, Tasks
from tests.service import centroids
from tests.service.live import held_generations, live, problem

BODY, OTHER = (centroids.task_json(centroids.characters(n)) for n in (3, 4))
ASYNC = {"Prefer": "respond-async"}


def failing(*_: object, **__: object) -> None:
    raise GenerationFailed("The encoder is not here; install it.")


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


def test_a_failed_task_tried_again_is_not_told_by_its_old_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(settings.model_copy(update={"n_generations": 1})) as running:
        with monkeypatch.context() as patched:
            patched.setattr(OnnxGenerator, "generate", failing)
            problem(running.http.post("/tasks", json=BODY), 500)
        with held_generations() as go_on:
            running.http.post("/tasks", json=OTHER, headers=ASYNC)  # has the only thread
            again = running.http.post("/tasks", json=BODY, headers=ASYNC)
            assert (again.status_code, again.json()["state"]) == (202, "queued")
            address = again.headers["location"]
            with running.http.stream("GET", f"{address}/events") as stream:
                lines = (line for line in stream.iter_lines() if line.startswith("event: "))
                assert next(lines) == "event: queued"
                go_on.set()
                assert [*lines][-1] == "event: ready"


@pytest.mark.parametrize("preference", ["respond-async", "wait=0"])
def test_who_does_not_wait_is_told_by_the_task_that_it_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, preference: str
) -> None:
    async def late(tasks: Tasks, tenant: str, ident: str, *, look: Any = Tasks.get) -> TaskRecord:
        while (record := await look(tasks, tenant, ident)).state not in FINISHED:
            await asyncio.sleep(0.01)
        return record

    monkeypatch.setattr(OnnxGenerator, "generate", failing)
    monkeypatch.setattr(Tasks, "get", late)  # it has failed before the answer is written
    with live(settings) as running:
        answer = running.http.post("/tasks", json=BODY, headers={"Prefer": preference})
        assert (answer.status_code, answer.json()["state"]) == (202, "failed")
        assert "install it" in answer.json()["error"]
        assert "retry-after" not in answer.headers
        assert running.http.get(answer.headers["location"]).json() == answer.json()


def test_a_classifier_that_cannot_be_made_again_now_is_503_and_answers_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = {"content": centroids.characters()["character 0"], "headers": {"Content-Type": "image/png"}}
    with live(settings) as running:
        address = f"/tasks/{running.task(BODY)['id']}"
        assert running.http.post(f"{address}/predict", **image).status_code == 200
        for bundle in _bundles(settings.state_dir):
            bundle.unlink()
        assert running.http.post(f"/v2/repository/models/{address[7:]}/unload").status_code == 200
        with monkeypatch.context() as patched:
            patched.setattr(OnnxGenerator, "generate", failing)
            assert "install it" in problem(running.http.post(f"{address}/predict", **image), 503)["detail"]
            assert "install it" in problem(running.http.get(f"{address}/model.onnx"), 503)["detail"]
            assert running.http.get(address).json()["state"] == "queued"
        assert running.http.post(f"{address}/predict", **image).status_code == 200
        assert running.http.get(address).json()["state"] == "ready"


def test_a_meta_model_exported_again_under_the_service_answers_nothing_until_it_is_restarted(
    settings: Settings, tmp_path: Path
) -> None:
    image = {"content": centroids.characters()["character 0"], "headers": {"Content-Type": "image/png"}}
    loaded = centroids.meta_model(tmp_path / "zoo")
    files = {name: loaded.read(name) for name in loaded.manifest.files}
    with live(settings.model_copy(update={"meta_models": tmp_path / "zoo"})) as running:
        skeleton = files["skeleton.onnx"].replace(b"scaled", b"SCALED")
        metamodel.write(loaded.folder, loaded.manifest, {**files, "skeleton.onnx": skeleton})
        address = f"/tasks/{running.task(BODY)['id']}"
        for refused in (
            running.http.post(f"{address}/predict", **image),
            running.http.get(f"{address}/model.onnx"),
            running.http.post(f"{address}/explain", **image),
        ):
            assert "skeleton.onnx of centroids was changed" in problem(refused, 503)["detail"]
        metamodel.write(loaded.folder, loaded.manifest, files)
        assert running.http.post(f"{address}/predict", **image).status_code == 200


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
