"""The paper's transductive answers: each convolution normalised with the statistics of the query batch.

A task's network has the statistics of its support set folded into its weights, so that every query is answered on its
own. The paper normalises with those of the batch that is being classified instead (HyperTransformer, section 5.1), and
its figures lean on it. Here each convolution's output is moved, channel by channel, to the mean and the variance that
it has over the support set: on the support set that changes nothing, on the queries it is batch normalisation over
them, with the scale and shift that were learned.
"""

from __future__ import annotations

from functools import lru_cache

import onnx
from onnx import parser

N_SUPPORT = "n_support"
_DOMAIN = "classmith.transductive"
_QUERIES_AS_SUPPORT = f"""
<domain: "{_DOMAIN}", opset_import: ["": 18]>
AsSupport (x, {N_SUPPORT}) => (y) {{
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [9223372036854775807]> ()
  each = Constant <value_ints = [0, 2, 3]> ()
  small = Constant <value_float = 1e-5> ()
  support = Slice (x, first, {N_SUPPORT})
  queries = Slice (x, {N_SUPPORT}, last)
  support_mean = ReduceMean (support, each)
  queries_mean = ReduceMean (queries, each)
  support_rest = Sub (support, support_mean)
  queries_rest = Sub (queries, queries_mean)
  support_squares = Mul (support_rest, support_rest)
  queries_squares = Mul (queries_rest, queries_rest)
  support_variance = ReduceMean (support_squares, each)
  queries_variance = ReduceMean (queries_squares, each)
  divisor = Add (queries_variance, small)
  ratio = Div (support_variance, divisor)
  scale = Sqrt (ratio)
  scaled = Mul (queries_rest, scale)
  moved = Add (scaled, support_mean)
  y = Concat <axis = 0> (support, moved)
}}
"""


@lru_cache(maxsize=8)  # an evaluation asks for the same at every episode
def transductive(skeleton: bytes) -> bytes:
    """The graph of a network -> the same of a batch of support images, then queries; ``n_support`` ``(1,)`` int64.

    Its outputs are of the whole batch: those of the support images as they were, those of the queries transductive.
    """
    model = onnx.load_model_from_string(skeleton)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Conv":
            (name,) = node.output
            node.output[0] = f"{name}.inductive"
            nodes.append(onnx.helper.make_node("AsSupport", [node.output[0], N_SUPPORT], [name], domain=_DOMAIN))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(onnx.helper.make_tensor_value_info(N_SUPPORT, onnx.TensorProto.INT64, [1]))
    model.functions.append(parser.parse_function(_QUERIES_AS_SUPPORT))
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    data: bytes = model.SerializeToString()
    return data
