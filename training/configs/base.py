"""Configurations of base networks, by name: `training fit base --config NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.nn.bases import TENSORFLOW_MOBILENET, BaseSpec


@dataclass(frozen=True)
class Config:
    """One training run, whole: plain classification of the training classes."""

    base: BaseSpec
    dataset: str
    n_epochs: int
    pretrained: str = ""
    """What it starts from (``training.pretrained``), folded; from scratch where empty."""
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warmup_steps: int = 200
    clip_norm: float = 5.0
    augmentation: float = 1.0
    bf16: bool = True
    seed: int = 0


CONFIGS: dict[str, Callable[[], Config]] = {
    "resnet18-tiny": lambda: Config(BaseSpec("resnet18", 64), "tiny-imagenet", n_epochs=20),
    "mobilenet-v2-tiny": lambda: Config(
        TENSORFLOW_MOBILENET,
        "tiny-imagenet",
        n_epochs=3,
        pretrained="imagenet-mobilenet",
        learning_rate=0.003,
        weight_decay=1e-5,
        batch_size=64,
        label_smoothing=0.0,
        warmup_steps=50,
    ),
    "squeezenet-tiny": lambda: Config(BaseSpec("squeezenet1_1", 64), "tiny-imagenet", n_epochs=20, learning_rate=0.05),
}
"""resnet18-tiny and squeezenet-tiny have met the training classes alone; mobilenet-v2-tiny starts from ImageNet."""
