"""A small real meta-model that reads words and images: each class's row is the mean of what is known of it.

Of its images, the mean feature (of 8 x 8 colours, through the base's convolution); of its words, a fixed projection of
the mean token embedding of the shipped encoder. Shapes as in ``models.feeds``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from models import metamodel
from models.graph import FEATURES, INPUT, LOGITS, externalise
from models.metamodel import Manifest, MetaModel, TensorSpec
from models.preprocess import PreprocessSpec

SIZE, N_CHANNELS, TOKEN_DIM, MAX_CLASSES = 8, 3, 384, 12
N_FEATURES = SIZE * SIZE * N_CHANNELS
ENCODER = "all-minilm-l6-v2"
TENSORS = {
    "tone.weight": TensorSpec(shape=(N_CHANNELS, N_CHANNELS, 1, 1), source="base"),
    "logits.weight": TensorSpec(shape=("n_classes", N_FEATURES), source="bundle"),
    "logits.bias": TensorSpec(shape=("n_classes",), source="bundle"),
}
TONE = np.random.default_rng(5).normal(0, 1, (N_CHANNELS, N_CHANNELS, 1, 1)).astype(np.float32)
PROJECTION = np.random.default_rng(6).normal(0, 0.05, (TOKEN_DIM, N_FEATURES)).astype(np.float32)


def meta_model(
    folder: Path, *, name: str = "described", accepts_images: bool = True, text_encoder: str = ENCODER
) -> MetaModel:
    """Write and load a folder below ``folder``."""
    manifest = Manifest(
        name=name, method="test", summary="Means of words and images.", domain="photographs", max_classes=MAX_CLASSES,
        max_images=150, preprocess=PreprocessSpec(SIZE, N_CHANNELS), accepts_unlabeled=False,
        accepts_images=accepts_images, accepts_descriptions=True, text_encoder=text_encoder, temperature=1.0,
        abstain_below=0.1, tensors=TENSORS, files={},
    )  # fmt: skip
    files = {
        "generator.onnx": generator(accepts_images),
        "skeleton.onnx": skeleton(),
        "base.safetensors": save({"tone.weight": TONE}),
    }
    return metamodel.write(folder / name, manifest, files)


def generator(accepts_images: bool) -> bytes:
    constants = {"two": np.array([2]), "axis": np.array([1]), "one": np.array(1, np.float32), "projection": PROJECTION,
                 "minus": np.array(-0.5, np.float32)}  # fmt: skip
    nodes = [
        *_masked_mean("tokens", "token_mask", "text"),
        helper.make_node("MatMul", ["text", "projection"], ["from_words"]),
    ]
    if accepts_images:
        nodes += _masked_mean("features", "feature_mask", "from_images")
        nodes.append(helper.make_node("Add", ["from_words", "from_images"], ["logits.weight"]))
    else:
        nodes.append(helper.make_node("Identity", ["from_words"], ["logits.weight"]))
    nodes += [
        helper.make_node("ReduceSumSquare", ["logits.weight"], ["norms"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["norms", "minus"], ["logits.bias"]),
    ]
    shapes = {"tokens": ["k", "t", TOKEN_DIM], "token_mask": ["k", "t"], "features": ["k", "n", N_FEATURES],
              "feature_mask": ["k", "n"]}  # fmt: skip
    taken = shapes if accepts_images else {name: shapes[name] for name in ("tokens", "token_mask")}
    written = {"logits.weight": ["k", N_FEATURES], "logits.bias": ["k"]}
    return _model("generator", nodes, taken, written, constants).SerializeToString()  # type: ignore[no-any-return]


def skeleton() -> bytes:
    constants = {"scale": np.array(255, np.float32)}
    weights = {name: np.zeros(spec.shape_for(5), np.float32) for name, spec in TENSORS.items()}
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "tone.weight"], ["toned"]),
        helper.make_node("Flatten", ["toned"], [FEATURES]),
        helper.make_node("Gemm", [FEATURES, "logits.weight", "logits.bias"], [LOGITS], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "skeleton",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["s", SIZE, SIZE, N_CHANNELS])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["s", "k"]),
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["s", N_FEATURES]),
        ],
        [numpy_helper.from_array(value, key) for key, value in {**constants, **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = externalise(model, set(weights)).SerializeToString()
    return data


def _masked_mean(rows: str, mask: str, mean: str) -> list[onnx.NodeProto]:
    """``rows`` (K, X, D) and ``mask`` (K, X) -> ``mean`` (K, D), zero where nothing is there."""
    return [
        helper.make_node("Unsqueeze", [mask, "two"], [f"{mask} wide"]),
        helper.make_node("Mul", [rows, f"{mask} wide"], [f"{rows} there"]),
        helper.make_node("ReduceSum", [f"{rows} there", "axis"], [f"{rows} sum"], keepdims=0),
        helper.make_node("ReduceSum", [mask, "axis"], [f"{mask} count"], keepdims=1),
        helper.make_node("Max", [f"{mask} count", "one"], [f"{mask} divisor"]),
        helper.make_node("Div", [f"{rows} sum", f"{mask} divisor"], [mean]),
    ]


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    taken: dict[str, list[str | int]],
    written: dict[str, list[str | int]],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    def values(shapes: dict[str, list[str | int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in shapes.items()]

    initializers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, values(taken), values(written), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
