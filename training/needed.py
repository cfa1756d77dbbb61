"""What a training by words needs beside images, looked for before these are read, which takes minutes."""

from __future__ import annotations

from pathlib import Path

from models.nn.bases import BaseSpec
from training.configs import n3, word_baselines
from training.data import descriptions
from training.data.descriptions import ClassTexts
from training.data.imagenet_text import class_indices
from training.encoded import read_encoder
from training.pretrained import classifier_rows, read_base


def texts_for(
    config: n3.Config | word_baselines.Config, base: BaseSpec, images: Path | None, run: Path
) -> dict[str, ClassTexts]:
    """The classes' texts: of a user's own ``images``, or of the config's data set.

    Raises DataError, CheckpointError or MissingEncoder where these, the base, classifier rows, or the text encoder are
    missing.
    """
    texts = descriptions.of(config.dataset, images)
    read_encoder(config.text_encoder)
    has_base = False
    if isinstance(config, n3.Config):
        has_base = (run / "checkpoint.safetensors").exists()  # a run that goes on has it in there
        if config.classifier_rows:
            class_indices()
            classifier_rows()
    if not has_base:
        read_base(config.base, base)
    return texts
