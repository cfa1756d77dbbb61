"""N3: descriptions, support images or both -> every layer of a base network adapted to the classes of one task.

Source: Jin, Liu, Yan, Eichenberger and Morency, *Language to Network: Conditional Parameter Adaptation with Natural
Language Descriptions*, ACL 2020 (section numbers below are the paper's): frozen token embeddings -> Tokens2Label ->
Labels2Adaptation -> a non-autoregressive decoder for each layer, a token for each column (output channel) of its weight
-> ``theta' = gamma * theta + mu * delta`` (section 3), and a new classification layer.

Where it departs from the paper, and why (measured reasons in docs/decisions.md):

* a decoder's tokens are the codes that a task keeps; ``delta = codes @ basis``, with a basis shared by all tasks, gives
  a column of the weight and its bias. A task so takes hundreds of kB, not the base's megabytes;
* no position in the set of classes: listing them in another order changes nothing (the paper takes medians of orders);
* the classification layer starts at what is known without training: kernel ridge regression from text to the mean of a
  class's features, moved towards its support images by Bayes' rule under shared covariances. A row is that mean, scaled
  to the length that all rows have. Networks add to it a difference that starts at zero;
* support images enter beside the texts, either or both for each class (HyperTransformer's "any multi-modal task").

Shapes: K classes, T tokens and N images of the class with most, D token embedding, F features, Q images, d label
embedding, O output channels and I fan-in of a layer, R length of a code, M remembered texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.nn.bases import Base, BaseSpec
from models.nn.transformer import Block


@dataclass(frozen=True)
class N3Config:
    """Everything that decides the shape of a generator and of the network it adapts."""

    base: BaseSpec
    n_features: int = 512
    """F, after the projection of the base's own features."""
    n_remembered: int = 0
    """M: texts of the kernel ridge regression."""
    token_dim: int = 384
    label_dim: int = 192
    n_heads: int = 4
    n_text_layers: int = 2
    n_label_layers: int = 2
    code_dim: int = 32
    column_dim: int = 16
    adapts: tuple[str, ...] = ("",)
    """Prefixes of the names of the layers that are adapted; ("",) is every layer, () the classification layer alone."""
    gamma: float | None = None
    """Held at this value; learned from 1 where None (the paper's ablation holds it)."""
    mu: float = 0.15
    """Where mu starts; the paper's 1e-3, of differences that do not start at zero, takes tens of thousands of steps."""


class Adaptation(NamedTuple):
    """What is generated for one task. ``codes``: layer name -> ``(O, R)``; ``weight`` ``(K, F)``; ``bias`` ``(K,)``."""

    codes: dict[str, Tensor]
    weight: Tensor
    bias: Tensor


