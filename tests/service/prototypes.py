"""A small real meta-model whose generator runs: it writes class prototypes, in pixel space. And tasks for it.

Shapes: S images of 8 x 8 grey pixels (P = 64 values), K classes. Written for a task: ``conv.weight`` from the mean of
all images, ``logits.weight`` (K, P) from each class's own, ``logits.bias`` (K,).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from models import metamodel
from models.metamodel import Manifest, MetaModel, TensorSpec
from models.preprocess import PreprocessSpec
from models.task import ClassSpec, Pixels, TaskSpec, encode_recipe, task_id
from service.ports import ClassSummary, TaskRecord

SIZE, N_PIXELS, MAX_CLASSES = 8, 64, 10
SLOW_LOOPS = 50_000
"""Trips of a loop that changes nothing: a second or so, long enough to be killed in the middle."""


def meta_model(folder: Path, *, n_loops: int = 0, name: str = "prototypes", overflow: bool = False) -> MetaModel:
    """Write and load the folder. ``n_loops``: makes the generator slow. ``overflow``: makes it write infinities."""
    manifest = Manifest(
        name=name, method="test", summary="A test.", domain="drawings", max_classes=MAX_CLASSES, max_images=50,
        preprocess=PreprocessSpec(SIZE, 1), accepts_unlabeled=True, temperature=2.0, abstain_below=0.25, files={},
        tensors={
            "conv.weight": TensorSpec(shape=(2, 1, 3, 3), source="bundle"),
            "logits.weight": TensorSpec(shape=("n_classes", N_PIXELS), source="bundle"),
            "logits.bias": TensorSpec(shape=("n_classes",), source="bundle"),
            "norm.scale": TensorSpec(shape=(2,), source="base"),
        },
    )  # fmt: skip
    base = save({"norm.scale": np.ones(2, np.float32)})
    scale = 0.0 if overflow else 255.0
    files = {"generator.onnx": generator(n_loops, scale), "skeleton.onnx": b"unused here", "base.safetensors": base}
    return metamodel.write(folder / name, manifest, files)


def generator(n_loops: int, scale: float) -> bytes:
    """The graph: support, labels, slots -> the written tensors."""
    constants: dict[str, np.ndarray] = {
        "scale": np.array(scale, np.float32), "axis0": np.array([0]), "axis1": np.array([1]),
        "kernel": np.array([2, 1, 3, 3]), "first": np.array([0]), "last": np.array([18]),
        "minus": np.array(-0.5, np.float32), "nothing": np.array(0, np.float32),
        "n_loops": np.array(n_loops), "go": np.array(True),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Loop", ["n_loops", "go", "nothing"], ["zero"], body=_loop_body()),
        node("Cast", ["support"], ["floats"], to=TensorProto.FLOAT),
        node("Div", ["floats", "scale"], ["scaled"]),
        node("Add", ["scaled", "zero"], ["shifted"]),
        node("Flatten", ["shifted"], ["x"]),
        node("Unsqueeze", ["slots", "axis1"], ["rows"]),
        node("Unsqueeze", ["labels", "axis0"], ["columns"]),
        node("Equal", ["rows", "columns"], ["same"]),
        node("Cast", ["same"], ["members"], to=TensorProto.FLOAT),
        node("ReduceSum", ["members", "axis1"], ["counts"], keepdims=1),
        node("MatMul", ["members", "x"], ["sums"]),
        node("Div", ["sums", "counts"], ["logits.weight"]),
        node("ReduceSumSquare", ["logits.weight"], ["norms"], axes=[1], keepdims=0),
        node("Mul", ["norms", "minus"], ["logits.bias"]),
        node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=0),
        node("Slice", ["mean", "first", "last"], ["head"]),
        node("Reshape", ["head", "kernel"], ["conv.weight"]),
    ]
    inputs = [
        helper.make_tensor_value_info("support", TensorProto.UINT8, ["n_images", SIZE, SIZE, 1]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["n_images"]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, ["n_classes"]),
    ]
    outputs = [
        helper.make_tensor_value_info("conv.weight", TensorProto.FLOAT, [2, 1, 3, 3]),
        helper.make_tensor_value_info("logits.weight", TensorProto.FLOAT, ["n_classes", N_PIXELS]),
        helper.make_tensor_value_info("logits.bias", TensorProto.FLOAT, ["n_classes"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "generator", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def spec(*, n_classes: int = 3, n_shots: int = 2, n_unlabeled: int = 1, seed: int = 0) -> TaskSpec:
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[Pixels, ...]:
        return tuple(rng.integers(0, 256, (n, SIZE, SIZE, 1), dtype=np.uint8))

    classes = tuple(ClassSpec(f"class {k}", f"seed {seed}", draw(n_shots)) for k in range(n_classes))
    return TaskSpec(classes, draw(n_unlabeled))


def task(meta_model: MetaModel, wanted: TaskSpec | None = None, *, tenant: str = "ann") -> tuple[TaskRecord, bytes]:
    """A new task's record and recipe, as the use case makes them."""
    wanted = wanted or spec()
    recipe = encode_recipe(wanted)
    ident = task_id(
        recipe, tenant=tenant, meta_model_digest=meta_model.digest, preprocessing=meta_model.manifest.preprocess.version
    )
    classes = tuple(ClassSummary(c.name, c.description, len(c.images)) for c in wanted.classes)
    return TaskRecord(tenant, ident, "queued", classes, len(wanted.unlabeled), meta_model.name, time.time()), recipe


def _loop_body() -> onnx.GraphProto:
    """Carry the zero through a sine: constant folding cannot take the loop away."""
    return helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Sin", ["carried_in"], ["carried_out"])],
        "loop",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_in", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, []),
        ],
    )
