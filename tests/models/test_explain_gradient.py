"""Each operator's gradient is that of finite differences; what has no rule is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.errors import InvalidMetaModel
from models.explain_gradient import GRADIENT, RULES, with_gradient
from models.runtime import make_session

Array = NDArray[np.generic]
STEP = 1e-2


@dataclass(frozen=True)
class Case:
    """A node ``op(x, *others)``: the shapes of those with gradients, and what else it takes."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[Array, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


IMAGE = (1, 2, 5, 6)
CASES = {
    "sum, stretched": Case("Add", ((2, 3), (1, 3))),
    "difference, stretched": Case("Sub", ((2, 1), (2, 3))),
    "product": Case("Mul", ((2, 3), (2, 3))),
    "product, stretched": Case("Mul", ((2, 3), (2, 1))),
    "quotient": Case("Div", ((2, 3), (2, 1))),
    "cast": Case("Cast", ((2, 3),), attributes={"to": TensorProto.FLOAT}),
    "clip": Case("Clip", ((3, 4),), (np.float32(0.3), np.float32(1.5))),
    "clip from below": Case("Clip", ((3, 4),), (np.float32(0.8),)),
    "concatenation": Case("Concat", ((1, 2, 3), (1, 4, 3)), attributes={"axis": 1}),
    "convolution": Case("Conv", (IMAGE, (3, 2, 3, 3), (3,)), attributes={"pads": [1, 1, 1, 1]}),
    "convolution by one": Case("Conv", (IMAGE, (3, 2, 1, 1))),
    "convolution, strides that leave a row over": Case(
        "Conv", (IMAGE, (3, 2, 3, 2), (3,)), attributes={"pads": [1, 0, 0, 1], "strides": [2, 3]}
    ),
    "convolution, dilated": Case(
        "Conv", (IMAGE, (3, 2, 3, 3)), attributes={"dilations": [1, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}
    ),
    "convolution, depthwise": Case(
        "Conv", (IMAGE, (4, 1, 3, 3), (4,)), attributes={"group": 2, "strides": [2, 2], "pads": [0, 0, 1, 1]}
    ),
    "expansion": Case("Expand", ((2, 1),), (ints(2, 3),)),
    "flattening": Case("Flatten", ((2, 3, 2),)),
    "gathering, one place twice": Case("Gather", ((5,),), (ints(4, 0, 4),)),
    "linear": Case("Gemm", ((2, 3), (3, 4), (4,))),
    "linear, rows": Case("Gemm", ((2, 3), (4, 3), (4,)), attributes={"transB": 1}),
    "linear, no bias": Case("Gemm", ((2, 3), (4, 3)), attributes={"transB": 1}),
    "mean of an image": Case("GlobalAveragePool", (IMAGE,)),
    "identity": Case("Identity", ((2, 3),)),
    "leaky rectifier": Case("LeakyRelu", ((3, 4),), attributes={"alpha": 0.2}),
    "logarithm of softmax": Case("LogSoftmax", ((2, 3),), attributes={"axis": -1}),
    "pooling": Case("MaxPool", (IMAGE,), attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    "pooling, overlapping, padded": Case(
        "MaxPool", (IMAGE,),
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "padding": Case("Pad", ((2, 3),), (ints(0, 1, 2, 0),)),
    "length": Case("ReduceL2", ((2, 3),), (ints(-1),)),
    "maximum": Case("ReduceMax", ((2, 3),)),
    "mean": Case("ReduceMean", (IMAGE,), (ints(2, 3),)),
    "rectifier": Case("Relu", ((3, 4),)),
    "reshaping": Case("Reshape", ((2, 6),), (ints(3, 4),)),
    "squeezing": Case("Squeeze", ((2, 1, 3),), (ints(1),)),
    "transposition": Case("Transpose", ((2, 3, 4),), attributes={"perm": [2, 0, 1]}),
    "unsqueezing": Case("Unsqueeze", ((2, 3),), (ints(1),)),
}  # fmt: skip


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES.values()} == set(RULES)


def spaced(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Values from -2 to 2, all further from each other and from zero than two steps: no kink is crossed."""
    n = int(np.prod(shape))
    values = (np.arange(n) + 0.5 - n // 2) * (4 / max(n, 10)) + 0.013
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(np.float32)


def graph(case: Case) -> onnx.ModelProto:
    """``score``: the product of the operator's output with a ramp, so that no two places weigh the same."""
    inputs = [f"x{i}" for i in range(len(case.shapes))]
    constants = {f"c{i}": np.asarray(value) for i, value in enumerate(case.constants)}
    nodes = [
        helper.make_node(case.op, [*inputs, *(f"c{i}" for i in range(len(case.constants)))], ["y"], **case.attributes),
        helper.make_node("Shape", ["y"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["steps"], value=numpy_helper.from_array(np.float32([0.37]))),
        helper.make_node("Reshape", ["steps", "flat"], ["line"]),
        helper.make_node("CumSum", ["line", "first"], ["ramp"]),
        helper.make_node("Reshape", ["ramp", "shape"], ["weights"]),
        helper.make_node("Mul", ["y", "weights"], ["score"]),
    ]
    constants |= {"flat": ints(-1), "first": np.array(0, np.int64)}
    shapes = zip(inputs, case.shapes, strict=True)
    made = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_that_of_finite_differences(name: str) -> None:
    case = CASES[name]
    given = {f"x{i}": spaced(shape, i) for i, shape in enumerate(case.shapes)}
    session = make_session(with_gradient(graph(case), "score", list(given)).SerializeToString(), {})
    for x, values in given.items():
        (found,) = session.run([x + GRADIENT], given)
        expected = np.zeros(values.size)
        for i in range(values.size):
            there, back = (
                session.run(["score"], {**given, x: _moved(values, i, sign * STEP)})[0].astype(np.float64).sum()
                for sign in (1, -1)
            )
            expected[i] = (there - back) / (2 * STEP)
        assert np.abs(expected).max() > 0
        assert found.shape == values.shape
        np.testing.assert_allclose(found.ravel(), expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())


def _moved(values: NDArray[np.float32], place: int, by: float) -> NDArray[np.float32]:
    moved = values.copy()
    moved.flat[place] += by
    return moved


@pytest.mark.parametrize(
    ("case", "remedy"),
    [
        (Case("Erf", ((2, 3),)), "Erf cannot be explained yet.*add one"),
        (Case("ReduceMean", ((2, 3),), (ints(1),), {"keepdims": 0}), "keep them"),
        (Case("Gemm", ((3, 2), (3, 4)), attributes={"transA": 1}), "export a plain one"),
        (Case("Conv", (IMAGE, (3, 2, 3, 3)), attributes={"auto_pad": "SAME_UPPER"}), "export its sizes"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(case: Case, remedy: str) -> None:
    with pytest.raises(InvalidMetaModel, match=remedy):
        with_gradient(graph(case), "score", ["x0"])
