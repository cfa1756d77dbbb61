"""What of a machine ONNX Runtime can use besides the processor, and for which networks that pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.errors import MissingDevice
from models.runtime import CUDA

FATAL_ONLY = 4
MIN_BYTES = 4_000_000
"""A network with less weights is done before its images would be on the device and its logits back."""


def providers_on(device: str) -> list[str]:
    """The execution providers of "cuda", "cpu" or "auto", best first; raises MissingDevice where there is none."""
    if device == "cpu":
        return []
    if CUDA not in ort.get_available_providers():
        problem = "This ONNX Runtime has no CUDA: put onnxruntime-gpu in its place, or use the processor."
    elif not starts(CUDA):
        problem = "CUDA does not start here: see to the GPU, its driver and its libraries, or use the processor."
    else:
        return [CUDA]
    if device == "cuda":
        raise MissingDevice(problem)
    return []


@cache
def starts(provider: str) -> bool:
    """Whether a graph can be run there: what a build of ONNX Runtime has says nothing of the machine."""
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("given", "found"))
    graph = helper.make_graph([helper.make_node("Abs", ["given"], ["found"])], "probe", [given], [found])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
        session.run(None, {"given": np.ones(1, np.float32)})
    except Exception:  # ONNX Runtime's exceptions share no base class
        return False
    has_it: bool = session.get_providers()[0] == provider
    return has_it


def worth_it(weights: Iterable[NDArray[np.generic]], providers: Sequence[str]) -> Sequence[str]:
    """The same providers for a network with these weights, or none where it is done sooner by the processor."""
    return providers if sum(array.nbytes for array in weights) >= MIN_BYTES else ()
