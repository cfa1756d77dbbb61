"""Base networks by name: torchvision's ordinary architectures, batch normalisation folded, giving features.

A folded network has convolutions with biases and nothing else to learn, so that a method can adapt each of them, and a
prediction depends on its own image alone. Training the architectures themselves is ``training/recipes/base.py``.

Shapes: N images, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from models.nn.conv4 import normalise


@dataclass(frozen=True)
class BaseSpec:
    """A base network: its architecture, the images it takes, and how its pixels become numbers."""

    architecture: str
    size: int
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    same_padding: bool = False
    """TensorFlow's "SAME": what a strided convolution needs of padding goes to the right and bottom."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> BaseSpec:
        """The spec whose fields JSON holds, tuples as lists; raises TypeError where they are another's."""
        own: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
        return cls(**own)


TENSORFLOW_MOBILENET = BaseSpec(
    "mobilenet_v2", 128, pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.5, 0.5), same_padding=True
)
"""As TensorFlow's ImageNet weights want it, for images of 128 pixels."""


class SameConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 with TensorFlow's "SAME" padding, for images of even size."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> ``(N, O, H / 2, W / 2)``."""
        padded = F.pad(input, (0, 1, 0, 1))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _resnet18() -> tuple[nn.Module, int]:
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    network.fc = nn.Identity()
    return network, 512


def _squeezenet() -> tuple[nn.Module, int]:
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1(weights=None)
    network.classifier = nn.AdaptiveAvgPool2d(1)
    return network, 512


def _googlenet() -> tuple[nn.Module, int]:
    from torchvision.models import googlenet

    network = googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=False)
    network.fc = nn.Identity()
    network.dropout = nn.Identity()
    return network, 1024


def _mobilenet_v2() -> tuple[nn.Module, int]:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(weights=None)
    network.classifier = nn.Identity()
    return network, 1280


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "resnet18": _resnet18,
    "squeezenet1_1": _squeezenet,
    "googlenet": _googlenet,
    "mobilenet_v2": _mobilenet_v2,
}
"""Name -> an untrained network that ends in features, and how many."""


def unfolded(architecture: str) -> tuple[nn.Module, int]:
    """An untrained network with its batch normalisation, as it is trained, and its number of features F."""
    return ARCHITECTURES[architecture]()


def fold(network: nn.Module) -> nn.Module:
    """A copy whose batch normalisation, with its running statistics, is in the convolutions' weights and biases."""
    folded: Any = fuse(copy.deepcopy(network).eval().float())
    for parameter in folded.parameters():
        parameter.requires_grad_(True)
    network_: nn.Module = folded.train(False)
    return network_


def with_same_padding(network: nn.Module) -> nn.Module:
    """The network with TensorFlow's padding in its strided 3 x 3 convolutions; names stay."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and child.kernel_size == (3, 3):
                setattr(module, name, _same(child))
    return network


def _same(conv: nn.Conv2d) -> SameConv2d:
    replaced = SameConv2d(
        conv.in_channels, conv.out_channels, 3, stride=2, groups=conv.groups, bias=conv.bias is not None
    )
    replaced.load_state_dict(conv.state_dict())
    return replaced


def _trainable(spec: BaseSpec) -> nn.Module:
    network, _ = unfolded(spec.architecture)
    return with_same_padding(network) if spec.same_padding else network


class Base(nn.Module):
    """A folded base: pixels in, features out. ``network``'s parameters are those that a method may adapt."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, spec: BaseSpec) -> None:
        super().__init__()
        self.spec = spec
        network, self.n_features = unfolded(spec.architecture)
        folded = fold(network)
        self.network = with_same_padding(folded) if spec.same_padding else folded
        self.register_buffer("pixel_mean", torch.tensor(spec.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(spec.pixel_std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels ``(N, H, W, C)`` uint8 -> features ``(N, F)``."""
        features: Tensor = self.network(normalise(pixels, self.pixel_mean, self.pixel_std))
        return features.flatten(1)

    @property
    def convolutions(self) -> dict[str, nn.Conv2d]:
        """Every layer that can be adapted, by name, from the image on."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, nn.Conv2d)}


class Classifier(nn.Module):
    """A base network as it is trained: with its batch normalisation (unless ``folded``) and a logits layer."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, spec: BaseSpec, n_classes: int, *, folded: bool = False) -> None:
        super().__init__()
        base = Base(spec)
        self.network = base.network if folded else _trainable(spec)
        self.logits = nn.Linear(base.n_features, n_classes)
        self.register_buffer("pixel_mean", torch.tensor(spec.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(spec.pixel_std), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels ``(N, H, W, C)`` uint8 or float of that range -> features ``(N, F)``."""
        images = normalise(pixels, self.pixel_mean, self.pixel_std)
        features: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> logits ``(N, n_classes)``."""
        logits: Tensor = self.logits(self.features(pixels))
        return logits
