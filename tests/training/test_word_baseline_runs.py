"""A run of what N3 is compared with: who writes it, and with what it may not go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.training import described, small
from training.checkpoint import CheckpointError, read_header
from training.data import DATASETS
from training.data.descriptions import ClassTexts, beside, read_descriptions
from training.data.folders import ImageSet
from training.recipes.word_baselines import fit
from training.word_features import FEATURES


@pytest.fixture(scope="module")
def texts(cloths: Path) -> dict[str, ClassTexts]:
    return read_descriptions(beside(cloths))


@pytest.fixture(scope="module")
def train(cloths: Path) -> ImageSet:
    return DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)[0]


def test_of_several_processes_one_writes_the_checkpoint(
    cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    """A method with a closed form, by the second of two, which takes no step with the other."""
    second = replace(small.CPU, rank=1, world_size=2)
    fit(described.peer("linear", cloth_base), train, tmp_path / "run", second, texts=texts)
    assert [path.name for path in tmp_path.iterdir()] == [FEATURES]


def test_a_run_does_not_go_on_with_other_descriptions(
    cloth_base: Path, train: ImageSet, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    """One from before they were counted does."""
    config, path = described.peer("text2model", cloth_base, n_steps=2), tmp_path / "run" / "checkpoint.safetensors"
    fit(config, train, path.parent, small.CPU, texts=texts, stop_after=1)
    name = train.class_names[0]
    retold = texts | {name: replace(texts[name], sentences=("Something else.",))}
    with pytest.raises(CheckpointError, match="another descriptions_digest; start a new run folder"):
        fit(config, train, path.parent, small.CPU, texts=retold)
    header = read_header(path)
    del header["descriptions_digest"]
    save_file(load_file(path), path, metadata={"header": json.dumps(header)})
    fit(config, train, path.parent, small.CPU, texts=texts)
    assert read_header(path)["step"] == 2
