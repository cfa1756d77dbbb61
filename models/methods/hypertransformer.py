"""HyperTransformer: transformers that write a convolutional network from its support images.

Source: Zhmoginov, Sandler, Vladymyrov, *HyperTransformer: Model Generation for Supervised and Semi-Supervised
Few-Shot Learning*, ICML 2022 (section numbers below are the paper's). The target is its Conv-4 (section 5.1):
blocks of 3x3 convolution -> normalisation -> nonlinearity -> 2x2 max-pooling, then a linear logits layer. Weights are
written layer by layer; the generator of layer l sees the support activations that passed through layers 1..l-1.

Where it departs from the paper, and why (measured reasons in docs/decisions.md):

* statistics of normalisation come from the support set and are folded into the written weights, so that a
  prediction depends on its own image alone (``normalisation="query"`` is the paper's way, for comparison);
* a written convolution is a learned tensor plus a written difference that starts at zero, read out through a linear
  layer, so that the token width does not depend on the width of the target network;
* the logits layer starts as section 4.2's ``W = sum_m a_m e_m``: an attention read-out over the support features,
  whose scores start at "same label", plus a written difference that starts at zero.

Shapes: B tasks, N images of a task, S support images, Q query images, K classes of a task, C channels, H height,
W width, D token width, F flattened features, T weight tokens of a layer. Activations of the target network are
``(N, B*C, H, W)``: one grouped convolution runs all tasks at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.conv4 import Pooling, pooled_size, unit
from models.nn.embeddings import ActivationEmbedding, ImageEmbedding
from models.nn.transformer import Block
from models.views import corners_of

EPS = 1e-5


@dataclass(frozen=True)
class HyperTransformerConfig:
    """Everything that decides the shape of a HyperTransformer and of the network it writes."""

    image_size: int = 28
    image_channels: int = 1
    channels: int = 64
    n_conv_layers: int = 4
    n_generated_layers: int = 5
    """How many of the last layers are written (1: the logits layer alone; n_conv_layers + 1: all)."""
    max_classes: int = 64
    allocation: Literal["output", "spatial"] = "output"
    architecture: Literal["encoder", "encoder-decoder"] = "encoder"
    n_transformer_layers: int = 2
    n_heads: int = 4
    token_dim: int = 64
    label_dim: int = 32
    image_embedding_dim: int = 64
    activation_embedding_dim: int = 32
    normalisation: Literal["support", "base", "query"] = "support"
    negative_slope: float = 0.0
    pooling: Pooling = "floor"
    """The paper's "floor" drops the last row and column of an odd width; "ceil" pools them too: 28 px end 2 wide."""
    pools_last: bool = True
    """Whether the last convolution is pooled as the others are; left out, its maps are twice as wide and high."""
    unit_features: bool = False
    """Features of unit mean square, so that logits compare directions (Gidaris and Komodakis, 2018, section 3.2)."""
    mirrored_support: bool = False
    """Each support image is shown mirrored, too: a photograph's class does not depend on it, a character's may."""
    shifted_support: int = 0
    """Once trained, a support image's features are the mean over it and itself shifted by so many px, four ways.

    In training the random distortions do that work."""
    pixel_mean: float = 0.9
    pixel_std: float = -0.28
    """Images enter as ``(p / 255 - mean) / std``; a negative std makes dark ink positive."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_generated_layers <= self.n_conv_layers + 1:
            raise ValueError(f"n_generated_layers must be 1..{self.n_conv_layers + 1}, got {self.n_generated_layers}")
        if self.token_dim % self.n_heads:
            raise ValueError(f"token_dim {self.token_dim} is not a multiple of n_heads {self.n_heads}")
        if not pooled_size(self.image_size, self.n_poolings, self.pooling):
            raise ValueError(f"{self.n_poolings} poolings leave nothing of a {self.image_size} px image")
        if self.mirrored_support and self.writes_convs:
            raise ValueError("support images are mirrored where all tasks share their convolutions, and not elsewhere")

    @property
    def n_poolings(self) -> int:
        """After each convolution one, but for the last where it is not pooled."""
        return self.n_conv_layers - (not self.pools_last)

    @property
    def feature_dim(self) -> int:
        """F: the length of the last convolution's flattened output, pooled where it is."""
        return self.channels * pooled_size(self.image_size, self.n_poolings, self.pooling) ** 2

    @property
    def writes_convs(self) -> bool:
        """Whether convolutions differ between tasks: written, or folded with statistics of the support set."""
        return self.n_generated_layers > 1 or self.normalisation != "base"


