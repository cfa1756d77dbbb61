"""PDCNN: a text -> a fully connected classifier of its class, and perhaps a convolutional one, beside a frozen base.

Source: Lei Ba, Swersky, Fidler and Salakhutdinov, *Predicting Deep Zero-Shot Convolutional Neural Networks using
Textual Descriptions*, 2015, sections 3.1 to 3.3; text and base as N3's authors changed them for their Table 2: the
tokens' embeddings, max-pooled, for TF-IDF, and ResNet-18 for VGG-19. Nothing of the base is adapted. Trained by
cross-entropy, as N3 is; the paper's losses take each class apart (binary cross-entropy, hinge).

Shapes: K classes, D text embedding, Q images, F features, M channels of an h x w feature map, E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class PDCNNConfig:
    """Widths; the paper's are the defaults."""

    text_dim: int
    n_features: int
    n_channels: int = 0
    """M; 0 leaves the convolutional classifier out (PDCNN-fc)."""
    n_hidden: int = 300
    n_embedding: int = 50
    n_maps: int = 5
    """Channels that the M are reduced to, which the predicted 3 x 3 filters read."""


class PDCNN(nn.Module):
    """Logits of classes by their texts: the sum of what the two kinds of predicted classifier say."""

    def __init__(self, config: PDCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.text_rows = _mlp(config.text_dim, config.n_hidden, config.n_embedding)
        self.image_embedding = _mlp(config.n_features, config.n_hidden, config.n_embedding)
        if config.n_channels:
            self.text_filters = _mlp(config.text_dim, config.n_hidden, config.n_maps * 9)
            self.reduce = nn.Conv2d(config.n_channels, config.n_maps, 1)

    def forward(self, texts: Tensor, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """Texts ``(K, D)``, features ``(Q, F)``, maps ``(Q, M, h, w)`` -> logits ``(Q, K)``."""
        logits: Tensor = self.image_embedding(features) @ self.text_rows(texts).T
        if not self.config.n_channels:
            return logits
        if maps is None:
            raise ValueError("PDCNN-fc+conv reads feature maps; give them, or a config without n_channels.")
        filters = self.text_filters(texts).view(len(texts), self.config.n_maps, 3, 3)
        found = F.conv2d(torch.relu(self.reduce(maps)), filters, padding=1)
        return logits + found.mean(dim=(2, 3))


def _mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))
