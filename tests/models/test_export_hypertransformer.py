"""Exported graphs compute what PyTorch computes, hold nothing they should not, and wrong ones are refused."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from models.errors import InvalidMetaModel
from models.export import MAX_RELATIVE_ERROR
from models.export_hypertransformer import Shape, bundle_names, check_parity, export_files, tensor_specs
from models.metamodel import N_CLASSES, MetaModel
from tests.models import small

SHAPES = (Shape(2, 1, 0), Shape(5, 5, 3), Shape(12, 1, 0), Shape(3, 2, 9))
"""Ways, shots and unlabelled images; the export traced none of these."""


@pytest.fixture(scope="module")
def files(exported: MetaModel) -> dict[str, bytes]:
    return {name: exported.read(name) for name in exported.manifest.files}


def edited(data: bytes, edit: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_model_from_string(data)
    edit(model)
    changed: bytes = model.SerializeToString()
    assert changed != data
    return changed


# --- parity


def test_the_graphs_agree_with_pytorch_on_tasks_of_several_shapes(files: dict[str, bytes]) -> None:
    errors = check_parity(small.model(small.EXPORTED), files, small.manifest(), SHAPES)
    assert errors.keys() == {"generator", "logits"}
    assert 0 < max(errors.values()) < MAX_RELATIVE_ERROR / 10


def test_shapes_beyond_the_models_classes_are_checked_as_far_as_they_go(files: dict[str, bytes]) -> None:
    assert check_parity(small.model(small.EXPORTED), files, small.manifest(), (Shape(20, 1, 0),))["logits"] < 1e-4


def test_graphs_of_another_model_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidMetaModel, match="do not ship this export"):
        check_parity(small.model(small.EXPORTED, seed=1), files, small.manifest(), SHAPES[:1])


def test_a_generator_with_one_wrong_weight_is_refused(files: dict[str, bytes]) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name.endswith("logits.read_out.bias"))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.05), weight.name))

    wrong = {**files, "generator.onnx": edited(files["generator.onnx"], nudge)}
    with pytest.raises(InvalidMetaModel, match="differ from PyTorch"):
        check_parity(small.model(small.EXPORTED), wrong, small.manifest(), SHAPES[:1])


def test_a_graph_that_gives_no_numbers_is_refused(files: dict[str, bytes]) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32("nan"), tensor.name))

    for name in ("generator.onnx", "skeleton.onnx"):
        wrong = {**files, name: edited(files[name], spoil)}
        with pytest.raises(InvalidMetaModel, match="do not ship this export"):
            check_parity(small.model(small.EXPORTED), wrong, small.manifest(), SHAPES[:1])


def without_rectification(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in {"LeakyRelu", "Relu"}:
            node.op_type = "Abs"
            del node.attribute[:]


def with_other_pixels(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name))


@pytest.mark.parametrize("edit", [without_rectification, with_other_pixels])
def test_a_wrong_skeleton_is_refused(files: dict[str, bytes], edit: Callable[[onnx.ModelProto], None]) -> None:
    wrong = {**files, "skeleton.onnx": edited(files["skeleton.onnx"], edit)}
    with pytest.raises(InvalidMetaModel, match="differ from PyTorch"):
        check_parity(small.model(small.EXPORTED), wrong, small.manifest(), SHAPES[:1])


# --- what the files hold


def test_the_skeleton_holds_no_trained_weight(files: dict[str, bytes]) -> None:
    model = onnx.load_model_from_string(files["skeleton.onnx"])
    tensors = {t.name: t for t in model.graph.initializer}
    for name in small.manifest().tensors:
        assert tensors[name].data_location == TensorProto.EXTERNAL
        assert not tensors[name].raw_data
        assert not tensors[name].float_data
    others = [numpy_helper.to_array(t) for name, t in tensors.items() if name not in small.manifest().tensors]
    assert sum(array.size for array in others) < 20
    for parameter in small.model(small.EXPORTED).parameters():
        if parameter.numel() > 1:
            assert parameter.detach().numpy().tobytes() not in files["skeleton.onnx"]
    assert len(files["skeleton.onnx"]) < 10_000


@pytest.mark.parametrize("file", ["generator.onnx", "skeleton.onnx", "base.safetensors"])
def test_no_file_tells_where_it_was_made(files: dict[str, bytes], file: str) -> None:
    data = files[file]
    telling = [str(Path.cwd()), str(Path.home()) + "/", "site-packages", ".py", "pkg.torch", getpass.getuser() + "@"]
    assert [text for text in telling if text.encode() in data] == []
    assert not re.search(rb"/(home|root|tmp|work|usr|mnt)/", data)


def test_the_graphs_take_and_give_what_the_contract_says(files: dict[str, bytes]) -> None:
    generator, skeleton = (
        onnx.load_model_from_string(files[f"{name}.onnx"]).graph for name in ("generator", "skeleton")
    )
    assert [i.name for i in generator.input] == ["support", "labels", "slots"]
    assert [o.name for o in generator.output] == bundle_names(small.EXPORTED)
    assert [i.name for i in skeleton.input] == ["pixels"]
    assert [o.name for o in skeleton.output] == ["logits", "features"]


def test_the_other_architecture_exports_too_and_the_model_stays_as_it_was() -> None:
    """Slices by place in the kernel, encoder and decoder, statistics of the base, unit features of a layer not pooled.

    In training mode: export copies.
    """
    other = {
        "allocation": "spatial", "architecture": "encoder-decoder", "normalisation": "base", "unit_features": True,
        "pools_last": False,
    }  # fmt: skip
    config = replace(small.EXPORTED, n_conv_layers=2, n_generated_layers=2, channels=2, **other)
    model = small.model(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = export_files(model)
    assert model.training
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    check_parity(model, made, small.manifest(config), (Shape(2, 1, 0), Shape(4, 2, 1)))


# --- the tensors of a bundle, and of the base


@pytest.mark.parametrize(
    ("changes", "n_shared"),
    [
        ({}, 0),
        ({"n_generated_layers": 1}, 0),
        ({"n_generated_layers": 2, "normalisation": "base"}, 0),
        ({"n_generated_layers": 1, "normalisation": "base"}, 4),
    ],
)
def test_every_weight_of_the_target_has_a_source(changes: dict, n_shared: int) -> None:
    """Convolutions that all tasks share are in the base; where statistics of the support are folded in, none are."""
    config = replace(small.CONFIG, **changes)
    specs = tensor_specs(config)
    assert len(specs) == 2 * 4 + 2
    assert {name for name, spec in specs.items() if spec.source == "bundle"} == set(bundle_names(config))
    assert sum(spec.source == "base" for spec in specs.values()) == 2 * n_shared
    assert specs["logits.weight"].shape == (N_CLASSES, config.feature_dim)
    assert specs["logits.bias"].shape == (N_CLASSES,)
    assert specs["conv2.weight"].shape == (4, 4, 3, 3)