class GeneratedNetwork(NamedTuple):
    """The written weights of B Conv-4 networks, normalisation folded in.

    ``convs``: for each layer a weight ``(B*C_out, C_in, 3, 3)`` and a bias ``(B*C_out,)``;
    ``logits``: weight ``(B, K, F)`` and bias ``(B, K)``.
    """

    convs: list[tuple[Tensor, Tensor]]
    logits: tuple[Tensor, Tensor]

    def classify(self, features: Tensor) -> Tensor:
        """Features ``(B, Q, F)`` -> logits ``(B, Q, K)``, each task's by its own logits layer."""
        weight, bias = self.logits
        return features @ weight.transpose(-1, -2) + bias[:, None]


class WeightTransformer(nn.Module):
    """Sample tokens and weight tokens in, processed ones out; invariant to the order of the samples (section 4.1)."""

    def __init__(self, config: HyperTransformerConfig) -> None:
        super().__init__()
        blocks = [Block(config.token_dim, config.n_heads) for _ in range(config.n_transformer_layers)]
        self.blocks = nn.ModuleList(blocks)
        decoder = [Block(config.token_dim, config.n_heads) for _ in range(config.n_transformer_layers)]
        self.decoder = nn.ModuleList(decoder if config.architecture == "encoder-decoder" else [])
        self.norm = nn.LayerNorm(config.token_dim)

    def forward(self, weights: Tensor, samples: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Weight tokens ``(B, T, D)``, samples ``(B, S, D)`` -> both processed, and each layer's attention maps.

        Encoder: one sequence, weight tokens first (maps ``(B, heads, T+S, T+S)``). Encoder-decoder (Appendix E,
        Figure 5): the samples are encoded alone, the weight tokens then attend to them (maps ``(B, heads, T, S)``).
        """
        n_weights, maps = weights.shape[1], []
        if not self.decoder:
            tokens = torch.cat([weights, samples], dim=1)
            for block in self.blocks:
                tokens, attention = block(tokens)
                maps.append(attention)
            tokens = self.norm(tokens)
            return tokens[:, :n_weights], tokens[:, n_weights:], maps
        for block in self.blocks:
            samples, _ = block(samples)
        for block in self.decoder:
            weights, attention = block(weights, samples)
            maps.append(attention)
        return self.norm(weights), self.norm(samples), maps


class SampleTokens(nn.Module):
    """Label embedding, image embedding and activation embedding of each support image -> one token each."""

    def __init__(self, config: HyperTransformerConfig, activation_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(config.label_dim + config.image_embedding_dim + activation_dim, config.token_dim)

    def forward(self, labels: Tensor, images: Tensor, activations: Tensor) -> Tensor:
        """Embeddings ``(B, S, .)`` -> tokens ``(B, S, D)``."""
        tokens: Tensor = self.project(torch.cat([labels, images, activations], dim=-1))
        return tokens


class ConvGenerator(nn.Module):
    """Writes one convolution, a slice a token: ``W = W0 + Delta(support)``, Delta zero at the start."""

    def __init__(self, config: HyperTransformerConfig, in_channels: int) -> None:
        super().__init__()
        out_channels, spatial = config.channels, config.allocation == "spatial"
        self.spatial, self.in_channels, self.out_channels = spatial, in_channels, out_channels
        n_tokens, slice_size = (9, in_channels * out_channels) if spatial else (out_channels, in_channels * 9)
        self.activations = ActivationEmbedding(in_channels, config.activation_embedding_dim)
        self.samples = SampleTokens(config, config.activation_embedding_dim)
        self.placeholders = nn.Parameter(torch.randn(n_tokens, config.token_dim))
        self.transformer = WeightTransformer(config)
        self.read_out = nn.Linear(config.token_dim, slice_size)
        nn.init.zeros_(self.read_out.weight)
        nn.init.zeros_(self.read_out.bias)

    def forward(self, labels: Tensor, images: Tensor, activations: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings ``(B, S, .)``, activations ``(S, B*C, H, W)`` -> Delta ``(B*C_out, C_in, 3, 3)``, attention."""
        n_tasks, n_support = labels.shape[:2]
        embedded = self.activations(activations.unflatten(1, (n_tasks, -1)).flatten(0, 1))
        samples = self.samples(labels, images, embedded.unflatten(0, (n_support, n_tasks)).transpose(0, 1))
        weights, _, maps = self.transformer(self.placeholders.expand(n_tasks, -1, -1), samples)
        slices = self.read_out(weights)
        if self.spatial:
            kernels = slices.unflatten(-1, (self.out_channels, self.in_channels)).permute(0, 2, 3, 1)
        else:
            kernels = slices.unflatten(-1, (self.in_channels, 9))
        return kernels.reshape(n_tasks * self.out_channels, self.in_channels, 3, 3), maps


class LogitsGenerator(nn.Module):
    """Writes the logits layer: section 4.2's attention over support features, plus a difference zero at the start.

    ``W_k = 2 m c_k + Delta_k`` and ``b_k = -m c_k^2 + delta_k`` with ``c_k = sum_s a_ks f_s``: without the differences
    the logits are negative squared distances to the attended class means ``c_k``, in the learned diagonal metric m: one
    number where features have unit length. The weight token of class k carries that class's label embedding.
    """

    def __init__(self, config: HyperTransformerConfig) -> None:
        super().__init__()
        dim, features = config.token_dim, config.feature_dim
        self.samples = SampleTokens(config, features)
        self.placeholder = nn.Linear(config.label_dim, dim)
        self.transformer = WeightTransformer(config)
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        self.same_label = nn.Parameter(torch.tensor(6.0))
        directions = 1 if config.unit_features else features  # of features of one length, weights fit training classes
        self.log_metric = nn.Parameter(torch.full((directions,), math.log(6.0 / features)))
        self.read_out = nn.Linear(dim, features + 1)
        nn.init.zeros_(self.read_out.weight)
        nn.init.zeros_(self.read_out.bias)

    def forward(
        self, labels: Tensor, images: Tensor, features: Tensor, class_labels: Tensor, same: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write the logits layer.

        ``labels``, ``images`` ``(B, S, .)``; support ``features`` ``(B, S, F)``; ``class_labels`` ``(B, K, .)``;
        ``same`` ``(B, K, S)``, 1 where the image is labelled with the class. Returns the weight ``(B, K, F)``, the bias
        ``(B, K)`` and the read-out's attention ``(B, K, S)``.
        """
        samples = self.samples(labels, images, features)
        weights, samples, _ = self.transformer(self.placeholder(class_labels), samples)
        scores = self.query(weights) @ self.key(samples).transpose(-1, -2) / math.sqrt(weights.shape[-1])
        attention = (scores + self.same_label * same).softmax(dim=-1)
        means, metric, delta = attention @ features, self.log_metric.exp(), self.read_out(weights)
        return 2 * metric * means + delta[..., :-1], delta[..., -1] - (metric * means**2).sum(-1), attention


class HyperTransformer(nn.Module):
    """The meta-model: ``generate`` writes B networks from B support sets, ``classify`` runs them on queries."""

    base_mean: Tensor
    base_var: Tensor

    def __init__(self, config: HyperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.image_channels] + [config.channels] * config.n_conv_layers
        n_generated_convs = config.n_generated_layers - 1
        self.first_generated = config.n_conv_layers - n_generated_convs
        self.labels = nn.Embedding(config.max_classes + 1, config.label_dim)
        self.images = ImageEmbedding(config.image_channels, config.image_embedding_dim)
        self.base = nn.ParameterList(nn.init.kaiming_normal_(torch.empty(o, i, 3, 3)) for i, o in pairwise(widths))
        self.gammas = nn.ParameterList(torch.ones(config.channels) for _ in range(config.n_conv_layers))
        self.betas = nn.ParameterList(torch.zeros(config.channels) for _ in range(config.n_conv_layers))
        self.register_buffer("base_mean", torch.zeros(config.n_conv_layers, config.channels))
        self.register_buffer("base_var", torch.ones(config.n_conv_layers, config.channels))
        self.convs = nn.ModuleList(ConvGenerator(config, i) for i in widths[self.first_generated : -1])
        self.logits = LogitsGenerator(config)

    def generate(self, support: Tensor, labels: Tensor, slots: Tensor) -> GeneratedNetwork:
        """Write the networks of B tasks.

        Args:
            support: ``(B, S, C, H, W)`` float, normalised images.
            labels: ``(B, S)`` int64, each the slot of the image's class, or ``max_classes`` for an unlabelled image.
            slots: ``(B, K)`` int64, the label slot of each class: the order of the logits.
        """
        network, _ = self.generate_with_attention(support, labels, slots)
        return network

    def generate_with_attention(
        self, support: Tensor, labels: Tensor, slots: Tensor
    ) -> tuple[GeneratedNetwork, list[Tensor]]:
        """``generate``, and each written layer's attention: a convolution's last map, ``(B, K, S)`` of the logits."""
        if self.config.mirrored_support:
            support, labels = torch.cat([support, support.flip(-1)], dim=1), torch.cat([labels, labels], dim=1)
        n_tasks, n_support = labels.shape
        label_embeddings = self.labels(labels)
        image_embeddings = self.images(support.flatten(0, 1)).unflatten(0, (n_tasks, n_support))
        activations, n_networks = self._stack(support)
        convs, attentions = [], []
        for layer in range(self.config.n_conv_layers):
            weight = self.base[layer].repeat(n_networks, 1, 1, 1)
            if layer >= self.first_generated:
                generator = self.convs[layer - self.first_generated]
                delta, maps = generator(label_embeddings, image_embeddings, activations)
                weight = weight + delta
                attentions.append(maps[-1])
            raw = self._convolve(activations, weight)
            scale, shift = self._affine(layer, raw, n_networks)
            convs.append((weight * scale[:, None, None, None], shift))
            activations = self._activate(layer, raw * scale[:, None, None] + shift[:, None, None])
        features = self._unstack(activations, n_tasks)
        if self.config.shifted_support and not self.training:
            features = self._over_shifts(convs, support, features)
        same = (slots[:, :, None] == labels[:, None, :]).to(support.dtype)
        weight, bias, attention = self.logits(label_embeddings, image_embeddings, features, self.labels(slots), same)
        if self.config.mirrored_support:
            attention = attention.unflatten(-1, (2, -1)).sum(-2)
        return GeneratedNetwork(convs, (weight, bias)), [*attentions, attention]

    def classify(self, network: GeneratedNetwork, queries: Tensor) -> Tensor:
        """Queries ``(B, Q, C, H, W)`` through the written networks -> logits ``(B, Q, K)``.

        With ``normalisation="query"`` each layer is normalised once more with the statistics of the query batch, which
        cancels the folded ones: the paper's transductive evaluation.
        """
        return network.classify(self.features(network, queries))

    def features(self, network: GeneratedNetwork, queries: Tensor) -> Tensor:
        """Queries ``(B, Q, C, H, W)`` -> flattened features ``(B, Q, F)``."""
        return self._features(network.convs, queries)

    def _over_shifts(self, convs: list[tuple[Tensor, Tensor]], support: Tensor, features: Tensor) -> Tensor:
        """The mean of ``features`` ``(B, S, F)`` of the support and of those that it has shifted, edges repeated."""
        by, height, width = self.config.shifted_support, *support.shape[-2:]
        padded = F.pad(support.flatten(0, 1), (by, by, by, by), mode="replicate").unflatten(0, support.shape[:2])
        shifted = (padded[..., top : top + height, left : left + width] for top, left in corners_of(by))
        others = [self._features(convs, images) for images in shifted]  # one after another: no more memory than one
        return torch.stack([features, *others]).mean(0)

    def _features(self, convs: list[tuple[Tensor, Tensor]], images: Tensor) -> Tensor:
        activations, n_networks = self._stack(images)
        for layer, (weight, bias) in enumerate(convs):
            raw = self._convolve(activations, weight, bias)
            if self.config.normalisation == "query":
                gamma, beta = self.gammas[layer].repeat(n_networks), self.betas[layer].repeat(n_networks)
                raw = F.batch_norm(raw, None, None, gamma, beta, training=True, eps=EPS)
            activations = self._activate(layer, raw)
        return self._unstack(activations, len(images))

    def _stack(self, images: Tensor) -> tuple[Tensor, int]:
        """Images ``(B, N, C, H, W)`` as activations, and how many different convolutional networks run on them.

        Where all tasks share their convolutions, that is one network on ``B * N`` images: ``(N*B, C, H, W)``.
        """
        images = images.transpose(0, 1)
        if self.config.writes_convs:
            return images.flatten(1, 2), images.shape[1]
        # Not `contiguous`, which leaves images of one channel as they are, and with them every later convolution.
        return images.flatten(0, 1).clone(memory_format=torch.channels_last), 1

    def _unstack(self, activations: Tensor, n_tasks: int) -> Tensor:
        """The inverse, flattened: features ``(B, N, F)``."""
        features = activations.reshape(-1, n_tasks, self.config.feature_dim).transpose(0, 1)
        return unit(features) if self.config.unit_features else features

    def _convolve(self, activations: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(activations, weight, bias, padding=1, groups=activations.shape[1] // weight.shape[1])

    def _activate(self, layer: int, normalised: Tensor) -> Tensor:
        """Pooling first: it commutes with a monotone nonlinearity and leaves a quarter of the work."""
        if layer < self.config.n_poolings:
            normalised = F.max_pool2d(normalised, 2, ceil_mode=self.config.pooling == "ceil")
        return F.leaky_relu(normalised, self.config.negative_slope)

    def _affine(self, layer: int, raw: Tensor, n_networks: int) -> tuple[Tensor, Tensor]:
        """The scale and shift ``(networks * C,)`` that normalise a layer's raw output."""
        if self.config.normalisation != "base":
            var, mean = torch.var_mean(raw, dim=(0, 2, 3), unbiased=False)
        elif self.training:
            mean, var = self._batch_statistics(raw)
            with torch.no_grad():
                self.base_mean[layer].lerp_(mean.unflatten(0, (n_networks, -1)).mean(0).float(), 0.01)
                self.base_var[layer].lerp_(var.unflatten(0, (n_networks, -1)).mean(0).float(), 0.01)
        else:
            mean, var = self.base_mean[layer].repeat(n_networks), self.base_var[layer].repeat(n_networks)
        scale = self.gammas[layer].repeat(n_networks) * (var + EPS).rsqrt()
        return scale, self.betas[layer].repeat(n_networks) - mean * scale

    def _batch_statistics(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(C,)`` of ``(N, C, H, W)``, faster than ``var_mean`` where channels are last."""
        values = raw.movedim(1, -1).flatten(0, -2)
        mean = values.mean(0, dtype=torch.float32)
        return mean, (values * values).mean(0, dtype=torch.float32) - mean * mean
