"""What a training by words needs beside images, looked for before these are read, which takes minutes."""

from __future__ import annotations

from pathlib import Path

from models.nn.bases import BaseSpec
from training.configs import n3, word_baselines
from training.data import descriptions
from training.data.descriptions import ClassTexts
from training.encoded import read_encoder
from training.pretrained import read_base


def texts_for(
    config: n3.Config | word_baselines.Config, base: BaseSpec, images: Path | None, run: Path
) -> dict[str, ClassTexts]:
    """The classes' texts: of a user's own ``images``, or of the config's data set.

    Raises DataError, CheckpointError or MissingEncoder where these, a new run's base, or the text encoder are missing.
    """
    texts = descriptions.of(config.dataset, images)
    read_encoder(config.text_encoder)
    if not (run / "checkpoint.safetensors").exists():  # an N3 that goes on has its base in there
        read_base(config.base, base)
    return texts
