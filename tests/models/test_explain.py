"""Explanations are PyTorch's own gradients of the network that answers, put where the words and the image are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.numpy import save
from torch import Tensor

from models import metamodel
from models.bundle import Bundle, BundleHeader
from models.errors import InvalidMetaModel
from models.explain import decide_with_gradients, in_frame, relative_changes, saliency, token_weights
from models.explain_words import WORDS_GRADIENT, make_words_session
from models.export import export_skeleton, relative_error, to_array
from models.export_n3 import INPUTS, base_tensors, bundle_names
from models.metamodel import MetaModel
from models.methods.n3 import N3, Adaptation
from models.nn.bases import TENSORFLOW_MOBILENET, BaseSpec
from models.nn.conv4 import Conv4
from models.preprocess import PreprocessSpec, fit_pixels
from tests.models import small, small_n3
from tests.models.small_n3 import CONFIG, adapt, task

EXACT = 1e-4
BASES = (
    BaseSpec("resnet18", 32),
    BaseSpec("squeezenet1_1", 32),
    BaseSpec("googlenet", 32),
    replace(TENSORFLOW_MOBILENET, size=32),
)
TEMPERATURE = 1.5


def bundle_of(made: N3, adaptation: Adaptation) -> Bundle:
    """The task's tensors, not rounded as those of a stored bundle are."""
    tensors = [*adaptation.codes.values(), adaptation.weight, adaptation.bias]
    header = BundleHeader(tuple("abcd"), "small-n3", "", TEMPERATURE, 0.4)
    return Bundle(header, dict(zip(bundle_names(made), map(to_array, tensors), strict=True)))


def score(logits: Tensor) -> Tensor:
    """What is explained: the logarithm of the most probable class's probability."""
    return (logits / TEMPERATURE).log_softmax(-1).max()


# --- the image, and the task's tensors


@pytest.mark.parametrize("base", BASES, ids=lambda spec: f"{spec.architecture}{'-same' * spec.same_padding}")
def test_gradients_of_pixels_and_of_the_tasks_tensors_are_pytorchs(base: BaseSpec, tmp_path: Path) -> None:
    made = small_n3.half_precise(replace(CONFIG, base=base, adapts=("",)))
    network = exported_network(made, tmp_path)
    image = small_n3.pixels(1, size=base.size)
    adaptation = adapt(made, task())
    decided = decide_with_gradients(network, bundle_of(made, adaptation), image[0].numpy(), of_bundle=True)

    pixels = image.float().requires_grad_()
    codes = {layer: tensor.clone().requires_grad_() for layer, tensor in adaptation.codes.items()}
    leaves = Adaptation(codes, adaptation.weight.clone().requires_grad_(), adaptation.bias.clone().requires_grad_())
    reference = score(made.classify(leaves, pixels))
    wanted = dict(zip(bundle_names(made), [*codes.values(), leaves.weight, leaves.bias], strict=True))
    of_pixels, *of_tensors = torch.autograd.grad(reference, [pixels, *wanted.values()])
    assert decided.probability == pytest.approx(float(reference.detach().exp()), abs=1e-5)
    assert relative_error(decided.pixels, to_array(of_pixels[0])) < EXACT
    assert decided.bundle.keys() == wanted.keys()
    for name, expected in zip(wanted, of_tensors, strict=True):
        assert expected.abs().max() > 0
        assert relative_error(decided.bundle[name], to_array(expected)) < EXACT


def exported_network(made: N3, folder: Path) -> MetaModel:
    """Without the generator, which takes longer to export."""
    files = {
        "skeleton.onnx": export_skeleton(made.target, (made.config.base.size, 3)),
        "base.safetensors": save(base_tensors(made)),
    }
    return metamodel.write(folder / "small-n3", small_n3.manifest(made), files)


