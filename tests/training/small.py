"""Runs that take seconds: a small configuration, and drawings of the invented alphabet as a user would bring them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from service.demo.alphabet import character_name, drawing
from tests.models.small import EXPORTED
from training.configs.hypertransformer import Config
from training.episodes import EpisodeShape
from training.runtime import Runtime

N_CHARACTERS, N_HANDS = 14, 8
ALPHABETS = ("ash", "birch", "cedar")
MODEL = replace(EXPORTED, max_classes=16)
CONFIG = Config(
    MODEL,
    "omniglot",
    shapes=((0.7, EpisodeShape(4, 1, 2)), (0.3, EpisodeShape(3, 2, 1, n_unlabeled=1, unbalanced=True))),
    validation=EpisodeShape(3, 1, 2),
    n_steps=6,
    images_per_step=48,
    warmup_steps=2,
)
BASE = replace(
    CONFIG,
    model=replace(MODEL, n_generated_layers=1, normalisation="base", unit_features=True, mirrored_support=True),
    across_tasks=0.5,
    dense=0.5,
)
"""The logits layer alone is written, on convolutions that all tasks share, normalised with running statistics."""
CPU = Runtime(torch.device("cpu"), bf16=False, rank=0, world_size=1)


def write_folders(folder: Path, *, n_characters: int = N_CHARACTERS, n_hands: int = N_HANDS) -> Path:
    for character in range(n_characters):
        place = folder / ALPHABETS[character % len(ALPHABETS)] / character_name(character)
        place.mkdir(parents=True)
        for hand in range(n_hands):
            (place / f"{hand}.png").write_bytes(drawing(character, hand))
    return folder
