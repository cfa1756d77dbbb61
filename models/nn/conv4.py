"""Conv-4, the target network of few-shot learning: 3x3 convolutions, each pooled and rectified, and a logits layer.

Normalisation is already folded into the weights, so a prediction depends on its own image alone.
Source: Vinyals et al., *Matching Networks for One Shot Learning*, 2016, section 4.1; HyperTransformer, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pooling = Literal["floor", "ceil"]


def pooled_size(size: int, n_poolings: int, pooling: Pooling) -> int:
    """How wide an image of ``size`` pixels is after each of the poolings halved it, rounded as ``pooling`` says."""
    for _ in range(n_poolings):
        size = (size + (pooling == "ceil")) // 2
    return size


class Conv4(nn.Module):
    """uint8 pixels in, logits and features out; parameters ``conv1.weight`` ... ``logits.bias``.

    ``image`` is (size, channels); ``widths`` the output channels of each convolution, of which the first ``n_poolings``
    are pooled (None: all); N images, K classes, F features.
    """

    def __init__(
        self,
        image: tuple[int, int],
        widths: Sequence[int],
        n_classes: int,
        *,
        pixel_mean: float,
        pixel_std: float,
        negative_slope: float = 0.0,
        pooling: Pooling = "floor",
        n_poolings: int | None = None,
        unit_features: bool = False,
    ) -> None:
        super().__init__()
        size, in_channels = image
        self.unit_features = unit_features
        self.pixel_mean, self.pixel_std, self.negative_slope = pixel_mean, pixel_std, negative_slope
        self.n_convs, self.keeps_border = len(widths), pooling == "ceil"
        self.n_poolings = self.n_convs if n_poolings is None else n_poolings
        for n, (i, o) in enumerate(zip([in_channels, *widths], widths, strict=False), start=1):
            self.add_module(f"conv{n}", nn.Conv2d(i, o, 3, padding=1))
        self.logits = nn.Linear(widths[-1] * pooled_size(size, self.n_poolings, pooling) ** 2, n_classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(N, H, W, C)`` uint8 -> logits ``(N, K)`` and features ``(N, F)``."""
        x = normalise(pixels, self.pixel_mean, self.pixel_std)
        for n in range(1, self.n_convs + 1):
            x = self.get_submodule(f"conv{n}")(x)
            if n <= self.n_poolings:
                x = F.max_pool2d(x, 2, ceil_mode=self.keeps_border)
            x = F.leaky_relu(x, self.negative_slope)
        features = unit(x.flatten(1)) if self.unit_features else x.flatten(1)
        return self.logits(features), features


def unit(features: Tensor) -> Tensor:
    """Features ``(..., F)`` scaled to a mean square of one: what is left to tell images apart is their direction.

    Half precision comes back as float32.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return math.sqrt(features.shape[-1]) * F.normalize(features, dim=-1)


def normalise(pixels: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """Pixels ``(..., H, W, C)`` uint8 -> ``(..., C, H, W)`` float32, ``(p / 255 - mean) / std``.

    A tensor ``(C,)`` has a value for each channel. A negative ``std`` makes dark ink positive. Channels move
    before the arithmetic: ONNX Runtime spreads a constant over the last axis at a time, else one or three numbers.
    """
    floats = pixels.to(torch.float32)
    # One channel is moved by naming axes anew: a transposition ONNX Runtime may carry through the arithmetic again.
    planes = floats.squeeze(-1).unsqueeze(-3) if pixels.shape[-1] == 1 else torch.movedim(floats, -1, -3)
    mean, std = (value[:, None, None] if isinstance(value, Tensor) else value for value in (mean, std))
    return (planes / 255 - mean) / std