def test_a_hypertransformers_classifier_is_explained_by_its_image(exported: MetaModel) -> None:
    bundle, image = small.stored(exported, small.spec()), small.pixels(1)
    decided = decide_with_gradients(exported, bundle, image[0], of_bundle=False)
    config = small.EXPORTED
    network = Conv4(
        (config.image_size, config.image_channels), [config.channels] * config.n_conv_layers, 3,
        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std, pooling=config.pooling,
    )  # fmt: skip
    network.load_state_dict({name: torch.tensor(tensor) for name, tensor in bundle.tensors.items()})
    pixels = torch.tensor(image).float().requires_grad_()
    logits = network(pixels)[0]
    (expected,) = torch.autograd.grad(score(logits), pixels)
    assert decided.predicted == int(logits.argmax())
    assert expected.abs().max() > 0
    assert relative_error(decided.pixels, to_array(expected[0])) < EXACT
    assert decided.bundle == {}


def test_features_of_unit_length_are_explained(tmp_path: Path) -> None:
    config = replace(small.EXPORTED, n_generated_layers=1, normalisation="base", unit_features=True)
    torch.manual_seed(0)
    network = Conv4(
        (config.image_size, config.image_channels), [config.channels] * config.n_conv_layers, 3,
        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std, pooling=config.pooling, unit_features=True,
    )  # fmt: skip
    tensors = {name: to_array(tensor.detach()) for name, tensor in network.named_parameters()}
    written = {name: tensor for name, tensor in tensors.items() if name.startswith("logits")}
    files = {
        "skeleton.onnx": export_skeleton(network, (config.image_size, config.image_channels)),
        "base.safetensors": save({name: tensor for name, tensor in tensors.items() if name not in written}),
    }
    made = metamodel.write(tmp_path / "small", small.manifest(config), files)
    bundle = Bundle(BundleHeader(tuple("abc"), "small", "", TEMPERATURE, 0.4), written)
    decided = decide_with_gradients(made, bundle, small.pixels(1)[0], of_bundle=False)
    pixels = torch.tensor(small.pixels(1)).float().requires_grad_()
    (expected,) = torch.autograd.grad(score(network(pixels)[0]), pixels)
    assert expected.abs().max() > 0
    assert relative_error(decided.pixels, to_array(expected[0])) < EXACT


def test_a_network_of_other_nodes_is_refused_by_the_name_of_the_node(exported: MetaModel, tmp_path: Path) -> None:
    skeleton = onnx.load_model_from_string(exported.read("skeleton.onnx"))
    for node in skeleton.graph.node:
        if node.op_type == "LeakyRelu":
            node.op_type = "Elu"
    files = {name: exported.read(name) for name in exported.manifest.files}
    changed = metamodel.write(
        tmp_path / "small", exported.manifest, {**files, "skeleton.onnx": skeleton.SerializeToString()}
    )
    with pytest.raises(InvalidMetaModel, match="Elu"):
        decide_with_gradients(changed, small.stored(changed, small.spec()), small.pixels(1)[0], of_bundle=False)


# --- the words


