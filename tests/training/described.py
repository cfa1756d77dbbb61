"""Runs of N3 that take seconds: pictures of coloured shapes with descriptions, a small base, a small configuration."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.encoder_files import find
from models.errors import MissingEncoder
from models.methods.n3 import N3Config
from models.nn.bases import BaseSpec
from training.configs import base, n3, word_baselines

SIZE, N_IMAGES = 32, 7
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (230, 220, 50)}
FORMS = ("striped", "dotted", "plain")
CLASSES = tuple(f"{form} {colour}" for form in FORMS for colour in COLOURS)
SPEC = BaseSpec("squeezenet1_1", SIZE)
BASE = base.Config(
    SPEC, "tiny-imagenet", n_epochs=2, batch_size=24, learning_rate=0.01, warmup_steps=2, bf16=False
)  # fmt: skip


def config(checkpoint: Path, **changes: object) -> n3.Config:
    """On the base of this checkpoint; two of its layers adapted."""
    model = N3Config(
        SPEC, n_features=8, label_dim=16, n_heads=2, n_text_layers=1, n_label_layers=1, code_dim=4, column_dim=4,
        adapts=("features.12.squeeze", "features.12.expand1x1"), mu=0.1,
    )  # fmt: skip
    fields = {
        "n_steps": 4, "n_documents": 4, "ways": (2, 5), "shots": (0, 1, 2), "n_queries": 10, "n_imagined": 16,
        "warmup_steps": 2, "bf16": False,
    }  # fmt: skip
    return n3.Config(model, "tiny-imagenet", str(checkpoint), **{**fields, **changes})  # type: ignore[arg-type]


def peer(method: word_baselines.Method, checkpoint: Path, **changes: object) -> word_baselines.Config:
    """A baseline on the base of this checkpoint."""
    named = word_baselines.of_method(word_baselines.TINY, method)
    fields = {
        "base_spec": SPEC, "base": str(checkpoint), "n_features": 8, "maps": "features.12.expand3x3",
        "n_documents": 4, "ways": (2, 5), "n_queries": 40, "n_steps": 60, "warmup_steps": 2,
    }  # fmt: skip
    return replace(named, **{**fields, **changes})  # type: ignore[arg-type]


def write_folders(folder: Path, *, described: bool = True) -> Path:
    """``<class>/<number>.png`` of every class, and ``descriptions.json``."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(N_IMAGES):
            (folder / name / f"{number}.png").write_bytes(_photograph(name, rng))
    if described:
        (folder / "descriptions.json").write_text(json.dumps({name: _texts(name) for name in CLASSES}))
    return folder


def skip_without_encoder() -> None:
    try:
        find("all-minilm-l6-v2")
    except MissingEncoder as missing:
        pytest.skip(str(missing))


def _texts(name: str) -> list[str]:
    form, colour = name.split()
    return [f"A {form} {colour} cloth.", f"Its colour is {colour}.", f"The cloth is {form} all over."]


def _photograph(name: str, rng: np.random.Generator) -> bytes:
    form, colour = name.split()
    pixels = np.full((SIZE, SIZE, 3), COLOURS[colour], np.float64)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    phase, period = rng.integers(0, 8), rng.integers(6, 9)
    if form != "plain":
        dark = (columns + phase) % period < period // 2
        dark &= (rows % period < period // 2) | (form == "striped")
        pixels[dark] *= 0.2
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "PNG")
    return file.getvalue()
