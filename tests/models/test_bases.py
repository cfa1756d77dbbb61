"""Base networks: folding changes no answer, padding is TensorFlow's where it is asked for, names stay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.nn.bases import (
    ARCHITECTURES,
    TENSORFLOW_MOBILENET,
    Base,
    BaseSpec,
    Classifier,
    SameConv2d,
    fold,
    unfolded,
    with_same_padding,
)
from tests.models.small_n3 import pixels

SIZES = {"resnet18": 32, "squeezenet1_1": 32, "googlenet": 64, "mobilenet_v2": 32}


def used(architecture: str) -> tuple[nn.Module, int]:
    """A network whose normalisations have met data: no statistic and no scale is where it began."""
    torch.manual_seed(0)
    network, n_features = unfolded(architecture)
    for module in norms(network):
        nn.init.normal_(module.running_mean, 0, 0.1)
        nn.init.uniform_(module.running_var, 0.5, 1.5)
        nn.init.uniform_(module.weight, 0.7, 1.3)
        nn.init.normal_(module.bias, 0, 0.1)
    return network.eval(), n_features


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_changes_no_feature(architecture: str) -> None:
    network, n_features = used(architecture)
    images = torch.randn(2, 3, SIZES[architecture], SIZES[architecture])
    folded = fold(network)
    with torch.no_grad():
        expected, found = network(images).flatten(1), folded(images).flatten(1)
    assert expected.shape == (2, n_features)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_network_has_convolutions_with_biases_and_nothing_else_to_learn(architecture: str) -> None:
    base = Base(BaseSpec(architecture, SIZES[architecture]))
    assert not list(norms(base))
    names = {f"{layer}.{kind}" for layer in base.convolutions for kind in ("weight", "bias")}
    assert {name for name, _ in base.network.named_parameters()} == names
    assert all(p.requires_grad for p in base.parameters())
    plain = {name for name, module in unfolded(architecture)[0].named_modules() if isinstance(module, nn.Conv2d)}
    assert set(base.convolutions) == plain


def test_folding_leaves_the_network_itself_alone() -> None:
    network, _ = used("resnet18")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in fold(network).parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_features_are_of_pixels_normalised_as_the_base_says() -> None:
    spec = BaseSpec("squeezenet1_1", 32, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))
    base, images = Base(spec).eval(), pixels(2)
    planes = [(images[..., c] / 255 - spec.pixel_mean[c]) / spec.pixel_std[c] for c in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(base(images), base.network(torch.stack(planes, dim=1)).flatten(1))


def test_same_padding_goes_to_the_right_and_bottom() -> None:
    """Worked out by hand: sums of the 3 x 3 windows that begin at rows and columns 0 and 2 of 0, 1, ... 15."""
    convolution = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(convolution.weight)
    found = convolution(torch.arange(16.0).view(1, 1, 4, 4))
    assert found.tolist() == [[[[45.0, 39.0], [66.0, 50.0]]]]


def test_padding_changes_strided_convolutions_alone_and_no_name() -> None:
    network, _ = unfolded("mobilenet_v2")
    before = dict(network.state_dict())
    padded = with_same_padding(network)
    same = [module for module in padded.modules() if isinstance(module, SameConv2d)]
    assert len(same) == 5
    assert all(module.stride == (2, 2) for module in same)
    after = padded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_base_with_tensorflows_padding_is_trained_with_it() -> None:
    """Also from scratch, where its normalisation is not folded yet."""
    spec = BaseSpec("mobilenet_v2", 32, same_padding=True)
    for folded in (False, True):
        model = Classifier(spec, 2, folded=folded)
        assert sum(isinstance(module, SameConv2d) for module in model.modules()) == 5
    assert TENSORFLOW_MOBILENET.same_padding


def test_a_classifier_gives_logits_of_its_features() -> None:
    model = Classifier(BaseSpec("squeezenet1_1", 32), 3).eval()
    with torch.no_grad():
        features = model.features(pixels(2))
        assert features.shape == (2, 512)
        torch.testing.assert_close(model(pixels(2)), model.logits(features))
        torch.testing.assert_close(model.features(pixels(2).float()), features)
