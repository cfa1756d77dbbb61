"""A meta-model around ResNet-18 at 224 px, random weights: a network of ordinary size, for the yardsticks.

The graph is He et al., Deep Residual Learning, 2016, table 1, with normalisation folded into the convolutions, as any
deployed one has it. A task writes the logits layer; its "generator" looks rows up by slot, whatever the images show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from models import metamodel
from models.graph import FEATURES, INPUT, LOGITS, externalise
from models.metamodel import Manifest, MetaModel, TensorSpec
from models.preprocess import PreprocessSpec

NAME, SIZE, MAX_CLASSES, N_FEATURES = "resnet-18", 224, 64, 512
WIDTHS = (64, 128, 256, 512)
Arrays = dict[str, NDArray[np.float32]]


def resnet18(folder: Path) -> MetaModel:
    """Write and load the folder below ``folder``."""
    nodes, base = trunk()
    head = {"logits.weight": ("n_classes", N_FEATURES), "logits.bias": ("n_classes",)}
    specs = {name: TensorSpec(shape=array.shape, source="base") for name, array in base.items()}
    specs |= {name: TensorSpec(shape=shape, source="bundle") for name, shape in head.items()}
    manifest = Manifest(
        name=NAME, method="bench", summary="ResNet-18, random.", domain="photographs", max_classes=MAX_CLASSES,
        max_images=512, preprocess=PreprocessSpec(SIZE, 3, "crop"), accepts_unlabeled=False, temperature=1.0,
        abstain_below=0.0, tensors=specs, files={},
    )  # fmt: skip
    files = {"skeleton.onnx": skeleton(nodes, base), "generator.onnx": generator(), "base.safetensors": save(base)}
    return metamodel.write(folder / NAME, manifest, files)


def trunk() -> tuple[list[onnx.NodeProto], Arrays]:
    """Nodes from "x" to the features, and their weights."""
    rng, base = np.random.default_rng(0), Arrays()
    nodes: list[onnx.NodeProto] = []

    def conv(x: str, name: str, shape: tuple[int, int, int], stride: int) -> str:
        n_out, n_in, size = shape
        scale = np.sqrt(2 / (n_in * size * size))
        base[f"{name}.weight"] = rng.normal(0, scale, (n_out, n_in, size, size)).astype(np.float32)
        base[f"{name}.bias"] = rng.normal(0, 0.01, n_out).astype(np.float32)
        weights, pads = [f"{name}.weight", f"{name}.bias"], [size // 2] * 4
        nodes.append(helper.make_node("Conv", [x, *weights], [name], pads=pads, strides=[stride] * 2))
        return name

    def then(op: str, inputs: list[str], name: str, **options: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], **options))
        return name

    x = then("Relu", [conv("x", "stem", (64, 3, 7), 2)], "stem.relu")
    x = then("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for name, n_in, n_out, stride in blocks():
        inner = then("Relu", [conv(x, f"{name}.conv1", (n_out, n_in, 3), stride)], f"{name}.relu1")
        inner = conv(inner, f"{name}.conv2", (n_out, n_out, 3), 1)
        shortcut = x if n_in == n_out else conv(x, f"{name}.shortcut", (n_out, n_in, 1), stride)
        x = then("Relu", [then("Add", [inner, shortcut], f"{name}.sum")], f"{name}.relu2")
    then("Flatten", [then("GlobalAveragePool", [x], "pooled")], FEATURES)
    return nodes, base


def blocks() -> Iterator[tuple[str, int, int, int]]:
    """Name, channels in, channels out and stride of the eight residual blocks."""
    n_in = WIDTHS[0]
    for stage, n_out in enumerate(WIDTHS):
        for block in range(2):
            yield f"stage{stage}.block{block}", n_in, n_out, 2 if stage and not block else 1
            n_in = n_out


def skeleton(nodes: list[onnx.NodeProto], base: Arrays) -> bytes:
    weights = {name: array.shape for name, array in base.items()}
    weights |= {"logits.weight": (5, N_FEATURES), "logits.bias": (5,)}
    first = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["x"], perm=[0, 3, 1, 2]),
    ]
    last = helper.make_node("Gemm", [FEATURES, "logits.weight", "logits.bias"], [LOGITS], transB=1)
    constants = {"mean": np.float32(255 * 0.45), "std": np.float32(255 * 0.225)}
    graph = helper.make_graph(
        [*first, *nodes, last],
        "skeleton",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n_images", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n_images", "n_classes"]),
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n_images", N_FEATURES]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = externalise(model, set(weights)).SerializeToString()
    return data


def generator() -> bytes:
    rng = np.random.default_rng(1)
    rows = {
        "logits.weight": rng.normal(0, 0.3, (MAX_CLASSES, N_FEATURES)).astype(np.float32),
        "logits.bias": rng.normal(0, 0.3, MAX_CLASSES).astype(np.float32),
    }
    nodes = [helper.make_node("Gather", [f"all {name}", "slots"], [name]) for name in rows]
    graph = helper.make_graph(
        nodes,
        "generator",
        [
            helper.make_tensor_value_info("support", TensorProto.UINT8, ["n_images", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["n_images"]),
            helper.make_tensor_value_info("slots", TensorProto.INT64, ["n_classes"]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n_classes", *a.shape[1:]])
            for name, a in rows.items()
        ],
        [numpy_helper.from_array(array, f"all {name}") for name, array in rows.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
