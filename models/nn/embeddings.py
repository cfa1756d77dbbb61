"""Images and activations as vectors: what a HyperTransformer's sample tokens are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ImageEmbedding(nn.Module):
    """Four strided 3x3 convolutions and a global mean: the embedding shared by all layers (section 4.1, s_phi)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        widths = [in_channels, dim // 2, dim, dim, dim]
        strides = [2, 2, 2, 1]
        layers: list[nn.Module] = []
        for i, o, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(i, o, 3, stride, padding=1), nn.GroupNorm(4, o), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` -> embeddings ``(N, dim)``."""
        features: Tensor = self.layers(images)
        return features.mean(dim=(2, 3))


class ActivationEmbedding(nn.Module):
    """Two 3x3 convolutions whose outputs are averaged over space and concatenated (section 5.2, h_phi_l)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1)
        self.second = nn.Conv2d(dim // 2, dim - dim // 2, 3, padding=1)

    def forward(self, activations: Tensor) -> Tensor:
        """Activations ``(N, C, H, W)`` -> embeddings ``(N, dim)``."""
        first = self.first(activations)
        second = self.second(F.relu(first))
        return torch.cat([first.mean(dim=(2, 3)), second.mean(dim=(2, 3))], dim=-1)
