"""MEGAZSL: a text and noise -> features of its class, which an ordinary classifier of features then learns from.

Source: Zhu, Elhoseiny, Liu, Peng and Elgammal, *A Generative Adversarial Approach for Zero-Shot Learning from Noisy
Texts* (GAZSL), 2018, without what needs annotated parts of the images, as N3's authors changed it for their Table 2.
The critic also tells the training classes apart, and each class's imagined mean is pulled to the true one (the paper's
visual pivot).

Shapes: N samples, K classes, n imagined features of each, D text embedding, Z noise, F features, C training classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class MegazslConfig:
    """Widths; the public code reduces texts to 1,000 and hides 4,096, for features 7 times as long."""

    text_dim: int
    n_features: int
    n_classes: int
    """C."""
    n_reduced: int = 200
    n_noise: int = 100
    n_hidden: int = 512
    n_imagined: int = 60
    """n, as in the paper."""
    gradient_penalty: float = 10.0
    pivot: float = 1.0


class Batch(NamedTuple):
    """Features of N images ``(N, F)``, their classes ``(N,)``, a text of each one's class ``(N, D)``, noise ``(N, Z)``.

    ``mix`` ``(N, 1)``, 0..1: how far between each image and its imagined features the penalty is taken.
    """

    features: Tensor
    labels: Tensor
    texts: Tensor
    noise: Tensor
    mix: Tensor


class Megazsl(nn.Module):
    """Generator and critic."""

    def __init__(self, config: MegazslConfig) -> None:
        super().__init__()
        self.config = config
        self.reduce = nn.Linear(config.text_dim, config.n_reduced)
        self.generator = nn.Sequential(
            nn.Linear(config.n_reduced + config.n_noise, config.n_hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(config.n_hidden, config.n_features),
        )
        self.critic = nn.Sequential(nn.Linear(config.n_features, config.n_hidden), nn.ReLU())
        self.reality = nn.Linear(config.n_hidden, 1)
        self.classes = nn.Linear(config.n_hidden, config.n_classes)

    def imagine(self, texts: Tensor, noise: Tensor) -> Tensor:
        """Texts ``(N, D)`` and normal noise ``(N, Z)`` -> features ``(N, F)``."""
        features: Tensor = self.generator(torch.cat([F.leaky_relu(self.reduce(texts), 0.2), noise], dim=1))
        return features

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(N, F)`` -> how real they are ``(N,)``, and logits of the training classes ``(N, C)``."""
        hidden = self.critic(features)
        return self.reality(hidden).squeeze(1), self.classes(hidden)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Wasserstein loss with a gradient penalty (Gulrajani et al., 2017), and both kinds of features told apart."""
        imagined = self.imagine(batch.texts, batch.noise).detach()
        (real, of_real), (false, of_false) = self.judge(batch.features), self.judge(imagined)
        between = torch.lerp(batch.features, imagined, batch.mix).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.judge(between)[0].sum(), between, create_graph=True)
        penalty = self.config.gradient_penalty * ((slope.norm(dim=1) - 1) ** 2).mean()
        told = F.cross_entropy(of_real, batch.labels) + F.cross_entropy(of_false, batch.labels)
        loss: Tensor = false.mean() - real.mean() + penalty + 0.5 * told
        return loss

    def generator_loss(self, batch: Batch, means: Tensor) -> Tensor:
        """To be taken for real, and for its class; and the visual pivot to the true ``means`` ``(C, F)``."""
        imagined = self.imagine(batch.texts, batch.noise)
        real, logits = self.judge(imagined)
        member = F.one_hot(batch.labels, self.config.n_classes).to(imagined.dtype)
        n_images = member.sum(dim=0)
        there = n_images > 0
        apart = (member.T @ imagined)[there] / n_images[there, None] - means[there]
        pivot = self.config.pivot * (apart**2).sum(dim=1).mean()
        return F.cross_entropy(logits, batch.labels) - real.mean() + pivot

    def imagine_classes(self, texts: Tensor) -> Tensor:
        """Texts ``(K, D)`` -> n features of each class ``(K, n, F)``; the same noise for every class and every time."""
        n = self.config.n_imagined
        noise = torch.randn(n, self.config.n_noise, generator=torch.Generator().manual_seed(0)).to(texts.device)
        repeated = texts.repeat_interleave(n, dim=0)
        return self.imagine(repeated, noise.repeat(len(texts), 1)).view(len(texts), n, -1)

    def generator_parameters(self) -> list[nn.Parameter]:
        """What the generator's step changes; the critic's changes the rest."""
        return [*self.reduce.parameters(), *self.generator.parameters()]

    def critic_parameters(self) -> list[nn.Parameter]:
        """See ``generator_parameters``."""
        return [*self.critic.parameters(), *self.reality.parameters(), *self.classes.parameters()]
