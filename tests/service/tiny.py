"""A small real meta-model folder and bundles for it: the shape of the drawings networks, weights from a seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from safetensors.numpy import save

from models import metamodel
from models.bundle import Bundle, BundleHeader, decode, encode
from models.graph import FEATURES, INPUT, LOGITS, externalise
from models.metamodel import Manifest, MetaModel, TensorSpec
from models.preprocess import PreprocessSpec

SIZE, CHANNELS, N_LAYERS, EXPORTED_CLASSES = 28, 8, 4, 20


def skeleton() -> bytes:
    """Four convolutions with normalisation and pooling, then the logits; exported for 20 classes, weights external."""
    weights = {name: random_tensor(spec, EXPORTED_CLASSES, seed=99) for name, spec in tensor_specs().items()}
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    rng = np.random.default_rng(7)
    constants = {"scale": np.array(255, np.float32)}
    for i in range(N_LAYERS):
        norm = [f"norm{i}.{part}" for part in ("scale", "bias", "mean", "var")]
        constants |= {name: rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for name in norm}
        nodes += [
            helper.make_node("Conv", [f"x{i}", f"conv{i}.weight", f"conv{i}.bias"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"n{i}"]),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"]),
            helper.make_node("MaxPool", [f"r{i}"], [f"x{i + 1}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
    nodes += [
        helper.make_node("Flatten", [f"x{N_LAYERS}"], [FEATURES]),
        helper.make_node("Gemm", [FEATURES, "logits.weight", "logits.bias"], [LOGITS], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "skeleton",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n_images", SIZE, SIZE, 1])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n_images", "n_classes"]),
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n_images", CHANNELS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in {**constants, **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = externalise(model, set(weights)).SerializeToString()
    return data


def tensor_specs() -> dict[str, TensorSpec]:
    """The first layer is shared by all tasks; the others are written for each."""
    specs = {}
    for i in range(N_LAYERS):
        source, n_inputs = ("bundle", CHANNELS) if i else ("base", 1)
        specs[f"conv{i}.weight"] = TensorSpec(shape=(CHANNELS, n_inputs, 3, 3), source=source)
        specs[f"conv{i}.bias"] = TensorSpec(shape=(CHANNELS,), source=source)
    specs["logits.weight"] = TensorSpec(shape=("n_classes", CHANNELS), source="bundle")
    specs["logits.bias"] = TensorSpec(shape=("n_classes",), source="bundle")
    return specs


def random_tensor(spec: TensorSpec, n_classes: int, *, seed: int) -> NDArray[np.float32]:
    shape = spec.shape_for(n_classes)
    rng = np.random.default_rng((seed, *shape))
    return rng.normal(0, 0.6, shape).astype(np.float32)


def meta_model(folder: Path) -> MetaModel:
    """Write and load the folder (without a generator, which nothing here runs)."""
    specs = tensor_specs()
    base = {name: random_tensor(spec, 0, seed=1) for name, spec in specs.items() if spec.source == "base"}
    manifest = Manifest(
        name="tiny", method="test", summary="A test.", domain="drawings", max_classes=64, max_images=100,
        preprocess=PreprocessSpec(SIZE, 1, "pad", True), accepts_unlabeled=False, temperature=2.0, abstain_below=0.5,
        tensors=specs, files={},
    )  # fmt: skip
    return metamodel.write(folder, manifest, {"skeleton.onnx": skeleton(), "base.safetensors": save(base)})


def bundle(meta_model: MetaModel, *, n_classes: int = EXPORTED_CLASSES, seed: int = 0) -> Bundle:
    """Weights unlike those in the exported file, as read back from a bundle's bytes."""
    names = tuple(f"class {i}" for i in range(n_classes))
    manifest = meta_model.manifest
    header = BundleHeader(names, meta_model.name, meta_model.digest, manifest.temperature, manifest.abstain_below)
    written = {name: spec for name, spec in manifest.tensors.items() if spec.source == "bundle"}
    tensors = {name: random_tensor(spec, n_classes, seed=seed + 2) for name, spec in written.items()}
    return decode(encode(Bundle(header, tensors)))


def reference_model(meta_model: MetaModel, written: Bundle) -> onnx.ModelProto:
    """The same network with its weights baked in, for ONNX's reference evaluator: no ONNX Runtime involved."""
    model = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    weights = {**meta_model.base, **written.tensors}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name], np.float32), tensor.name))
    return model


def pixels(n_images: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n_images, SIZE, SIZE, 1), dtype=np.uint8)


def drawing(seed: int, *, size: int = 105, format: str = "PNG") -> bytes:
    """A few strokes on white, encoded."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (size, size), "white")
    ImageDraw.Draw(image).line([tuple(xy) for xy in rng.integers(5, size - 5, (6, 2)).tolist()], fill=0, width=3)
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()