@pytest.fixture(scope="module")
def made() -> N3:
    return small_n3.half_precise(small_n3.EXPLAINED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return metamodel.load(small_n3.explained(tmp_path_factory))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_what_tokens_carried_is_the_gradient_through_all_that_they_made(
    made: N3, folder: MetaModel, order: tuple[int, ...]
) -> None:
    """Over the classification layer and every adapted layer, whatever the order that the generator sees."""
    given, image = task(token_dim=made.config.token_dim), small_n3.pixels(1)
    tokens = given.tokens.clone().requires_grad_()
    adaptation = made.generate(tokens, *given[1:])
    reference = score(made.classify(adaptation, image))
    expected = (torch.autograd.grad(reference, tokens)[0] * given.tokens).sum(-1)

    bundle = bundle_of(made, Adaptation(*map_tensors(adaptation)))
    decided = decide_with_gradients(folder, bundle, image[0].numpy(), of_bundle=True)
    feeds = dict(zip(INPUTS, map(to_array, given.of(torch.tensor(order))), strict=True))
    session = make_words_session(folder.read(WORDS_GRADIENT), folder.read("generator.onnx"))
    found = token_weights(session, folder.manifest, feeds, decided.bundle, order)
    assert expected.abs().max() > 1e-4
    assert relative_error(found, to_array(expected)) < EXACT
    there = to_array(given.token_mask) > 0
    assert np.abs(found[there]).min() > 0
    assert np.abs(found[~there]).max() == 0


def map_tensors(adaptation: Adaptation) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    return {n: t.detach() for n, t in adaptation.codes.items()}, adaptation.weight.detach(), adaptation.bias.detach()


def test_the_words_gradient_has_none_of_the_generators_larger_weights(folder: MetaModel) -> None:
    graphs = [onnx.load_model_from_string(folder.read(file)).graph for file in (WORDS_GRADIENT, "generator.onnx")]
    own, shared = (
        sum(len(t.raw_data) for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
        for graph in graphs
    )
    assert own < shared / 2


# --- where it is


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (8, 3), (224, 3)])
def test_a_saliency_map_shares_out_what_the_pixels_carried(size: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, size, channels), dtype=np.uint8)
    gradient = rng.uniform(0, 1, pixels.shape).astype(np.float32)
    cells = saliency(gradient, pixels)
    weights = gradient * (pixels - pixels.mean((0, 1)))
    n = min(size, 16)
    assert cells.shape == (n, n)
    assert cells.sum() == pytest.approx(weights.sum(), abs=0.02 * np.abs(weights).sum())
    assert np.abs(saliency(gradient, np.full_like(pixels, 200))).max() == 0


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(96, 96), (160, 96), (96, 160), (640, 96)])
def test_a_spot_is_found_where_it_is_in_the_whole_image(size: tuple[int, int], fit: str) -> None:
    """The gradient being the same everywhere, and the spot the only thing to see."""
    (width, height), spec = size, PreprocessSpec(32, 3, fit)
    spot = (width // 2 + min(size) // 4, height // 2 - min(size) // 4)
    pixels = np.full((height, width, 3), 255, np.uint8)
    radius = max(size) // 16
    pixels[max(0, spot[1] - radius) : spot[1] + radius, max(0, spot[0] - radius) : spot[0] + radius] = 0
    seen = fit_pixels(Image.fromarray(pixels), spec)
    framed = in_frame(saliency(-np.ones(seen.shape, np.float32), seen), size, fit)
    rows, columns = framed.shape
    assert max(rows, columns) <= 64
    assert columns / rows == pytest.approx(width / height, rel=0.5)
    y, x = np.unravel_index(framed.argmax(), framed.shape)
    assert abs((x + 0.5) / columns * width - spot[0]) < 0.08 * max(size) + radius
    assert abs((y + 0.5) / rows * height - spot[1]) < 0.08 * max(size) + radius


def test_what_a_crop_takes_away_carried_nothing() -> None:
    framed = in_frame(np.ones((16, 16), np.float32), (300, 100), "crop")
    seen = framed.sum(axis=0) > 0
    assert framed.shape[1] == pytest.approx(3 * framed.shape[0], abs=1)
    assert not seen[0]
    assert not seen[-1]
    assert seen.sum() == pytest.approx(len(seen) / 3, abs=1)
    assert (in_frame(np.ones((16, 16), np.float32), (300, 100), "pad") == 1).all()


# --- how far


def test_a_relative_change_is_the_added_weights_norm_over_that_of_the_weight(made: N3, folder: MetaModel) -> None:
    adaptation = adapt(made, task(token_dim=made.config.token_dim))
    found = relative_changes(folder, bundle_of(made, adaptation).tensors)
    assert [layer.name for layer in found] == list(made.layers)
    assert {layer.type for layer in found} == {"convolution 1 x 1", "convolution 3 x 3"}
    changed = made.adapted(adaptation)
    for layer in found:
        before = made.decoder(layer.name).gamma * made.target.base.network.get_parameter(f"{layer.name}.weight")
        expected = (changed[f"{layer.name}.weight"] - before).norm() / before.norm()
        assert layer.relative_change == pytest.approx(float(expected), rel=1e-4)


def test_a_task_that_adapts_no_layer_has_no_changes(exported: MetaModel) -> None:
    assert relative_changes(exported, small.stored(exported, small.spec()).tensors) == []
