"""A small real meta-model that works from end to end: nearest centroid on 8 x 8 grey pixels. And drawings for it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save

from models import metamodel
from models.graph import FEATURES, INPUT, LOGITS, externalise
from models.metamodel import Manifest, MetaModel, TensorSpec
from models.preprocess import PreprocessSpec
from service.demo.alphabet import drawing
from tests.service.prototypes import N_PIXELS, SIZE, generator

MAX_CLASSES, MAX_IMAGES = 12, 150
TENSORS = {
    "logits.weight": TensorSpec(shape=("n_classes", N_PIXELS), source="bundle"),
    "logits.bias": TensorSpec(shape=("n_classes",), source="bundle"),
}


def meta_model(
    folder: Path,
    *,
    name: str = "centroids",
    domain: Literal["drawings", "photographs"] = "drawings",
    accepts_unlabeled: bool = True,
    n_loops: int = 0,
) -> MetaModel:
    """Write and load a folder below ``folder``. ``n_loops``: makes the generator slow (see prototypes)."""
    manifest = Manifest(
        name=name, method="test", summary="Nearest centroid.", domain=domain, max_classes=MAX_CLASSES,
        max_images=MAX_IMAGES, preprocess=PreprocessSpec(SIZE, 1), accepts_unlabeled=accepts_unlabeled,
        temperature=1.0, abstain_below=0.2, tensors=TENSORS, files={},
    )  # fmt: skip
    files = {"generator.onnx": generator(n_loops, 255.0), "skeleton.onnx": skeleton(), "base.safetensors": save({})}
    return metamodel.write(folder / name, manifest, files)


def skeleton() -> bytes:
    constants = {"scale": np.array(255, np.float32)}
    weights = {name: np.zeros(spec.shape_for(5), np.float32) for name, spec in TENSORS.items()}
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], [FEATURES]),
        helper.make_node("Gemm", [FEATURES, "logits.weight", "logits.bias"], [LOGITS], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "skeleton",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n_images", SIZE, SIZE, 1])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["n_images", "n_classes"]),
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n_images", N_PIXELS]),
        ],
        [numpy_helper.from_array(value, key) for key, value in {**constants, **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = externalise(model, set(weights)).SerializeToString()
    return data


def characters(n_classes: int = 3, *, hand: int = 0) -> dict[str, bytes]:
    """One drawing of each of some characters, by one hand."""
    return {f"character {k}": drawing(k, hand) for k in range(n_classes)}


def photograph(seed: int = 0, *, size: int = 64, format: str = "JPEG") -> bytes:
    """Smooth colour."""
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(low).resize((size, size), Image.Resampling.BILINEAR).save(buffer, format)
    return buffer.getvalue()


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def task_json(images: dict[str, bytes] | None = None, **more: Any) -> dict[str, Any]:
    """The body of a POST /tasks with one image a class."""
    shown = characters() if images is None else images
    return {"classes": [{"name": name, "images": [encoded(image)]} for name, image in shown.items()], **more}
