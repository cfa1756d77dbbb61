import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from models import metamodel
from models.mixed import GROUPS, mixed_network
from tests.service import centroids, tiny

N_ROWS = 19
ZOO = metamodel.load_all(metamodel.ZOO)
SHIPPED = {name: found for name, found in ZOO.items() if not found.manifest.adapts_layers}
"""Those whose tasks write small tensors; a network whose every layer is adapted runs alone."""


@pytest.fixture(scope="module", params=["tiny", "centroids", *SHIPPED])
def meta_model(request, tmp_path_factory):
    """All convolutions but the first written; none at all; and those that are shipped."""
    made = {"tiny": lambda folder: tiny.meta_model(folder / "tiny"), "centroids": centroids.meta_model}
    if request.param in made:
        return made[request.param](tmp_path_factory.mktemp("zoo"))
    return SHIPPED[request.param]


@pytest.fixture(scope="module")
def network(meta_model):
    found = mixed_network(meta_model)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def rows(meta_model):
    """Rows of tasks that differ in weights and in the number of classes; the first two are of one task."""
    tasks = [tiny.bundle(meta_model, n_classes=2 + row % 5, seed=row) for row in range(N_ROWS - 1)]
    spec = meta_model.manifest.preprocess
    shape = (N_ROWS, spec.size, spec.size, spec.channels)
    return [tasks[0], *tasks], np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_every_row_is_its_own_tasks_answer(meta_model, network, rows):
    """Against ONNX's reference evaluator on the skeleton with the task's weights baked in."""
    tasks, pixels = rows
    found = network.run([task.tensors for task in tasks[:3]], pixels[:3])
    for task, row, logits in zip(tasks, pixels, found, strict=False):
        model = tiny.reference_model(meta_model, task)
        (expected,) = ReferenceEvaluator(model).run(["logits"], {"pixels": row[None]})
        assert logits.shape == expected[0].shape
        np.testing.assert_allclose(logits, expected[0], atol=1e-5 * abs(expected).max())


def test_a_row_is_the_same_to_the_last_bit_whatever_else_is_in_the_batch(network, rows):
    tasks, pixels = [task.tensors for task in rows[0]], rows[1]
    together = network.run(tasks, pixels)
    order = np.random.default_rng(1).permutation(N_ROWS)
    permuted = network.run([tasks[i] for i in order], pixels[order])
    for place, i in enumerate(order):
        np.testing.assert_array_equal(permuted[place], together[i])
    for n in (1, 2, 3, 5, 8, 13):
        for start in range(0, N_ROWS - n, n):
            part = network.run(tasks[start : start + n], pixels[start : start + n])
            for logits, expected in zip(part, together[start:], strict=False):
                np.testing.assert_array_equal(logits, expected)


def test_any_number_of_rows_is_cut_into_groups_there_are():
    assert GROUPS[-1] == 1
    assert sorted(GROUPS, reverse=True) == list(GROUPS)


def test_where_heads_alone_are_written_is_told(meta_model, network):
    written = [name for name, spec in meta_model.manifest.tensors.items() if spec.source == "bundle"]
    assert network.writes_heads_alone == (len(written) == 2)


def edited(meta_model, folder, edit):
    graph = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    edit(graph.graph)
    files = {"skeleton.onnx": graph.SerializeToString(), "base.safetensors": meta_model.read("base.safetensors")}
    return metamodel.write(folder / meta_model.name, meta_model.manifest, files)


def set_alpha(graph):
    graph.node[-1].attribute.append(onnx.helper.make_attribute("alpha", 2.0))


def mix_channels(graph):
    """Softmax over channels: of rows kept as groups it would go over all rows' channels."""
    graph.node[-3].CopyFrom(onnx.helper.make_node("Softmax", graph.node[-3].input, graph.node[-3].output, axis=1))


def use_outside(graph):
    """A connection from before the written convolutions into them."""
    relu = next(node for node in graph.node if node.output[0] == "r1")
    relu.CopyFrom(onnx.helper.make_node("Add", ["n1", "c0"], ["r1"]))


def use_twice(graph):
    convs = [node for node in graph.node if node.op_type == "Conv"]
    convs[3].input[1] = "conv2.weight"


@pytest.mark.parametrize("edit", [set_alpha, mix_channels, use_outside, use_twice])
def test_what_cannot_share_a_graph_is_left_alone(tmp_path, edit):
    assert mixed_network(edited(tiny.meta_model(tmp_path / "whole" / "tiny"), tmp_path, edit)) is None


def test_large_written_networks_get_sessions_of_their_own(tmp_path, monkeypatch):
    meta_model = tiny.meta_model(tmp_path / "tiny")
    monkeypatch.setattr("models.mixed.MAX_WRITTEN_BYTES", 1000)
    assert mixed_network(meta_model) is None


def test_residual_connections_between_written_layers_are_kept(tmp_path):
    def add(graph):
        relu = next(node for node in graph.node if node.output[0] == "r2")
        relu.CopyFrom(onnx.helper.make_node("Add", ["n2", "x2"], ["r2"]))

    meta_model = edited(tiny.meta_model(tmp_path / "whole" / "tiny"), tmp_path, add)
    network, tasks, pixels = (
        mixed_network(meta_model),
        [tiny.bundle(meta_model, seed=i) for i in range(2)],
        tiny.pixels(2),
    )
    assert network is not None
    for task, row, logits in zip(tasks, pixels, network.run([t.tensors for t in tasks], pixels), strict=True):
        (expected,) = ReferenceEvaluator(tiny.reference_model(meta_model, task)).run(["logits"], {"pixels": row[None]})
        np.testing.assert_allclose(logits, expected[0], atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", sorted(ZOO.keys() - SHIPPED.keys()))
def test_networks_with_adapted_layers_are_not_mixed(name):
    assert mixed_network(ZOO[name]) is None
