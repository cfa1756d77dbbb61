import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models import metamodel, runtime
from models.errors import CorruptBundle, Unavailable
from models.mixed import MixedNetwork
from models.preprocess import PreprocessSpec
from service.prediction.sessions import OwnNetwork, Placement, SharedNetworks, build_session
from tests.bench import networks
from tests.service import tiny


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory):
    return tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")


def test_build_session_runs_the_bundles_weights(meta_model):
    written = tiny.bundle(meta_model, n_classes=7)
    session = build_session(meta_model, written, "t", "id")
    logits = session.run(tiny.pixels(3))
    assert logits.shape == (3, 7)
    assert logits.dtype == np.float32
    assert (session.tenant, session.task_id, session.header) == ("t", "id", written.header)
    assert session.preprocess == PreprocessSpec(28, 1, "pad", True)
    assert session.n_bytes > sum(tensor.nbytes for tensor in written.tensors.values())


def test_a_row_depends_on_its_own_image_alone(meta_model):
    session = build_session(meta_model, tiny.bundle(meta_model), "t", "id")
    pixels = tiny.pixels(48)
    together = session.run(pixels)
    order = np.random.default_rng(0).permutation(48)
    np.testing.assert_array_equal(session.run(pixels[order]), together[order])
    for n in (1, 2, 3, 5, 7, 16, 31):
        parts = np.concatenate([session.run(pixels[i : i + n]) for i in range(0, 48, n)])
        np.testing.assert_array_equal(parts, together)


@pytest.mark.parametrize("shipped", metamodel.load_all(metamodel.ZOO).values(), ids=lambda model: model.name)
def test_a_row_depends_on_its_own_image_alone_in_the_shipped_networks(shipped):
    spec = shipped.manifest.preprocess
    session = build_session(shipped, tiny.bundle(shipped), "t", "id")
    pixels = np.random.default_rng(0).integers(0, 256, (20, spec.size, spec.size, spec.channels), dtype=np.uint8)
    together = session.run(pixels)
    for n in (1, 3, 7):
        parts = np.concatenate([session.run(pixels[i : i + n]) for i in range(0, 20, n)])
        np.testing.assert_allclose(parts, together, atol=1e-6 * abs(together).max())


def test_a_bundle_of_another_meta_model_is_refused(meta_model):
    written = tiny.bundle(meta_model)
    other = type(meta_model)(meta_model.folder, meta_model.manifest, "another digest")
    with pytest.raises(Unavailable, match="another version of tiny"):
        build_session(other, written, "t", "id")


@pytest.mark.parametrize("spoil", [lambda t: t.pop("logits.bias"), lambda t: t.update(extra=t["logits.bias"]),
                                   lambda t: t.update({"logits.bias": np.zeros(3, np.float32)})])  # fmt: skip
def test_a_bundle_with_other_tensors_is_refused(meta_model, spoil):
    written = tiny.bundle(meta_model)
    tensors = dict(written.tensors)
    spoil(tensors)
    with pytest.raises(CorruptBundle, match="tensors"):
        build_session(meta_model, type(written)(written.header, tensors), "t", "id")


@pytest.mark.parametrize(
    "shipped",
    [found for found in metamodel.load_all(metamodel.ZOO).values() if not found.manifest.adapts_layers],
    ids=lambda model: model.name,
)
def test_a_task_on_a_shared_network_answers_as_on_its_own(shipped):
    spec, networks = shipped.manifest.preprocess, SharedNetworks()
    pixels = np.random.default_rng(0).integers(0, 256, (9, spec.size, spec.size, spec.channels), dtype=np.uint8)
    for n_classes in (2, 20):
        written = tiny.bundle(shipped, n_classes=n_classes)
        session, own = (make(shipped, written, "t", "id") for make in (networks.session, build_session))
        expected = own.run(pixels)
        np.testing.assert_allclose(session.run(pixels), expected, atol=1e-5 * abs(expected).max())
        assert session.n_bytes < own.n_bytes
        assert (session.promote is None) == (len(written.tensors) == 2)


def test_tasks_of_a_meta_model_share_one_network(meta_model):
    networks = SharedNetworks()
    first, second = (networks.session(meta_model, tiny.bundle(meta_model, seed=i), "t", str(i)) for i in range(2))
    assert first.network is second.network
    assert isinstance(first.network, MixedNetwork)
    assert first.kind == second.kind != first.promote().kind


def test_a_meta_model_whose_tasks_cannot_share_gets_networks_of_their_own(meta_model, tmp_path):
    graph = onnx.load_model_from_string(meta_model.read("skeleton.onnx"))
    for node in graph.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Softsign"  # nothing that is known to work on rows kept as groups
    files = {"skeleton.onnx": graph.SerializeToString(), "base.safetensors": meta_model.read("base.safetensors")}
    other = metamodel.write(tmp_path / "tiny", meta_model.manifest, files)
    session = SharedNetworks().session(other, tiny.bundle(other), "t", "id")
    assert isinstance(session.network, OwnNetwork)
    assert session.promote is None
    assert session.run(tiny.pixels(2)).shape == (2, 20)


def test_a_bundle_of_another_meta_model_is_refused_on_a_shared_network_too(meta_model):
    other = type(meta_model)(meta_model.folder, meta_model.manifest, "another digest")
    with pytest.raises(Unavailable, match="another version of tiny"):
        SharedNetworks().session(other, tiny.bundle(meta_model), "t", "id")


ELSEWHERE = "AzureExecutionProvider"
"""Stands in for a device: in every build for the processor, it may be asked for, and runs nothing of these graphs."""


@pytest.mark.skipif(ELSEWHERE not in ort.get_available_providers(), reason="another build of ONNX Runtime")
def test_large_networks_are_made_for_the_device_and_small_ones_for_the_processor(tmp_path):
    def first_provider(session):
        return session.network.network.get_providers()[0]

    small, there = metamodel.load(metamodel.ZOO / "omniglot-8"), Placement([ELSEWHERE])
    made = SharedNetworks(there).session(small, tiny.bundle(small), "t", "id")
    assert first_provider(made.promote()) == runtime.CPU
    assert made.network._sessions[1].get_providers()[0] == runtime.CPU
    large = networks.resnet18(tmp_path)
    shared = SharedNetworks(there).session(large, tiny.bundle(large), "t", "id")
    assert shared.network._sessions[0].get_providers()[0] == ELSEWHERE
    assert first_provider(build_session(large, tiny.bundle(large), "t", "id", there)) == ELSEWHERE
    assert first_provider(build_session(large, tiny.bundle(large), "t", "id")) == runtime.CPU
