"""Explanations over HTTP: words and saliency of real classifiers, and what is answered where there are none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models import explain, metamodel
from models.bundle import decode
from models.metamodel import MetaModel
from models.methods.n3 import N3
from models.preprocess import to_pixels
from models.text import Encoders
from service import explaining
from service.cli import main
from service.client import AsyncClassmith, Classmith
from service.settings import Settings
from tests.models import small_n3
from tests.models.small_n3 import CONFIG
from tests.service import centroids, described
from tests.service.live import Live, live, places, problem

JPEG = {"Content-Type": "image/jpeg"}
ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"Authorization": "Bearer key-of-bob"}
ZEBRA = "A horse-like animal, covered in black and white stripes 🦓."
OKAPI = "A reddish-brown animal with striped legs and a long blue tongue."
HALF_PRECISION = 0.02
"""Of the largest weight of a token: base, codes and rows are each rounded to 11 bits."""


@pytest.fixture(scope="module")
def made() -> N3:
    torch.set_num_threads(1)
    return small_n3.half_precise(small_n3.EXPLAINED)


@pytest.fixture(scope="module")
def folder(made: N3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """N3 as it is exported, N3 without its gradient, one that reads words and never had a gradient, and others."""
    folder = tmp_path_factory.mktemp("meta-models")
    files = files_of(metamodel.load(small_n3.explained(tmp_path_factory)))
    metamodel.write(folder / "n3", small_n3.manifest(made, name="n3"), files)
    older = {name: data for name, data in files.items() if name != "words_gradient.onnx"}
    metamodel.write(folder / "older", small_n3.manifest(made, name="older"), older)
    described.meta_model(folder, name="means")
    centroids.meta_model(folder)
    odd = centroids.meta_model(folder, name="odd")
    metamodel.write(odd.folder, odd.manifest, {**files_of(odd), "skeleton.onnx": with_a_remainder(odd)})
    return folder


def files_of(meta_model: MetaModel) -> dict[str, bytes]:
    return {name: meta_model.read(name) for name in meta_model.manifest.files}


def with_a_remainder(meta_model: MetaModel) -> bytes:
    """Its skeleton, with a node whose gradient is not known."""
    skeleton = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    (division,) = (node for node in skeleton.graph.node if node.op_type == "Div")
    division.op_type = "Mod"
    division.attribute.append(onnx.helper.make_attribute("fmod", 1))
    data: bytes = skeleton.SerializeToString()
    return data


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    keys = {"key-of-ann": "ann", "key-of-bob": "bob"}
    with live(Settings(meta_models=folder, state_dir=tmp_path_factory.mktemp("state"), api_keys=keys)) as service:
        service.http.headers.update(ANN)
        yield service


def task_of(running: Live, *classes: dict[str, Any], generator: str = "n3") -> dict[str, Any]:
    return running.task({"classes": list(classes), "generator": generator})


def zebra(**more: Any) -> dict[str, Any]:
    return {"name": "zebra", "description": ZEBRA, **more}


def okapi(**more: Any) -> dict[str, Any]:
    return {"name": "okapi", "description": OKAPI, **more}


def shown(k: int) -> list[str]:
    return [centroids.encoded(centroids.photograph(k))]


@pytest.fixture(scope="module")
def task(running: Live) -> dict[str, Any]:
    """Of words, of both, and of images alone."""
    return task_of(running, zebra(), okapi(images=shown(1)), {"name": "horse", "images": shown(2)})


def explained(running: Live, task: dict[str, Any], image: bytes | None = None) -> dict[str, Any]:
    content = image or centroids.photograph(5)
    response = running.http.post(f"/tasks/{task['id']}/explain", content=content, headers=JPEG)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert list(answer) == ["label", "probability", "words", "saliency", "notes"]
    return answer


# --- what carried a decision


def test_the_decision_explained_is_that_of_predict(running: Live, task: dict[str, Any]) -> None:
    answer = explained(running, task)
    response = running.http.post(f"/tasks/{task['id']}/predict", content=centroids.photograph(5), headers=JPEG)
    (predicted,) = response.json()["predictions"]
    assert answer["label"] == predicted["label"]
    assert answer["probability"] == pytest.approx(predicted["probability"], abs=1e-4)
    assert answer["notes"] == []


def test_words_are_those_of_the_descriptions_at_their_places(running: Live, task: dict[str, Any]) -> None:
    words = explained(running, task)["words"]
    assert list(words) == ["zebra", "okapi", "horse"]
    assert words["horse"] == []
    for name, text in (("zebra", ZEBRA), ("okapi", OKAPI)):
        assert [word["text"] for word in words[name]] == [text[word["start"] : word["end"]] for word in words[name]]
        assert all(word["weight"] != 0 for word in words[name])
    assert [word["text"] for word in words["zebra"]][:5] == ["A", "horse", "like", "animal", "covered"]


def test_a_words_weight_is_pytorchs_gradient_through_the_whole_of_n3(running: Live, made: N3) -> None:
    answer = explained(running, task_of(running, zebra(), okapi()))
    encoder = Encoders().get("all-minilm-l6-v2")
    texts = [f"zebra. {ZEBRA}", f"okapi. {OKAPI}"]
    own = [torch.tensor(embeddings.tokens) for embeddings in encoder.encode(texts)]
    tokens = nn.utils.rnn.pad_sequence(own, batch_first=True).requires_grad_()
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(rows)) for rows in own], batch_first=True)
    nothing = torch.zeros(2, 1, CONFIG.n_features)
    adaptation = made.generate(tokens, mask, nothing, nothing[..., 0])
    pixels = torch.tensor(to_pixels(centroids.photograph(5), small_n3.manifest(made).preprocess))
    logits = made.classify(adaptation, pixels[None]) / small_n3.manifest(made).temperature
    gradient = torch.autograd.grad(logits.log_softmax(-1).max(), tokens)[0]
    weights = (gradient * tokens).sum(-1).detach()
    assert answer["label"] == ("zebra", "okapi")[int(logits.argmax())]
    for k, (name, text) in enumerate(zip(("zebra", "okapi"), texts, strict=True)):
        expected = {
            (word.start - len(f"{name}. "), word.end - len(f"{name}. ")): float(weights[k, list(word.tokens)].sum())
            for word in encoder.words(text)
        }
        largest = float(weights.abs().max())
        for word in answer["words"][name]:
            assert word["weight"] == pytest.approx(expected[word["start"], word["end"]], abs=HALF_PRECISION * largest)


def test_the_same_question_has_the_same_answer_whatever_the_order_of_the_classes(running: Live) -> None:
    forwards, backwards = task_of(running, zebra(), okapi()), task_of(running, okapi(), zebra())
    one, other = explained(running, forwards), explained(running, backwards)
    assert one["label"] == other["label"]
    for name in ("zebra", "okapi"):
        weights = [[word["weight"] for word in answer["words"][name]] for answer in (one, other)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-2)


def test_the_saliency_covers_the_whole_image(running: Live, task: dict[str, Any]) -> None:
    saliency = explained(running, task)["saliency"]
    values = np.array(saliency["values"])
    assert values.shape == (saliency["height"], saliency["width"])
    assert np.abs(values).max() > 0


@pytest.mark.parametrize(
    ("classes", "generator", "note"),
    [
        ([zebra(description="", images=shown(0)), okapi(description="", images=shown(1))], "n3", "no descriptions"),
        ([zebra(), okapi()], "older", "older was exported without the gradient of its words; export it again"),
        ([zebra(), okapi()], "means", "means was exported without"),
        ([zebra(description="", images=shown(0)), okapi(description="", images=shown(1))], "centroids", "no descri"),
        ([zebra(images=shown(0)), okapi(images=shown(1))], "centroids", "centroids reads images only, so there are no"),
    ],
)  # fmt: skip
def test_where_words_cannot_be_weighed_the_image_is_and_a_note_says_why(
    running: Live, classes: list[dict[str, Any]], generator: str, note: str
) -> None:
    answer = explained(running, task_of(running, *classes, generator=generator))
    assert answer["words"] is None
    assert np.abs(np.array(answer["saliency"]["values"])).max() > 0
    assert len(answer["notes"]) == 1
    assert note in answer["notes"][0]


def test_of_a_long_text_the_words_that_were_read_are_weighed_and_a_note_says_so(running: Live) -> None:
    long = "Stripes " + "and stripes " * 160
    answer = explained(running, task_of(running, zebra(description=long), okapi()))
    assert 100 < len(answer["words"]["zebra"]) < 256
    assert "beyond what the text encoder reads" in answer["notes"][0]


def test_where_the_encoder_is_gone_the_image_is_explained_alone(folder: Path, tmp_path: Path) -> None:
    """As on a replica whose workers have it, and which has not."""
    with live(Settings(meta_models=folder, state_dir=tmp_path / "state")) as running:
        task = task_of(running, zebra(), okapi())
    (tmp_path / "empty").mkdir()
    with live(Settings(meta_models=folder, state_dir=tmp_path / "state", text_encoder=tmp_path / "empty")) as running:
        answer = explained(running, task)
    assert answer["words"] is None
    assert answer["saliency"]
    assert "pip install" in answer["notes"][0]


# --- how far the layers were changed


def test_the_adaptation_is_that_of_the_stored_bundle(running: Live, folder: Path, task: dict[str, Any]) -> None:
    layers = running.http.get(f"/tasks/{task['id']}/adaptation").json()["layers"]
    meta_model = metamodel.load(folder / "n3")
    (bundle,) = (path for path in (running.state_dir / "bundles").rglob("*") if task["id"] in path.name)
    expected = explain.relative_changes(meta_model, decode(bundle.read_bytes()).tensors)
    assert [layer["name"] for layer in layers] == [layer.name for layer in expected]
    assert [layer["relative_change"] for layer in layers] == pytest.approx([x.relative_change for x in expected])
    assert all(layer["relative_change"] > 0 for layer in layers)
    assert {layer["type"] for layer in layers} == {"convolution 1 x 1", "convolution 3 x 3"}


def test_a_task_that_adapts_nothing_has_no_layers(running: Live) -> None:
    task = task_of(running, zebra(), okapi(), generator="means")
    response = running.http.get(f"/tasks/{task['id']}/adaptation")
    assert (response.status_code, response.json()) == (200, {"layers": []})


# --- what is refused


@pytest.mark.parametrize("n_images", [0, 2])
def test_exactly_one_image_is_explained(running: Live, task: dict[str, Any], n_images: int) -> None:
    address = f"/tasks/{task['id']}/explain"
    refused = problem(running.http.post(address, json={"images": shown(0) * n_images}), 400)
    assert places(refused) == ["images"]
    assert "one" in refused["detail"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "where"),
    [
        (b"nonsense", "image/jpeg", 415, ["images[0]"]),
        (centroids.photograph(0)[:200], "image/jpeg", 400, ["images[0]"]),
        (b"", "image/png", 400, ["images[0]"]),
        (b"{", "application/json", 400, []),
        (b"words", "text/plain", 415, []),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(
    running: Live, task: dict[str, Any], body: bytes, content_type: str, status: int, where: list[str]
) -> None:
    address = f"/tasks/{task['id']}/explain"
    assert (
        places(problem(running.http.post(address, content=body, headers={"Content-Type": content_type}), status))
        == where
    )


def test_a_classifier_whose_gradient_is_not_known_answers_and_is_not_explained(running: Live) -> None:
    task = running.task(centroids.task_json() | {"generator": "odd"})
    png = {"content": centroids.drawing(0, 0), "headers": {"Content-Type": "image/png"}}
    refused = problem(running.http.post(f"/tasks/{task['id']}/explain", **png), 409)
    assert "classifiers of odd cannot be explained. Networks with Mod" in refused["detail"]
    assert running.http.post(f"/tasks/{task['id']}/predict", **png).status_code == 200


def test_an_unknown_query_parameter_is_named(running: Live, task: dict[str, Any]) -> None:
    for call in (
        running.http.post(f"/tasks/{task['id']}/explain?top_k=2", content=centroids.photograph(0), headers=JPEG),
        running.http.get(f"/tasks/{task['id']}/adaptation?top_k=2"),
    ):
        assert places(problem(call, 400)) == ["query.top_k"]


@pytest.mark.parametrize("ident", ["0" * 32, "nonsense"])
def test_an_unknown_task_is_not_there(running: Live, ident: str) -> None:
    problem(running.http.post(f"/tasks/{ident}/explain", content=centroids.photograph(0), headers=JPEG), 404)
    problem(running.http.get(f"/tasks/{ident}/adaptation"), 404)


def test_without_a_key_nothing_is_explained(running: Live, task: dict[str, Any]) -> None:
    nobody = {"Authorization": ""}
    refused = running.http.post(f"/tasks/{task['id']}/explain", content=centroids.photograph(0), headers=JPEG | nobody)
    problem(refused, 401)
    problem(running.http.get(f"/tasks/{task['id']}/adaptation", headers=nobody), 401)


def test_another_tenants_task_is_not_there(running: Live, task: dict[str, Any]) -> None:
    refused = running.http.post(f"/tasks/{task['id']}/explain", content=centroids.photograph(0), headers=JPEG | BOB)
    problem(refused, 404)
    problem(running.http.get(f"/tasks/{task['id']}/adaptation", headers=BOB), 404)


def test_more_explanations_than_may_wait_are_told_when_to_come_back(
    running: Live, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And predictions are answered meanwhile."""
    begun, go_on, real = threading.Semaphore(0), threading.Event(), explaining.decide_with_gradients

    def held(*args: Any, **kwargs: Any) -> explain.Decided:
        begun.release()
        assert go_on.wait(240)
        return real(*args, **kwargs)

    monkeypatch.setattr(explaining, "decide_with_gradients", held)
    monkeypatch.setattr(explaining, "MAX_WAITING", 1)
    address = f"/tasks/{task['id']}"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(explained, running, task)
        assert begun.acquire(timeout=240)
        try:
            refused = running.http.post(f"{address}/explain", content=centroids.photograph(0), headers=JPEG)
            assert int(refused.headers["retry-after"]) >= 1
            problem(refused, 429)
            assert 'classmith_shed_total{reason="explain_queue_full"} 1.0' in running.http.get("/metrics").text
            predicted = running.http.post(f"{address}/predict", content=centroids.photograph(0), headers=JPEG)
            assert predicted.status_code == 200
        finally:
            go_on.set()
        assert first.result()["label"]
    assert explained(running, task)["label"]


