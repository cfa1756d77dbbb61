"""A task's network in 8-bit integers: several times as fast on processors with instructions for them.

``training quantise`` writes, beside an exported meta-model, ``skeleton.int8.onnx``: the skeleton with the ranges of all
activations in it, its convolutions' weights external. A task's own weights are rounded here, when it is loaded: each
output channel by its largest weight, biases in the scale of what they are added to (Jacob et al., *Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, 2018, section 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import InvalidMetaModel
from models.metamodel import MetaModel

SKELETON, FACTS = "skeleton.int8.onnx", "int8.json"
LARGEST = 127
N_TIMED = 8
"""Images of a run whose speed the facts compare."""
QUANTISED = "_quantized"
"""Behind the name of a weight or bias, in the names that ONNX Runtime's quantisation tool gives."""
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})
"""Without one of them, sums of products of 8-bit integers may overflow on x86, and are no faster anywhere."""


class Facts(BaseModel):
    """What ``int8.json`` says: of which meta-model it is, and what quantising changed (``training quantise``)."""

    model_config = ConfigDict(extra="forbid")
    meta_model_digest: str
    sha256: str
    """Of the skeleton."""
    command: str
    columns: list[dict[str, Any]]


def read(meta_model: MetaModel) -> tuple[bytes, Facts] | None:
    """The quantised skeleton and its facts, where there is one; raises InvalidMetaModel where it is another's."""
    path = meta_model.folder / FACTS
    if not path.is_file():
        return None
    remedy = f"quantise again (`training quantise {meta_model.folder}`), or delete {path}"
    try:
        facts = Facts.model_validate_json(path.read_bytes())
        skeleton = (meta_model.folder / SKELETON).read_bytes()
    except (ValidationError, OSError) as error:
        raise InvalidMetaModel(f"{path} or {SKELETON} beside it cannot be read; {remedy}.") from error
    if facts.meta_model_digest != meta_model.digest or facts.sha256 != hashlib.sha256(skeleton).hexdigest():
        raise InvalidMetaModel(f"{SKELETON} of {meta_model.name} is of another export or was changed; {remedy}.")
    return skeleton, facts


def is_worthwhile() -> bool:
    """Whether this processor has instructions for it; where that cannot be read, it has none."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not INSTRUCTIONS.isdisjoint(flags.split())


def weights(skeleton: bytes, floats: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Every external weight of a quantised skeleton, of the float ones by their names in the plain skeleton."""
    graph = onnx.load_model_from_string(skeleton).graph
    external = {t.name: t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}
    constants = {t.name: t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL}
    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    found = {name: floats[name] for name in external if name in floats}
    for conv in (node for node in graph.node if node.op_type == "Conv" and node.input[1] in made):
        image, weight, bias = (made[name] for name in conv.input)
        name, other = (node.input[0].removesuffix(QUANTISED) for node in (weight, bias))
        rows = np.asarray(floats[name], np.float32)
        scales = np.abs(rows).reshape(len(rows), -1).max(axis=1) / LARGEST
        scales = np.where(scales > 0, scales, 1).astype(np.float32)
        whole = np.rint(rows / scales.reshape(-1, *[1] * (rows.ndim - 1)))
        sums = scales * float(numpy_helper.to_array(constants[image.input[1]]))
        found[weight.input[0]], found[weight.input[1]] = whole.astype(np.int8), scales
        found[bias.input[0]] = np.rint(np.asarray(floats[other], np.float64) / sums).astype(np.int32)
        found[bias.input[1]] = sums.astype(np.float32)
    return found