class Tokens2Label(nn.Module):
    """The tokens of each class's document -> one label embedding (section 3.1): a learned token attends to them."""

    def __init__(self, config: N3Config) -> None:
        super().__init__()
        self.project = nn.Linear(config.token_dim, config.label_dim)
        self.label = nn.Parameter(0.02 * torch.randn(1, 1, config.label_dim))
        blocks = [Block(config.label_dim, config.n_heads) for _ in range(config.n_text_layers)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens ``(K, T, D)``, mask ``(K, T)`` -> ``(K, d)``; a class without text gets the embedding of none."""
        n_classes = tokens.shape[0]
        sequence = torch.cat([self.label.expand(n_classes, -1, -1), self.project(tokens)], dim=1)
        there = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        for block in self.blocks:
            sequence, _ = block(sequence, mask=there)
        return sequence[:, 0]


class KernelRidge(nn.Module):
    """Text -> the mean of its class's features, by Gaussian-kernel ridge regression on the training texts' embeddings.

    Fitted in closed form (``training/closed_forms.py``), not by gradient.
    """

    texts: Tensor
    coefficients: Tensor
    middle: Tensor
    sharpness: Tensor

    def __init__(self, config: N3Config) -> None:
        super().__init__()
        self.register_buffer("texts", torch.zeros(config.n_remembered, config.token_dim))
        self.register_buffer("coefficients", torch.zeros(config.n_remembered, config.n_features))
        self.register_buffer("middle", torch.zeros(config.token_dim))
        self.register_buffer("sharpness", torch.tensor(2.0))

    def forward(self, texts: Tensor) -> Tensor:
        """Unit text embeddings ``(K, D)`` -> means ``(K, F)``."""
        texts = F.normalize(texts - self.middle, dim=-1)
        squares = (texts**2).sum(-1, keepdim=True) + (self.texts**2).sum(-1) - 2 * texts @ self.texts.T
        return torch.exp(-self.sharpness * squares) @ self.coefficients


class Fusion(nn.Module):
    """Bayes' rule for the mean of a class: what its text says, moved towards its images' mean, for each feature apart.

    Of n images of variance 1 around a mean of variance r around what the text says, the mean moves by n r / (1 + n r).
    """

    def __init__(self, config: N3Config) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2, config.n_features))
        """Of class means without (0) and with (1) a text, over that within a class."""

    def forward(self, prior: Tensor, has_text: Tensor, means: Tensor, n_images: Tensor) -> Tensor:
        """Prior and image means ``(K, F)``, has_text and n_images ``(K, 1)`` -> posterior means ``(K, F)``."""
        variance = torch.exp(torch.lerp(self.log_variance[0], self.log_variance[1], has_text))
        trust = n_images * variance / (1 + n_images * variance)
        return prior + trust * (means - prior)


class LayerDecoder(nn.Module):
    """Label embeddings -> the codes of one layer (section 3.2): a learned token for each column attends to them."""

    def __init__(self, config: N3Config, layer: nn.Conv2d, *, gamma: float | None) -> None:
        super().__init__()
        n_columns, fan_in, dim = layer.out_channels, layer.weight[0].numel(), config.code_dim
        self.columns = nn.Parameter(torch.randn(n_columns, config.column_dim))
        self.keys = nn.Linear(config.label_dim, config.column_dim)
        self.values = nn.Linear(config.label_dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim + config.column_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.basis = nn.Parameter(torch.randn(dim, fan_in + 1) / math.sqrt(dim))
        self.mu = nn.Parameter(torch.tensor(1.0))
        self.gamma = nn.Parameter(torch.tensor(1.0 if gamma is None else gamma), requires_grad=gamma is None)
        self.first_mu = config.mu

    @torch.no_grad()
    def start(self, layer: nn.Conv2d) -> None:
        """Every difference is zero; of unit codes and mu = 1, one would be about as large as the layer's weight."""
        self.basis.mul_(layer.weight.std() / self.basis.std() / math.sqrt(len(self.basis)))
        for last in (self.values, self.mlp[-1]):
            for parameter in last.parameters():
                parameter.zero_()

    def forward(self, labels: Tensor) -> Tensor:
        """Labels ``(K, d)`` -> codes ``(O, R)``."""
        scores = self.columns @ self.keys(labels).T / math.sqrt(self.columns.shape[1])
        read = scores.softmax(dim=-1) @ self.values(labels)
        codes: Tensor = read + self.mlp(torch.cat([read, self.columns], dim=-1))
        return codes

    def bases(self) -> tuple[Tensor, Tensor]:
        """Mu times the basis, of the weight's columns ``(R, I)`` and of the bias ``(R, 1)``."""
        scaled = self.first_mu * self.mu * self.basis
        return scaled[:, :-1], scaled[:, -1:]


class Target(nn.Module):
    """The network that is adapted: base, projection of its features, classification layer.

    Features are centred, scaled to unit length and projected to where every class has about unit covariance.
    """

    def __init__(self, config: N3Config, n_classes: int) -> None:
        super().__init__()
        self.base = Base(config.base)
        self.center = nn.Parameter(torch.zeros(self.base.n_features))
        self.projection = nn.Linear(self.base.n_features, config.n_features)
        self.logits = nn.Linear(config.n_features, n_classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(Q, H, W, C)`` uint8 -> logits ``(Q, K)`` and features ``(Q, F)``."""
        features = self.project(self.base(pixels))
        return self.logits(features), features

    def project(self, raw: Tensor) -> Tensor:
        """The base's own features ``(Q, ...)`` -> ``(Q, F)``."""
        projected: Tensor = self.projection(F.normalize(raw - self.center, dim=-1))
        return projected


class N3(nn.Module):
    """The generator, with the base that it adapts."""

    def __init__(self, config: N3Config) -> None:
        super().__init__()
        self.config = config
        self.target = Target(config, n_classes=2)
        self.target.logits.requires_grad_(False)  # every task has its own
        self.tokens2label = Tokens2Label(config)
        self.regression = KernelRidge(config)
        self.fusion = Fusion(config)
        self.images2label = nn.Linear(config.n_features + 2, config.label_dim)
        blocks = [Block(config.label_dim, config.n_heads) for _ in range(config.n_label_layers)]
        self.labels2adaptation = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.label_dim)
        self.difference = nn.Linear(config.label_dim, config.n_features)
        nn.init.zeros_(self.difference.weight)
        nn.init.zeros_(self.difference.bias)
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        layers = {n: c for n, c in self.target.base.convolutions.items() if n.startswith(config.adapts)}
        made = {_key(name): LayerDecoder(config, layer, gamma=config.gamma) for name, layer in layers.items()}
        self.decoders = nn.ModuleDict(made)
        self.layers = tuple(layers)

    @property
    def head(self) -> list[nn.Parameter]:
        """What of the classification layer is learned by gradient, beside what is known without."""
        return [*self.difference.parameters(), *self.fusion.parameters(), self.log_scale]

    def decoder(self, layer: str) -> LayerDecoder:
        """The decoder of one of ``layers``."""
        decoder = self.decoders[_key(layer)]
        assert isinstance(decoder, LayerDecoder)
        return decoder

    def start_decoders(self) -> None:
        """Start differences at zero, in the scale of the weights that they are added to, once these are in the base."""
        for layer in self.layers:
            self.decoder(layer).start(self.target.base.convolutions[layer])

    def generate(
        self, tokens: Tensor, token_mask: Tensor, features: Tensor, feature_mask: Tensor, prior: Tensor | None = None
    ) -> Adaptation:
        """Tokens ``(K, T, D)``, features ``(K, N, F)`` and their masks -> one task's adaptation.

        ``prior`` ``(K, F)``: what to take for the regression of the texts (in training, one that has not met them).
        """
        has_text, n_images = token_mask.amax(dim=1, keepdim=True), feature_mask.sum(dim=1, keepdim=True)
        prior = (self.regression(_mean_text(tokens, token_mask)) if prior is None else prior) * has_text
        mean = (features * feature_mask[..., None]).sum(dim=1) / n_images.clamp(min=1)
        posterior = self.fusion(prior, has_text, mean, n_images)
        facts = torch.cat([posterior, has_text, torch.log1p(n_images)], dim=1)
        labels = self.tokens2label(tokens, token_mask) + self.images2label(facts)
        for block in self.labels2adaptation:
            labels = block(labels[None])[0][0]
        labels = self.norm(labels)
        rows = self.log_scale.exp() * F.normalize(posterior + self.difference(labels), dim=-1)
        codes = {layer: self.decoder(layer)(labels) for layer in self.layers}
        return Adaptation(codes, rows, torch.zeros_like(rows[:, 0]))

    def adapted(self, adaptation: Adaptation) -> dict[str, Tensor]:
        """The adapted parameters of the base's network, by their names in it: ``gamma * theta + mu * delta``."""
        network, changed = self.target.base.network, {}
        for layer, codes in adaptation.codes.items():
            gamma, bases = self.decoder(layer).gamma, self.decoder(layer).bases()
            for name, basis in zip((f"{layer}.weight", f"{layer}.bias"), bases, strict=True):
                theta = network.get_parameter(name)
                changed[name] = gamma * theta + (codes @ basis).view_as(theta)
        return changed

    def classify(self, adaptation: Adaptation, pixels: Tensor) -> Tensor:
        """Pixels ``(Q, H, W, C)`` -> logits ``(Q, K)`` by the adapted network; every image on its own."""
        return self.logits(adaptation, self.features(self.adapted(adaptation), pixels))

    def features(self, adapted: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels ``(Q, H, W, C)`` -> the base's features ``(Q, G)``, some of its parameters being ``adapted``."""
        changed = {f"network.{name}": value for name, value in adapted.items()}
        raw: Tensor = functional_call(self.target.base, changed, (pixels,))
        return raw

    def logits(self, adaptation: Adaptation, raw: Tensor) -> Tensor:
        """The base's own features ``(Q, ...)`` -> logits ``(Q, K)``."""
        return F.linear(self.target.project(raw), adaptation.weight, adaptation.bias)


def _key(layer: str) -> str:
    """A layer's name as a ModuleDict takes it."""
    return layer.replace(".", "/")


def _mean_text(tokens: Tensor, mask: Tensor) -> Tensor:
    """Tokens ``(K, T, D)`` -> the unit mean ``(K, D)``: the encoder's sentence embedding."""
    total = (tokens * mask[..., None]).sum(dim=1)
    return F.normalize(total, dim=-1)