# --- from Python, and from the command line


def test_the_client_asks_for_both(running: Live, task: dict[str, Any]) -> None:
    with Classmith(running.url, "key-of-ann") as client:
        found = client.task(task["id"])
        assert found.explain(centroids.photograph(5)) == explained(running, task)
        assert found.adaptation() == running.http.get(f"/tasks/{task['id']}/adaptation").json()["layers"]


def test_the_client_that_awaits_asks_for_both(running: Live, task: dict[str, Any]) -> None:
    async def ask() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with AsyncClassmith(running.url, "key-of-ann") as client:
            found = await client.task(task["id"])
            return await found.explain(centroids.photograph(5)), await found.adaptation()

    explanation, layers = asyncio.run(ask())
    assert explanation == explained(running, task)
    assert layers == running.http.get(f"/tasks/{task['id']}/adaptation").json()["layers"]


def test_the_command_prints_the_label_and_the_strongest_words(
    running: Live, task: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.jpg").write_bytes(centroids.photograph(5))
    command = ["task", "explain", task["id"], str(tmp_path / "new.jpg"), "--url", running.url, "--key", "key-of-ann"]
    answer = explained(running, task)
    assert main(command) == 0
    label, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert label[0] == answer["label"]
    assert len(lines) == 10
    weights = [abs(float(weight)) for _, _, weight in lines]
    assert weights == sorted(weights, reverse=True)
    assert all(word in {found["text"] for found in answer["words"][name]} for name, word, _ in lines)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer


def test_the_command_says_what_is_left_out(running: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = task_of(running, zebra(), okapi(), generator="older")
    (tmp_path / "new.jpg").write_bytes(centroids.photograph(5))
    command = ["task", "explain", task["id"], str(tmp_path / "new.jpg"), "--url", running.url, "--key", "key-of-ann"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "note: The meta-model older was exported without" in printed.err
