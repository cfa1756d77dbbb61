"""A skeleton for any number of classes, and a classifier in one file that plain ONNX Runtime runs alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from models import decision
from models.graph import FEATURES, INPUT, LOGITS, PROBABILITIES, self_contained, skeleton_for
from models.metamodel import MetaModel
from models.preprocess import PreprocessSpec
from models.runtime import make_session
from tests.models import small


def external(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}


@pytest.mark.parametrize("n_classes", [2, 5, 12])
def test_a_skeleton_is_shaped_for_any_number_of_classes(exported: MetaModel, n_classes: int) -> None:
    skeleton = skeleton_for(exported.read("skeleton.onnx"), exported.manifest, n_classes)
    shapes = {name: spec.shape_for(n_classes) for name, spec in exported.manifest.tensors.items()}
    assert external(onnx.load_model_from_string(skeleton)) == shapes
    session = make_session(skeleton, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    logits, features = session.run([LOGITS, FEATURES], {INPUT: small.pixels(3)})
    assert logits.shape == (3, n_classes)
    assert features.shape == (3, small.EXPORTED.feature_dim)


@pytest.mark.parametrize("n_classes", [2, 5, 12])
def test_a_self_contained_model_gives_the_services_answers(exported: MetaModel, n_classes: int) -> None:
    bundle = small.stored(exported, small.spec(shots=(1,) * n_classes))
    skeleton = skeleton_for(exported.read("skeleton.onnx"), exported.manifest, n_classes)
    session, pixels = make_session(skeleton, {**exported.base, **bundle.tensors}), small.pixels(7)
    (logits,) = session.run([LOGITS], {INPUT: pixels})
    plain = ort.InferenceSession(self_contained(exported, bundle.header, bundle.tensors))
    found = plain.run([PROBABILITIES, LOGITS], {INPUT: pixels})
    scale = np.abs(logits).max()
    np.testing.assert_allclose(found[1], logits, atol=1e-5 * scale)
    np.testing.assert_allclose(found[0], decision.probabilities(logits, bundle.header.temperature), atol=1e-5)
    one_by_one = np.concatenate([plain.run([PROBABILITIES], {INPUT: pixels[i : i + 1]})[0] for i in range(7)])
    np.testing.assert_allclose(one_by_one, found[0], atol=1e-5)


def test_a_self_contained_model_says_how_to_use_it(exported: MetaModel) -> None:
    bundle = small.stored(exported, small.spec())
    session = ort.InferenceSession(self_contained(exported, bundle.header, bundle.tensors))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["class 0", "class 1", "class 2"]
    assert PreprocessSpec(**json.loads(about["preprocess"])) == exported.manifest.preprocess
    assert float(about["temperature"]) == 1.5
    assert float(about["abstain_below"]) == 0.4
    assert (about["meta_model"], about["meta_model_digest"]) == (exported.name, exported.digest)
    assert [o.name for o in session.get_outputs()] == [PROBABILITIES, LOGITS, FEATURES]
    assert [o.shape[-1] for o in session.get_outputs()[:2]] == [3, 3]  # or ONNX Runtime warns at every run
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == (INPUT, "tensor(uint8)", [28, 28, 1])


def test_a_self_contained_model_runs_without_the_project(exported: MetaModel, tmp_path: Path) -> None:
    """In a process that can import nothing of ours, from one file."""
    bundle, pixels = small.stored(exported, small.spec()), small.pixels(2)
    model = self_contained(exported, bundle.header, bundle.tensors)
    assert not external(onnx.load_model_from_string(model))
    (tmp_path / "model.onnx").write_bytes(model)
    np.save(tmp_path / "pixels.npy", pixels)
    program = (
        "import numpy as np, onnxruntime as ort, sys\n"
        "session = ort.InferenceSession('model.onnx')\n"
        "np.save('found.npy', session.run(['probabilities'], {'pixels': np.load('pixels.npy')})[0])\n"
        "assert 'models' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    expected = ort.InferenceSession(model).run([PROBABILITIES], {INPUT: pixels})[0]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)
