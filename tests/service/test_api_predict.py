"""Predictions over HTTP: three ways to send images, one answer for each, whatever it came with."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime as ort
import pytest
from PIL import Image

from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live, places, problem
from tests.service.processes import until

N_CLASSES = 5
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def address(service: Live) -> str:
    return f"/tasks/{service.task(centroids.task_json(centroids.characters(N_CLASSES)))['id']}/predict"


def predictions(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def test_one_raw_image_is_classified(service: Live, address: str) -> None:
    response = service.http.post(address, content=drawing(3, 0), headers=PNG)
    (found,) = predictions(response)
    assert found["label"] == "character 3"
    assert found["probabilities"]["character 3"] == found["probability"]
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert len(found["probabilities"]) == N_CLASSES
    assert isinstance(found["abstain"], bool)
    timings = {part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")}
    assert timings == {"queue", "decode", "run", "total"}


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_three_formats_are_taken(service: Live, address: str, format: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(drawing(2, 0))).convert("L").save(buffer, format)
    headers = {"Content-Type": f"image/{format.lower()}"}
    response = service.http.post(address, content=buffer.getvalue(), headers=headers)
    assert predictions(response)[0]["label"] == "character 2"


def test_json_multipart_and_raw_give_the_same_answers(service: Live, address: str) -> None:
    images = [drawing(k, 1) for k in range(N_CLASSES)]
    as_json = service.http.post(address, json={"images": [centroids.encoded(image) for image in images]})
    files = [(f"field {k % 2}", (f"{k}.png", image, "image/png")) for k, image in enumerate(images)]
    as_files = service.http.post(address, files=files)
    one_by_one = [predictions(service.http.post(address, content=image, headers=PNG))[0] for image in images]
    assert predictions(as_json) == predictions(as_files) == one_by_one


def test_an_answer_depends_on_its_own_image_alone(service: Live, address: str) -> None:
    images = [centroids.encoded(drawing(k, 2)) for k in range(N_CLASSES)]
    forwards = predictions(service.http.post(address, json={"images": images}))
    backwards = predictions(service.http.post(address, json={"images": images[::-1]}))
    assert forwards == backwards[::-1]


def test_top_k_gives_the_best_classes_only(service: Live, address: str) -> None:
    whole = predictions(service.http.post(address, content=drawing(1, 1), headers=PNG))[0]
    best = predictions(service.http.post(f"{address}?top_k=2", content=drawing(1, 1), headers=PNG))[0]
    assert list(best["probabilities"].items()) == list(whole["probabilities"].items())[:2]
    many = predictions(service.http.post(f"{address}?top_k=1000", content=drawing(1, 1), headers=PNG))[0]
    assert many == whole


def with_a_speck(image: bytes, k: int) -> bytes:
    """The drawing with one black pixel, elsewhere for each ``k``: classes of equal images are refused."""
    opened, buffer = Image.open(io.BytesIO(image)), io.BytesIO()
    opened.putpixel((13 * k + 6, 6), 0)
    opened.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_classifier_says_when_it_does_not_know(service: Live) -> None:
    same = drawing(0, 0)
    task = service.task(centroids.task_json({f"class {k}": with_a_speck(same, k) for k in range(6)}))
    (found,) = predictions(service.http.post(f"/tasks/{task['id']}/predict", content=same, headers=PNG))
    assert found["probability"] == pytest.approx(1 / 6, abs=1e-4)
    assert found["abstain"] is True


def test_permuting_the_classes_permutes_the_answers(service: Live) -> None:
    shown = centroids.characters(4, hand=3)
    turned = dict(reversed(shown.items()))
    tasks = [service.task(centroids.task_json(images)) for images in (shown, turned)]
    assert tasks[0]["id"] != tasks[1]["id"]
    answers = [
        predictions(service.http.post(f"/tasks/{task['id']}/predict", content=drawing(1, 4), headers=PNG))[0]
        for task in tasks
    ]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"])


def test_a_broken_image_is_named_and_fails_its_request_alone(service: Live, address: str) -> None:
    whole, broken = centroids.encoded(drawing(0, 0)), centroids.encoded(drawing(0, 0)[:80])
    refused = problem(service.http.post(address, json={"images": [whole, broken, whole]}), 400)
    assert places(refused) == ["images[1]"]
    assert len(predictions(service.http.post(address, json={"images": [whole, whole]}))) == 2


def test_no_images_and_too_many_are_refused(settings: Settings) -> None:
    with live(settings.model_copy(update={"max_images_per_predict": 3})) as running:
        address = f"/tasks/{running.task(centroids.task_json())['id']}/predict"
        image = centroids.encoded(drawing(0, 0))
        assert places(problem(running.http.post(address, json={"images": []}), 400)) == ["images"]
        assert places(problem(running.http.post(address, json={"images": [image] * 4}), 413)) == ["images"]
        assert len(predictions(running.http.post(address, json={"images": [image] * 3}))) == 3
        files = [("image", ("1.png", drawing(0, 0), "image/png"))] * 4
        problem(running.http.post(address, files=files), 413)


def test_a_full_queue_is_answered_with_a_time_to_come_back(settings: Settings) -> None:
    changes = {"deadline_s": 1e-9, "n_runners": 1, "max_batch": 8}
    with live(settings.model_copy(update=changes)) as running:
        address = f"/tasks/{running.task(centroids.task_json())['id']}/predict"
        body = {"images": [centroids.encoded(drawing(k % 24, 0)) for k in range(200)]}
        served = running.http.post(address, json=body)
        assert served.status_code == 200  # an empty queue takes whatever comes
        refused: list[Any] = []
        until(lambda: bool(refused.extend(r for r in at_once(running, address, body, n=6) if r.status_code != 200))
              or bool(refused))  # fmt: skip
        for response in refused:
            problem(response, 429)
            assert int(response.headers["retry-after"]) >= 1


def at_once(running: Live, address: str, body: dict[str, Any], *, n: int) -> list[Any]:
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda _: running.http.post(address, json=body), range(n)))


@pytest.mark.parametrize("kind", ["image/png", "application/json"])
def test_a_fault_of_the_runtime_is_counted_as_ours(
    service: Live, address: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory")

    body = drawing(0, 0) if kind == "image/png" else json.dumps({"images": [centroids.encoded(drawing(0, 0))]}).encode()
    before = counted(service)
    monkeypatch.setattr(ort.InferenceSession, "run", out_of_memory)
    failed = service.http.post(address, content=body, headers={"Content-Type": kind, "X-Request-Id": "abc-123"})
    found = problem(failed, 500)
    assert (found["request_id"], found["title"]) == ("abc-123", "Internal error")
    assert "memory" not in failed.text
    assert {"server-timing", "x-content-type-options"} <= set(failed.headers)
    assert counted(service) - before == Counter({"500": 1})


def counted(service: Live) -> Counter[str]:
    """Predictions by their status, as the metrics count them."""
    pattern = r'request_total\{code="(\d+)",endpoint="/tasks/\{task_id\}/predict"\} (\d+)'
    return Counter({code: int(n) for code, n in re.findall(pattern, service.http.get("/metrics").text)})


def test_a_lost_bundle_is_made_again_the_same(settings: Settings) -> None:
    changes = {"session_bytes": 1, "min_residency_s": 0.0}
    with live(settings.model_copy(update=changes)) as running:
        tasks = [running.task(centroids.task_json(centroids.characters(n)))["id"] for n in (3, 4)]
        first, other = (f"/tasks/{ident}/predict" for ident in tasks)
        before = predictions(running.http.post(first, content=drawing(1, 1), headers=PNG))
        (bundle,) = (path for path in (settings.state_dir / "bundles").rglob("*") if tasks[0] in path.name)
        written = bundle.read_bytes()
        for damage in (bundle.unlink, lambda: bundle.write_bytes(written[:-7]), lambda: bundle.write_bytes(b"")):
            damage()
            predictions(running.http.post(other, content=drawing(1, 1), headers=PNG))  # evicts the first from memory
            assert predictions(running.http.post(first, content=drawing(1, 1), headers=PNG)) == before
            assert bundle.read_bytes() == written
