"""Golden predictions of the HyperTransformer: logits in float64 of models whose every number is a sine of its place.

python -m tests.models.golden      writes golden.json anew; say in the commit why the numbers changed
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.methods.hypertransformer import HyperTransformer
from tests.models import small

PATH = Path(__file__).with_name("golden.json")
CONFIGS = {
    "all layers, by output channel": small.CONFIG,
    "all layers, by place in the kernel": replace(small.CONFIG, allocation="spatial"),
    "last two layers, encoder and decoder": replace(small.CONFIG, n_generated_layers=2, architecture="encoder-decoder"),
    "logits alone, statistics of the base": replace(small.CONFIG, n_generated_layers=1, normalisation="base"),
    "colour, leaky": replace(small.CONFIG, image_channels=3, image_size=32, negative_slope=0.1),
    "borders pooled": replace(small.CONFIG, pooling="ceil"),
    "last convolution not pooled": replace(small.CONFIG, pools_last=False),
    "features of unit length": replace(small.CONFIG, n_generated_layers=1, normalisation="base", unit_features=True),
}


def waves(shape: torch.Size, seed: int) -> Tensor:
    """Numbers between -1 and 1 that no generator of random numbers decides."""
    n = math.prod(shape)
    return torch.sin(torch.arange(1, n + 1, dtype=torch.float64) * (1.7 + 0.01 * seed) + seed).view(shape)


def logits(name: str) -> list[list[float]]:
    """``(Q, K)`` for one task: three classes of two, one and one images, an unlabelled one, two queries."""
    config = CONFIGS[name]
    model = HyperTransformer(config).double().eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            is_drawn = parameter.ndim > 1 or name.endswith("bias")
            parameter.copy_(0.2 * waves(parameter.shape, seed) + (0 if is_drawn else parameter))
        images = waves(torch.Size((1, 7, config.image_channels, config.image_size, config.image_size)), 99)
        slots = torch.tensor([[7, 2, 5]])
        network = model.generate(images[:, :5], torch.tensor([[7, 7, 2, 5, config.max_classes]]), slots)
        found = model.classify(network, images[:, 5:])[0].tolist()
    return [[round(value, 9) for value in row] for row in found]


def main() -> None:
    PATH.write_text(json.dumps({name: logits(name) for name in CONFIGS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
