"""The gradient of a generator with respect to its tokens in ONNX Runtime: what the words of a task carried.

``words_gradient.onnx`` (written by ``models.explain_export``) takes what the generator takes and, for each tensor of
the bundle, the gradient of some number with respect to it; it gives that number's gradient with respect to the tokens.
The weights that generator.onnx has as well are not in it: they are external, called as they are in generator.onnx.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from models.runtime import make_session

WORDS_GRADIENT: Final = "words_gradient.onnx"
SHARED, TRANSPOSED = "generator.onnx/", "/transposed"
"""Before the name of a weight: it is that of generator.onnx; and behind it: that matrix transposed."""


def make_words_session(words_gradient: bytes, generator: bytes) -> ort.InferenceSession:
    """A session of ``words_gradient.onnx`` with the weights it takes from ``generator.onnx``."""
    graph = onnx.load_model_from_string(words_gradient).graph
    there = {tensor.name: tensor for tensor in onnx.load_model_from_string(generator).graph.initializer}

    def read(name: str) -> NDArray[np.generic]:
        array: NDArray[np.generic] = numpy_helper.to_array(there[name.removeprefix(SHARED).removesuffix(TRANSPOSED)])
        return array.T if name.endswith(TRANSPOSED) else array

    external = [t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    return make_session(words_gradient, {name: read(name) for name in external})
