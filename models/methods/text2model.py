"""Text2Model: the texts of a task's classes -> a linear classifier, by layers that no order of the classes changes.

Source: Amosy, Volk, Ben-David, Feldman and Chechik, *Text2Model: Text-based Model Induction for Zero-shot Image
Classification*, 2022 (arXiv 2210.15182): a class's layer is a map of its own plus one of all classes together. Trained
here by the cross-entropy of its classifiers, without the paper's inner steps towards tuned ones.

Shapes: K classes, D text embedding, Q images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Text2ModelConfig:
    """Widths; the public code's are the defaults."""

    text_dim: int
    n_features: int
    n_hidden: int = 120


class Equivariant(nn.Module):
    """``(K, D)`` -> ``(K, O)``: each row by itself, plus the mean of all; permuting rows in permutes rows out."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.own, self.all = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The mean stands for the paper's sum, so that many classes weigh as much as few."""
        mapped: Tensor = self.own(x) + self.all(x.mean(dim=0, keepdim=True))
        return mapped


class Text2Model(nn.Module):
    """Logits of classes by the linear classifier that their texts give."""

    def __init__(self, config: Text2ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.first = Equivariant(config.text_dim, config.n_hidden)
        self.second = Equivariant(config.n_hidden, config.n_hidden)
        self.weight = nn.Linear(config.n_hidden, config.n_features)
        self.bias = nn.Linear(config.n_hidden, 1)

    def classifier(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Texts ``(K, D)`` -> weight ``(K, F)`` and bias ``(K,)``."""
        hidden = torch.relu(self.second(torch.relu(self.first(texts))))
        return self.weight(hidden), self.bias(hidden).squeeze(1)

    def forward(self, texts: Tensor, features: Tensor, maps: Tensor | None = None) -> Tensor:
        """Texts ``(K, D)``, features ``(Q, F)`` -> logits ``(Q, K)``; ``maps`` are not read."""
        return F.linear(features, *self.classifier(texts))
