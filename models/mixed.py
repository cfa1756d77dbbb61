"""One graph for many tasks of a meta-model: their images run together, and a task needs no session of its own.

Shapes: R rows (images, each with its own task), C channels, F features, K classes (each task its own).

    heads      Tasks write the logits layer alone: one session gives the features of all rows.
    networks   Tasks write convolutions too: rows become the groups of grouped convolutions, (1, R C, H, W), and their
               weights inputs of the graph. ONNX fixes the number of groups: there is a session for each of ``GROUPS``.

Either way a row's logits are its task's matrix times its features, (K, F) x (F,), so its answer is the same to the last
bit whatever else is in the batch. What neither way can do gets a session for each task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models import device
from models.bundle import Tensors
from models.graph import FEATURES, INPUT, LOGITS
from models.metamodel import HEAD, Manifest, MetaModel
from models.runtime import make_session, run

GROUPS = (8, 4, 2, 1)
"""Rows of one run of grouped networks; a batch is cut into these. More than 8 gain nothing on a CPU (measured)."""
MAX_WRITTEN_BYTES = 2_000_000
"""Of one task, as float32: copying larger weights for every row costs more than a session of the task's own."""
FOLDABLE = frozenset({"Conv", "BatchNormalization", "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
"""What works alike on rows kept as groups of channels."""


class MixedNetwork:
    """The networks of all tasks of one meta-model. Safe to run from many threads."""

    def __init__(self, sessions: dict[int, ort.InferenceSession], written: Sequence[str]) -> None:
        self._sessions, self._written = sessions, tuple(written)

    @property
    def writes_heads_alone(self) -> bool:
        """Whether features are the same for every task: a network of a task's own could not be faster."""
        return not self._written

    def run(self, tasks: Sequence[Tensors], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Pixels ``(R, H, W, C)`` and the written tensors of each row's task -> R times logits ``(K,)``."""
        features = self._grouped(tasks, pixels) if self._written else self._features(0, {INPUT: pixels})
        weight, bias = HEAD
        return [task[weight] @ row + task[bias] for task, row in zip(tasks, features, strict=True)]

    def _grouped(self, tasks: Sequence[Tensors], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        found, start = [], 0
        for n_rows in GROUPS:
            while start + n_rows <= len(pixels):
                rows = tasks[start : start + n_rows]
                feeds = {name: np.concatenate([task[name] for task in rows]) for name in self._written}
                found.append(self._features(n_rows, {INPUT: pixels[start : start + n_rows], **feeds}))
                start += n_rows
        return np.concatenate(found)

    def _features(self, n_rows: int, feeds: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        return run(self._sessions[n_rows], FEATURES, feeds)


def mixed_network(meta_model: MetaModel, providers: Sequence[str] = ()) -> MixedNetwork | None:
    """The network that runs all tasks of a meta-model; None where its tasks cannot share one.

    ``providers``: for one large enough, whose layers all tasks share.
    """
    manifest = meta_model.manifest
    graph = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    written = [name for name, spec in manifest.tensors.items() if spec.source == "bundle" and name not in HEAD]
    if manifest.adapts_layers or not _has_plain_head(graph.graph, manifest):
        return None
    if _written_bytes(manifest, written) > MAX_WRITTEN_BYTES:
        return None
    trunk = _until_features(_with_base(graph, meta_model))
    if not written:
        chosen = device.worth_it(meta_model.base.values(), providers)
        return MixedNetwork({0: make_session(trunk.SerializeToString(), {}, providers=chosen)}, written)
    if not _can_fold(trunk.graph, set(written)):
        return None
    grouped = {n_rows: _grouped_graph(trunk, manifest, set(written), n_rows) for n_rows in GROUPS}
    return MixedNetwork({n: make_session(g.SerializeToString(), {}) for n, g in grouped.items()}, written)


def _written_bytes(manifest: Manifest, written: Sequence[str]) -> int:
    return sum(4 * int(np.prod(manifest.tensors[name].shape_for(1))) for name in written)


def _has_plain_head(graph: onnx.GraphProto, manifest: Manifest) -> bool:
    """Logits are written weights times features plus a written bias, and nothing else."""
    (head,) = [node for node in graph.node if LOGITS in node.output] or [onnx.NodeProto()]
    options = {a.name: helper.get_attribute_value(a) for a in head.attribute}
    is_plain = options.pop("transB", 0) == 1 and options.pop("transA", 0) == 0 and set(options.values()) <= {1.0}
    is_written = all(name in manifest.tensors and manifest.tensors[name].source == "bundle" for name in HEAD)
    return head.op_type == "Gemm" and is_plain and is_written and list(head.input) == [FEATURES, *HEAD]


def _with_base(model: onnx.ModelProto, meta_model: MetaModel) -> onnx.ModelProto:
    """The graph with the weights that all tasks share in it; written ones are left out."""
    kept = []
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            kept.append(tensor)
        elif tensor.name in meta_model.base:
            kept.append(numpy_helper.from_array(meta_model.base[tensor.name], tensor.name))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _until_features(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of the graph that features need, with nothing else as output."""
    needed, nodes = {FEATURES}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    output = next(value for value in model.graph.output if value.name == FEATURES)
    graph = helper.make_graph(nodes[::-1], "features", model.graph.input, [output], initializers)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _can_fold(graph: onnx.GraphProto, written: set[str]) -> bool:
    """Whether all from the first written convolution on is foldable, and convolutions are all that is written."""
    first = _first_written(graph, written)
    before, folded = graph.node[:first], graph.node[first:]
    used = [name for node in graph.node if node.op_type == "Conv" for name in node.input[1:] if name in written]
    constants = {tensor.name for tensor in graph.initializer} | written
    inside = {folded[0].input[0], *(name for node in folded for name in node.output)}
    return (
        sorted(used) == sorted(written)
        and not any(name in written for node in before for name in node.input)
        and all(node.op_type in FOLDABLE or _adds_two(node, constants) for node in folded[:-1])
        and folded[-1].op_type in {"Reshape", "Flatten"}
        and all(name in inside or name in constants for node in folded for name in node.input)
    )


def _first_written(graph: onnx.GraphProto, written: set[str]) -> int:
    return next((i for i, node in enumerate(graph.node) if written.intersection(node.input)), 0)


def _adds_two(node: onnx.NodeProto, constants: set[str]) -> bool:
    """A residual connection."""
    return node.op_type == "Add" and not constants.intersection(node.input)


def _grouped_graph(trunk: onnx.ModelProto, manifest: Manifest, written: set[str], n_rows: int) -> onnx.ModelProto:
    """The graph for ``n_rows`` rows: pixels and each row's weights, stacked -> features ``(n_rows, F)``."""
    model = onnx.ModelProto()
    model.CopyFrom(trunk)
    graph = model.graph
    first = _first_written(graph, written)
    folded, rows = graph.node[first:-1], f"{graph.node[first].input[0]}.rows"
    source = rows.removesuffix(".rows")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in folded:
        node.input[:] = [rows if name == source else name for name in node.input]
        if node.op_type == "Conv":
            _set(node, "group", n_rows * _get(node, "group", 1))
        for i, name in enumerate(node.input):
            if name in values:  # the same for every row
                node.input[i] = f"{name}.rows"
                tiled = np.concatenate([values[name]] * n_rows)
                graph.initializer.append(numpy_helper.from_array(tiled, f"{name}.rows"))
    shapes = {"rows.folded": [1, -1, 0, 0], "rows.apart": [n_rows, -1]}
    graph.initializer.extend(numpy_helper.from_array(np.array(s, np.int64), name) for name, s in shapes.items())
    fold = helper.make_node("Reshape", [source, "rows.folded"], [rows])
    apart = helper.make_node("Reshape", [graph.node[-1].input[0], "rows.apart"], [FEATURES])
    nodes = [*graph.node[:first], fold, *folded, apart]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n_rows * shape[0], *shape[1:]])
        for name, shape in ((name, manifest.tensors[name].shape_for(1)) for name in manifest.tensors if name in written)
    ]
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    whole = helper.make_graph(nodes, "rows", [*graph.input, *inputs], graph.output, initializers)
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


def _get(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _set(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
