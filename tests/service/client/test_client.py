"""The client against a running service: every call, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from service.client import (
    AsyncClassmith,
    Classmith,
    MetaModelInfo,
    NotAllowed,
    NotFound,
    Prediction,
    RequestFailed,
    TaskFailed,
    TaskInfo,
    TimedOut,
    calls,
)
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids, prototypes
from tests.service.live import Live, held_generations, live

N_CLASSES = 3
NAMES = [f"character {k}" for k in range(N_CLASSES)]
QUERIES = [drawing(k, 1) for k in range(N_CLASSES)]


@pytest.fixture
def client(service: Live) -> Iterator[Classmith]:
    with Classmith(service.url) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, image in centroids.characters().items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(image)
    return tmp_path


def test_the_life_of_a_task(client: Classmith, tmp_path: Path) -> None:
    task = client.create(centroids.characters())
    assert (task.info.state, task.class_names, task.info.meta_model) == ("ready", tuple(NAMES), "centroids")
    assert task.info.error is None
    assert client.task(task.id).info == task.info == task.refresh().info
    assert task.id in [listed.id for listed in client.tasks()]

    found = task.predict(QUERIES)
    assert [answer.label for answer in found] == NAMES
    assert found[0] == Prediction(NAMES[0], found[0].probability, found[0].probabilities, found[0].abstain)
    assert sum(found[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert [len(answer.probabilities) for answer in task.predict(QUERIES, top_k=2)] == [2] * N_CLASSES
    assert task.predict([]) == []

    path = task.export(tmp_path / "classifier.onnx")
    assert ort.InferenceSession(path).get_outputs()[0].name == "probabilities"
    task.delete()
    with pytest.raises(NotFound, match="There is no task"):
        task.refresh()


def test_meta_models_are_listed_alike_by_both_clients(service: Live, client: Classmith) -> None:
    async def asynchronously() -> list[MetaModelInfo]:
        async with AsyncClassmith(service.url) as other:
            return await other.meta_models()

    found = client.meta_models()
    assert [(m.name, m.domain, m.accepts_unlabeled) for m in found] == [
        ("centroids", "drawings", True), ("photos", "photographs", False),
    ]  # fmt: skip
    assert found == asyncio.run(asynchronously())
    assert found[0].document["digest"]


def test_every_form_of_the_same_images_is_the_same_task(client: Classmith, folder: Path) -> None:
    files = {name: folder / name / "1.png" for name in NAMES}
    forms = {
        "bytes": {name: path.read_bytes() for name, path in files.items()},
        "paths": files,
        "folders": {name: folder / name for name in NAMES},
        "patterns": {name: [f"{folder}/{name}/*.png"] for name in NAMES},
        "pillow": {name: Image.open(path) for name, path in files.items()},
        "arrays": {name: np.asarray(Image.open(path).convert("L")) for name, path in files.items()},
        "mappings": {name: {"images": [path], "description": ""} for name, path in files.items()},
    }
    assert len({client.create(classes).id for classes in forms.values()}) == 1
    assert client.create_from_folder(folder).id == client.create(files).id


def test_a_folder_with_unlabelled_images_and_descriptions(client: Classmith, folder: Path) -> None:
    (folder / "unlabeled").mkdir()
    (folder / "unlabeled" / "1.png").write_bytes(QUERIES[0])
    task = client.create_from_folder(folder, descriptions={NAMES[1]: "a round one"}, meta_model="centroids")
    assert [c.description for c in task.info.classes] == ["", "a round one", ""]
    assert task.info.n_unlabeled == 1


def test_many_images_are_answered_in_order_and_reported(client: Classmith) -> None:
    task = client.create(centroids.characters())
    reports: list[tuple[int, int]] = []
    found = task.predict(QUERIES * 70, progress=lambda n_done, n_images: reports.append((n_done, n_images)))
    assert [answer.label for answer in found] == NAMES * 70
    assert reports == [(100, 210), (200, 210), (210, 210)]


def test_all_tasks_are_deleted_as_they_are_listed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAGE", 1)

    async def delete_all(url: str) -> None:
        async with AsyncClassmith(url) as there:
            async for task in there.tasks():
                await task.delete()

    with live(settings) as running, Classmith(running.url) as client:
        for is_async in (False, True):
            for k in range(3):
                client.create(centroids.characters(2 + k))
            if is_async:
                asyncio.run(delete_all(running.url))
            else:
                for task in client.tasks():
                    task.delete()
            assert list(client.tasks()) == []


def test_refusals_carry_the_services_words_and_place(client: Classmith) -> None:
    with pytest.raises(RequestFailed, match="A task of 1 class cannot be made") as caught:
        client.create({"only": QUERIES[0]})
    assert (caught.value.problem.status, caught.value.problem.errors[0].where) == (422, "classes")
    task = client.create(centroids.characters())
    with pytest.raises(RequestFailed) as caught:
        task.predict([QUERIES[0], b"no image"])
    assert (caught.value.problem.status, caught.value.problem.errors[0].where) == (415, "images[1]")


def test_of_many_images_the_one_at_fault_is_named_by_its_own_number(service: Live, client: Classmith) -> None:
    many = [*QUERIES * 40, b"no image"]
    task = client.create(centroids.characters())
    with pytest.raises(RequestFailed, match=r"not a JPEG.*\(images\[120\]\)") as caught:
        task.predict(many)
    assert caught.value.problem.errors[0].where == "images[120]"

    async def ask() -> None:
        async with AsyncClassmith(service.url) as there:
            await (await there.task(task.id)).predict(many)

    with pytest.raises(RequestFailed, match=r"\(images\[120\]\)"):
        asyncio.run(ask())


GIVEN = ("cafe\u0301", "  two  words ", "plain")
KEPT = ("caf\u00e9", "two words", "plain")


def test_names_come_back_as_they_were_given(client: Classmith) -> None:
    task = client.create(dict(zip(GIVEN, centroids.characters().values(), strict=True)))
    assert (task.class_names, task.info.class_names) == (GIVEN, KEPT)
    for shown in (task, task.wait(), task.refresh()):
        found = shown.predict(QUERIES)
        assert tuple(answer.label for answer in found) == GIVEN
        assert all(set(answer.probabilities) == set(GIVEN) for answer in found)
    assert task.explain(QUERIES[0])["label"] == GIVEN[0]
    again = client.task(task.id)
    assert again == task
    assert (again.class_names, again.predict(QUERIES[0])[0].label) == (KEPT, KEPT[0])


def test_names_come_back_as_they_were_given_to_the_asynchronous_client(service: Live) -> None:
    async def ask() -> tuple[object, ...]:
        async with AsyncClassmith(service.url) as there:
            task = await there.create(dict(zip(GIVEN, centroids.characters().values(), strict=True)))
            (found,) = await (await (await task.refresh()).wait()).predict(QUERIES[1])
            return task.class_names, found.label, (await task.explain(QUERIES[2]))["label"]

    assert asyncio.run(ask()) == (GIVEN, *GIVEN[1:])


def test_progress_comes_from_the_event_stream(client: Classmith) -> None:
    seen: list[TaskInfo] = []
    with held_generations() as go_on:

        def report(info: TaskInfo) -> None:
            seen.append(info)
            go_on.set()

        task = client.create(centroids.characters(5), progress=report)
    assert task.info.state == "ready"
    assert seen[0].state in ("queued", "generating")
    assert seen[-1] == task.info
    assert len(seen) == len({info.state for info in seen})


def test_waiting_ends_in_time_and_can_go_on(client: Classmith) -> None:
    with held_generations():
        task = client.create(centroids.characters(6), wait=False)
        assert not task.info.is_finished
        with pytest.raises(TimedOut, match="goes on"):
            task.wait(timeout_s=0.3)
    assert task.wait().info.state == "ready"


def test_a_creation_ends_in_time_whatever_the_service_waits_by_itself(client: Classmith) -> None:
    with held_generations():
        began_at = time.monotonic()
        with pytest.raises(TimedOut, match="goes on"):
            client.create(centroids.characters(7), timeout_s=1.5)
        assert 1.4 < time.monotonic() - began_at < 15  # the service would wait for 30 s
    assert client.create(centroids.characters(7)).info.state == "ready"


def test_a_generation_longer_than_an_answer_may_take_is_waited_for(service: Live) -> None:
    with held_generations() as go_on, Classmith(service.url, timeout_s=8.0) as client:
        threading.Timer(9.0, go_on.set).start()
        assert client.create(centroids.characters(9)).info.state == "ready"


def test_a_failed_generation_is_an_exception_however_one_waits(tmp_path: Path) -> None:
    prototypes.meta_model(tmp_path / "meta-models", overflow=True)
    settings = Settings(meta_models=tmp_path / "meta-models", state_dir=tmp_path / "state")
    with live(settings) as service, Classmith(service.url) as client:
        for progress in (False, lambda info: None):
            with pytest.raises(TaskFailed, match="no usable weights") as caught:
                client.create(centroids.characters(), progress=progress)
            assert caught.value.problem.title == "Generation failed"


def test_a_key_opens_what_is_closed(meta_models: Path, tmp_path: Path) -> None:
    settings = Settings(meta_models=meta_models, state_dir=tmp_path, api_keys={"k": "ann"})
    with live(settings) as service:
        with Classmith(service.url) as client, pytest.raises(NotAllowed, match="key"):
            next(client.tasks())
        with Classmith(service.url, "k") as client:
            assert list(client.tasks()) == []


def test_the_asynchronous_client_does_the_same(service: Live, client: Classmith, tmp_path: Path) -> None:
    seen: list[TaskInfo] = []
    reports: list[tuple[int, int]] = []

    async def life() -> tuple[list[Prediction], list[list[Prediction]], str]:
        async with AsyncClassmith(service.url) as there:
            task = await there.create(centroids.characters(4), progress=seen.append)
            assert task.id in [listed.id async for listed in there.tasks()]
            assert (await task.refresh()).info == (await task.wait()).info
            many = await task.predict(QUERIES * 70, progress=lambda *counts: reports.append(counts))
            together = await asyncio.gather(*(task.predict(image) for image in QUERIES))
            await task.export(tmp_path / "classifier.onnx")
            await task.delete()
            with pytest.raises(NotFound):
                await there.task(task.id)
            return many, list(together), task.id

    many, together, ident = asyncio.run(life())
    again = client.create(centroids.characters(4))
    assert again.id == ident
    assert seen[-1].state == "ready"
    assert reports == [(100, 210), (200, 210), (210, 210)]
    assert many == again.predict(QUERIES * 70)
    assert [found for (found,) in together] == many[:N_CLASSES]
    ort.InferenceSession(tmp_path / "classifier.onnx")


def test_an_asynchronous_wait_ends_in_time_and_can_go_on(service: Live, folder: Path) -> None:
    async def wait() -> str:
        async with AsyncClassmith(service.url) as there:
            with held_generations():
                task = await there.create_from_folder(folder, descriptions={NAMES[0]: "new"}, wait=False)
                with pytest.raises(TimedOut):
                    await task.wait(timeout_s=0.3)
            return (await task.wait()).info.state

    assert asyncio.run(wait()) == "ready"


def test_an_asynchronous_creation_ends_in_time_and_outlasts_an_answer(service: Live) -> None:
    async def create() -> str:
        async with AsyncClassmith(service.url, timeout_s=8.0) as there:
            with held_generations() as go_on:
                with pytest.raises(TimedOut):
                    await there.create(centroids.characters(10), timeout_s=5.0)
                asyncio.get_running_loop().call_later(9.0, go_on.set)
                return (await there.create(centroids.characters(10))).info.state

    assert asyncio.run(create()) == "ready"


def test_a_bar_is_shown_where_one_is_asked_for(client: Classmith, capsys: pytest.CaptureFixture[str]) -> None:
    task = client.create(centroids.characters(8), progress=True)
    task.predict(QUERIES, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "8 classes: ready" in shown.err
    assert "0/3" in shown.err


def test_it_starts_without_the_server_and_without_numpy() -> None:
    heavy = ("fastapi", "onnxruntime", "onnx", "pydantic", "numpy", "PIL", "uvicorn", "redis", "torch")
    code = f"import sys; from service.client import Classmith; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_large_photograph_is_predicted_from_an_open_file(client: Classmith) -> None:
    buffer = io.BytesIO(centroids.photograph(size=256))
    task = client.create(centroids.characters())
    with Image.open(buffer) as photograph:
        (found,) = task.predict(photograph)
    assert found.label in NAMES
