"""Files that version 0.1.0 stored are read by this version, and answer as they did then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models import bundle, metamodel
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.preprocess import to_pixels
from models.task import decode_recipe, encode_recipe, task_id
from service.prediction.sessions import build_session
from service.settings import LOCAL_TENANT, Settings
from tests.compatibility.make_v1 import DESCRIPTION, KEEP_S, KEY, N_CLASSES
from tests.service.centroids import encoded
from tests.service.live import Live, live

V1 = Path(__file__).parent / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text())
REQUEST = json.loads((V1 / "request.json").read_text())
TASK, PREDICTIONS = EXPECTED["task"], EXPECTED["predictions"]
RECIPE, BUNDLE = (V1 / f"{name}.safetensors" for name in ("recipe", "bundle"))
ROUNDING = 1e-5
"""Answers have six decimals; a new ONNX Runtime, or a network that tasks share, may round the last places otherwise."""


@pytest.fixture(scope="module")
def meta_model() -> MetaModel:
    return metamodel.load(V1 / "meta-models" / "centroids")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Live]:
    """This version on a copy of what that version left behind."""
    shutil.copytree(V1 / "state", tmp_path / "state")
    settings = Settings(meta_models=V1 / "meta-models", state_dir=tmp_path / "state", idempotency_s=KEEP_S)
    with live(settings) as running:
        yield running


def asked() -> list[bytes]:
    return [(V1 / "images" / f"asked-{k}.png").read_bytes() for k in range(N_CLASSES)]


def assert_answers(service: Live) -> None:
    body = {"images": [encoded(image) for image in asked()]}
    answer = service.http.post(f"/tasks/{TASK['id']}/predict", json=body).raise_for_status().json()
    for found, expected in zip(answer["predictions"], PREDICTIONS, strict=True):
        assert (found["label"], found["abstain"]) == (expected["label"], expected["abstain"])
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=ROUNDING)


def test_a_recipe_reads_back_and_is_written_and_named_as_it_was(meta_model: MetaModel) -> None:
    spec = decode_recipe(RECIPE.read_bytes())
    assert [len(c.images) for c in spec.classes] == [1] * N_CLASSES
    assert spec.classes[0].description == DESCRIPTION
    assert len(spec.unlabeled) == 1
    assert encode_recipe(spec) == RECIPE.read_bytes()
    named = task_id(
        RECIPE.read_bytes(),
        tenant=LOCAL_TENANT,
        meta_model_digest=meta_model.digest,
        preprocessing=meta_model.manifest.preprocess.version,
    )
    assert named == TASK["id"]


def test_a_recipe_is_generated_to_the_weights_that_are_stored(meta_model: MetaModel) -> None:
    stored = bundle.decode(BUNDLE.read_bytes())
    made = bundle.decode(bundle.encode(OnnxGenerator().generate(meta_model, decode_recipe(RECIPE.read_bytes()))))
    assert made.header == stored.header
    assert made.tensors.keys() == stored.tensors.keys()
    for name, tensor in stored.tensors.items():
        np.testing.assert_allclose(made.tensors[name], tensor, rtol=2e-3, atol=1e-6)  # a last place of float16


def test_a_bundle_answers_as_it_did(meta_model: MetaModel) -> None:
    session = build_session(meta_model, bundle.decode(BUNDLE.read_bytes()), LOCAL_TENANT, TASK["id"])
    logits = session.run(np.stack([to_pixels(image, session.preprocess) for image in asked()]))
    exponentials = np.exp(logits / session.header.temperature)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    names = session.header.class_names
    expected = [[found["probabilities"][name] for name in names] for found in PREDICTIONS]
    np.testing.assert_allclose(probabilities, expected, atol=ROUNDING)


def test_a_state_folder_serves_on(service: Live) -> None:
    shown = service.http.get(f"/tasks/{TASK['id']}").raise_for_status().json()
    assert {name: shown[name] for name in TASK} == TASK
    assert [task["id"] for task in service.http.get("/tasks").json()["tasks"]] == [TASK["id"]]
    assert_answers(service)


def test_a_bundle_that_is_gone_is_made_again_from_the_old_recipe(service: Live) -> None:
    (service.state_dir / "bundles" / f"{TASK['id']}.safetensors").unlink()
    assert_answers(service)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": KEY}], ids=["same request", "same key"])
def test_the_request_of_then_is_the_task_of_then(service: Live, headers: dict[str, str]) -> None:
    again = service.http.post("/tasks", json=REQUEST, headers=headers)
    assert again.status_code == (201 if headers else 200), again.text  # a repeated key is answered as the first time
    assert again.json()["id"] == TASK["id"]
