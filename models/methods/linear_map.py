"""A linear map from a class's text to the mean of its features, and the nearest of these: the simplest of all.

Fitted in closed form (ridge regression), not by gradient. For features with unit covariance in every class the nearest
mean is the best decision (linear discriminant analysis), and a linear classifier.

Shapes: K classes, D text embedding, Q images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearMapConfig:
    """Widths."""

    text_dim: int
    n_features: int


class LinearMap(nn.Module):
    """Logits of classes by the means that their texts give."""

    weight: Tensor
    bias: Tensor

    def __init__(self, config: LinearMapConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weight", torch.zeros(config.n_features, config.text_dim))
        self.register_buffer("bias", torch.zeros(config.n_features))

    def forward(self, texts: Tensor, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """Texts ``(K, D)``, features ``(Q, F)`` -> logits ``(Q, K)``; ``maps`` are not read."""
        means = texts @ self.weight.T + self.bias
        return features @ means.T - 0.5 * (means**2).sum(dim=1)
