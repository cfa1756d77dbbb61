"""Configurations of base networks, by name: `training fit base --config NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.nn.bases import BaseSpec


@dataclass(frozen=True)
class Config:
    """One training run, whole: plain classification of the training classes."""

    base: BaseSpec
    dataset: str
    n_epochs: int
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
    "squeezenet-tiny": lambda: Config(BaseSpec("squeezenet1_1", 64), "tiny-imagenet", n_epochs=20, learning_rate=0.05),
}
"""Trained here from scratch on training classes alone, so that no other class was ever met."""
