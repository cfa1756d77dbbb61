"""The gradient of a network, as a graph made from the network's own graph by reverse-mode differentiation.

Works on the nodes that skeletons are made of (``RULES``), so that any meta-model's networks can be explained by ONNX
Runtime alone, and none has to ship a second graph. For one image at a time.

Source: A. Griewank and A. Walther, *Evaluating Derivatives*, 2008 (reverse mode); each rule is its operator's adjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.errors import InvalidMetaModel

GRADIENT: Final = ".gradient"
"""Behind the name of a value or weight: the gradient with respect to it."""
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Tape:
    """The nodes and constants of a graph that grows."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its output."""
        return self.add_wide(op, inputs, 1, **attributes)[0]

    def add_wide(self, op: str, inputs: Sequence[str], n_outputs: int, **attributes: Any) -> list[str]:
        """A node with several outputs; their names."""
        names = [f"{GRADIENT}/{len(self.nodes)}/{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def constant(self, value: NDArray[np.generic]) -> str:
        """Its name."""
        name = f"{GRADIENT}/constant/{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        """A scalar of float32."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))


def with_gradient(model: onnx.ModelProto, of: str, wanted: Collection[str]) -> onnx.ModelProto:
    """The graph with a ``name.gradient`` for each of ``wanted``, values or weights: that of the sum of ``of``.

    Raises InvalidMetaModel where a node between them has no rule.
    """
    tape, graph = Tape(), model.graph
    dependent = _dependent(graph, wanted)
    one = numpy_helper.from_array(np.ones(1, np.float32))
    gradients = {of: tape.add("ConstantOfShape", tape.add("Shape", of), value=one)}
    for node in reversed(graph.node):
        if node.output[0] in gradients and not dependent.isdisjoint(node.input):
            needed = [name in dependent for name in node.input]
            for name, gradient in _adjoint(tape, node, gradients[node.output[0]], needed):
                gradients[name] = tape.add("Add", gradients[name], gradient) if name in gradients else gradient
    ends = [helper.make_node("Identity", [gradients[name]], [name + GRADIENT]) for name in wanted]
    outputs = [helper.make_tensor_value_info(name + GRADIENT, FLOAT, None) for name in wanted]
    whole = helper.make_graph(
        [*graph.node, *tape.nodes, *ends],
        "gradient",
        graph.input,
        [*graph.output, *outputs],
        [*graph.initializer, *tape.constants],
    )
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


def _dependent(graph: onnx.GraphProto, wanted: Collection[str]) -> set[str]:
    """All that changes with what is wanted; what a graph makes of shapes alone does not."""
    dependent = set(wanted)
    for node in graph.node:
        if node.op_type not in CONSTANT and not dependent.isdisjoint(node.input):
            dependent.update(node.output)
    return dependent


def _adjoint(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[tuple[str, str]]:
    """(input, gradient with respect to it) for the inputs that are needed."""
    if node.op_type not in RULES:
        message = f"Networks with {node.op_type} cannot be explained yet: its gradient has no rule; add one."
        raise InvalidMetaModel(message)
    found = RULES[node.op_type](tape, node, gradient, needed)
    return [(name, g) for name, g, need in zip(node.input, found, needed, strict=False) if need and g]


Rule = Callable[[Tape, NodeProto, str, Sequence[bool]], Sequence[str]]
"""Tape, node, gradient of its first output, which inputs need one -> gradients of its first inputs ("": none)."""


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _like(tape: Tape, value: str, gradient: str) -> str:
    """A gradient of equally many numbers in the shape of ``value``."""
    return tape.add("Reshape", gradient, tape.add("Shape", value))


def _unbroadcast(tape: Tape, value: str, gradient: str) -> str:
    """The sum over the axes that ``value``, of the same rank, was stretched along."""
    shape = tape.add("Shape", value)
    single = tape.add("NonZero", tape.add("Equal", shape, tape.integers(1)))
    axes = tape.add("Reshape", single, tape.integers(-1))
    return tape.add("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)


def _keep_where(tape: Tape, condition: str, gradient: str, otherwise: str = "") -> str:
    return tape.add("Where", condition, gradient, otherwise or tape.number(0.0))


def _add(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    return [_unbroadcast(tape, x, gradient) if need else "" for x, need in zip(node.input, needed, strict=True)]


def _sub(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    a, b = node.input
    minus = _unbroadcast(tape, b, tape.add("Neg", gradient)) if needed[1] else ""
    return [_unbroadcast(tape, a, gradient) if needed[0] else "", minus]


def _mul(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    a, b = node.input
    pairs = zip((a, b), (b, a), needed, strict=True)
    return [_unbroadcast(tape, x, tape.add("Mul", gradient, y)) if need else "" for x, y, need in pairs]


def _div(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    a, b = node.input
    by = tape.add("Div", gradient, b)
    below = _unbroadcast(tape, b, tape.add("Neg", tape.add("Mul", by, node.output[0]))) if needed[1] else ""
    return [_unbroadcast(tape, a, by) if needed[0] else "", below]


def _relu(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    return [_keep_where(tape, tape.add("Greater", node.output[0], tape.number(0.0)), gradient)]


def _leaky_relu(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    slope = tape.number(_attribute(node, "alpha", 0.01))
    positive = tape.add("Greater", node.input[0], tape.number(0.0))
    return [_keep_where(tape, positive, gradient, tape.add("Mul", gradient, slope))]


def _clip(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    for bound, op in zip(node.input[1:], ("Greater", "Less"), strict=False):
        if bound:
            gradient = _keep_where(tape, tape.add(op, node.input[0], bound), gradient)
    return [gradient]


def _transpose(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    return [tape.add("Transpose", gradient, perm=np.argsort(_attribute(node, "perm", ())).tolist())]


def _reshape(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    return [_like(tape, node.input[0], gradient)]


def _expand(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    return [_unbroadcast(tape, node.input[0], gradient)]


def _mean(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    x, y = node.input[0], node.output[0]
    if not _attribute(node, "keepdims", 1):
        raise InvalidMetaModel("Networks with a mean that drops axes cannot be explained yet; keep them (keepdims=1).")
    count = tape.add("Cast", tape.add("Div", tape.add("Size", x), tape.add("Size", y)), to=FLOAT)
    return [tape.add("Expand", tape.add("Div", gradient, count), tape.add("Shape", x))]


def _norm(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    direction = tape.add("Div", node.input[0], tape.add("Max", node.output[0], tape.number(1e-12)))
    return [tape.add("Mul", gradient, direction)]


def _gemm(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    is_transposed = _attribute(node, "transB", 0)
    if _attribute(node, "transA", 0) or {_attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)} != {1.0}:
        raise InvalidMetaModel("Networks with a scaled or transposed Gemm cannot be explained yet; export a plain one.")
    rows, weight = node.input[:2]
    of_rows = tape.add("Gemm", gradient, weight, transB=1 - is_transposed) if needed[0] else ""
    pair = (gradient, rows) if is_transposed else (rows, gradient)
    of_weight = tape.add("Gemm", *pair, transA=1) if needed[1] else ""
    bias = tape.add("ReduceSum", gradient, tape.integers(0), keepdims=0) if any(needed[2:]) else ""
    return [of_rows, of_weight, bias]


def _log_softmax(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    """Over the last axis."""
    total = tape.add("ReduceSum", gradient, tape.integers(-1), keepdims=1)
    return [tape.add("Sub", gradient, tape.add("Mul", tape.add("Exp", node.output[0]), total))]


def _max(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    """Of everything, axes kept."""
    return [_keep_where(tape, tape.add("Equal", node.input[0], node.output[0]), gradient)]


def _pad(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    before, _after = tape.add_wide("Split", [node.input[1]], 2, num_outputs=2)
    return [tape.add("Slice", gradient, before, tape.add("Add", before, tape.add("Shape", node.input[0])))]


def _gather(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    """From a vector."""
    return [_scattered(tape, node.input[0], node.input[1], gradient)]


def _scattered(tape: Tape, value: str, places: str, gradient: str) -> str:
    """Each number of the gradient added at its place among the numbers of ``value``."""
    flat = tape.integers(-1)
    zeros = tape.add("ConstantOfShape", tape.add("Reshape", tape.add("Size", value), flat))
    rows, numbers = tape.add("Reshape", places, flat), tape.add("Reshape", gradient, flat)
    return _like(tape, value, tape.add("ScatterElements", zeros, rows, numbers, axis=0, reduction="add"))


def _max_pool(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    places = tape.add_wide("MaxPool", [node.input[0]], 2, **options)[1]
    return [_scattered(tape, node.input[0], places, gradient)]


def _concat(tape: Tape, node: NodeProto, gradient: str, _: Sequence[bool]) -> list[str]:
    axis, n = _attribute(node, "axis", 0), len(node.input)
    sizes = [tape.add("Gather", tape.add("Shape", x), tape.integers(axis)) for x in node.input]
    return tape.add_wide("Split", [gradient, tape.add("Concat", *sizes, axis=0)], n, axis=axis)


def _conv(tape: Tape, node: NodeProto, gradient: str, needed: Sequence[bool]) -> list[str]:
    if _attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        raise InvalidMetaModel("Networks with automatic padding cannot be explained yet; export its sizes.")
    image = _conv_image(tape, node, gradient) if needed[0] else ""
    weight = _conv_weight(tape, node, gradient) if needed[1] else ""
    bias = tape.add("ReduceSum", gradient, tape.integers(0, 2, 3), keepdims=0) if any(needed[2:]) else ""
    return [image, weight, bias]


def _conv_image(tape: Tape, node: NodeProto, gradient: str) -> str:
    """A transposed convolution without padding, then cut or filled up to what was padded and read."""
    options = {name: _attribute(node, name, default) for name, default in CONV}
    pads = options.pop("pads")
    whole = tape.add("ConvTranspose", gradient, node.input[1], **options)
    # Rows and columns at the end that no stride reached have no gradient: zeros, to be there for the cut.
    reach = tape.integers(0, 0, 0, 0, 0, 0, *options["strides"])
    begin, size = tape.integers(*pads[:2]), tape.add("Shape", node.input[0], start=2)
    padded = tape.add("Pad", whole, reach)
    return tape.add("Slice", padded, begin, tape.add("Add", begin, size), tape.integers(2, 3))


def _conv_weight(tape: Tape, node: NodeProto, gradient: str) -> str:
    """A convolution of the one image by the gradient, strides and dilations exchanged; groups are of one channel."""
    options = {name: _attribute(node, name, default) for name, default in CONV}
    options["strides"], options["dilations"] = options["dilations"], options["strides"]
    image, kernel = node.input[0], tape.add("Transpose", gradient, perm=[1, 0, 2, 3])
    is_depthwise = options["group"] > 1
    if not is_depthwise:
        image = tape.add("Transpose", image, perm=[1, 0, 2, 3])
    found = tape.add("Transpose", tape.add("Conv", image, kernel, **options), perm=[1, 0, 2, 3])
    size = tape.add("Shape", node.input[1], start=2)
    cut = tape.add("Slice", found, tape.integers(0, 0), size, tape.integers(2, 3))
    return _like(tape, node.input[1], cut)


CONV: Final = (("strides", [1, 1]), ("dilations", [1, 1]), ("pads", [0, 0, 0, 0]), ("group", 1))
CONSTANT: Final = frozenset({"Shape", "Size", "ConstantOfShape"})
"""What does not change with the numbers it is given."""
RULES: Final[dict[str, Rule]] = {
    "Add": _add,
    "Cast": _reshape,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _reshape,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceL2": _norm,
    "ReduceMax": _max,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Sub": _sub,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
