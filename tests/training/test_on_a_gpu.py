"""A step of every recipe on a GPU: nothing that it computes with is left on the CPU. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training import described, small
from training import checkpoint
from training.data import DATASETS
from training.data.descriptions import beside, read_descriptions
from training.data.folders import ImageSet
from training.recipes import base, hypertransformer, n3, word_baselines
from training.runtime import Runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = Runtime(torch.device("cuda"), bf16=True, rank=0, world_size=1)


def steps_of(run: Path) -> int:
    return int(checkpoint.read_header(run / "checkpoint.safetensors")["step"])


@pytest.mark.parametrize("drawn", [True, False], ids=["drawings", "photographs"])
def test_a_hypertransformer_takes_steps_and_goes_on(drawings: ImageSet, tmp_path: Path, drawn: bool) -> None:
    config, images = small.CONFIG, drawings
    if not drawn:
        config = replace(config, model=replace(small.MODEL, image_channels=3))
        images = replace(drawings, pixels=drawings.pixels.repeat(3, axis=-1))
    for _ in range(2):
        hypertransformer.fit(config, images, images, tmp_path, GPU, stop_after=1)
    assert steps_of(tmp_path) == 2


def test_a_base_takes_steps_and_goes_on(cloths: Path, tmp_path: Path) -> None:
    split = DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)
    for _ in range(2):
        base.fit(described.BASE, *split, tmp_path, GPU, stop_after=1)
    assert steps_of(tmp_path) == 2


def test_an_n3_takes_steps_and_goes_on(cloths: Path, cloth_base: Path, tmp_path: Path) -> None:
    """Its first on features, its second on images."""
    split, texts = DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE), read_descriptions(beside(cloths))
    for _ in range(2):
        n3.fit(described.config(cloth_base, n_head_steps=1), *split, tmp_path, GPU, texts=texts, stop_after=1)
    assert steps_of(tmp_path) == 2


@pytest.mark.parametrize("method", ["linear", "text2model", "pdcnn-fc-conv", "megazsl"])
def test_what_n3_is_compared_with_takes_steps(method: str, cloths: Path, cloth_base: Path, tmp_path: Path) -> None:
    train, _ = DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)
    config = described.peer(method, cloth_base, n_steps=2)  # type: ignore[arg-type]
    word_baselines.fit(config, train, tmp_path / "run", GPU, texts=read_descriptions(beside(cloths)))
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
