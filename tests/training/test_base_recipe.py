"""Training a base learns, resumes bit for bit, goes on with its own images alone, and is measured on unseen classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.nn.bases import BaseSpec, Classifier
from tests.training import described, small
from training import augment, card, checkpoint
from training.checkpoint import CheckpointError
from training.configs.base import Config
from training.data import DATASETS
from training.data.folders import DataError, ImageSet
from training.episodes import shrink
from training.pretrained import origin
from training.recipes import base
from training.recipes.base import VALIDATION, fit, validate

N_STEPS = 4
"""Of 70 images, 24 at a time, twice over."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, ImageSet]:
    """Ten classes of cloths to train on, and two to validate."""
    folder = described.write_folders(tmp_path_factory.mktemp("base") / "cloths", described=False)
    return DATASETS["tiny-imagenet"].split(folder, size=described.SIZE)


@pytest.fixture(scope="module")
def whole(split: tuple[ImageSet, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    fit(described.BASE, *split, run, small.CPU)
    return run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_ends_with_a_checkpoint_and_figures_of_unseen_classes(whole: Path, split: tuple[ImageSet, ...]) -> None:
    header = checkpoint.read_header(whole / "checkpoint.safetensors")
    assert (header["method"], header["step"], header["n_classes"]) == ("base", N_STEPS, 10)
    assert header["train_data_digest"] == split[0].digest
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == N_STEPS
    assert 0 <= lines[-1]["validation"] <= 1


def test_it_learns_the_training_classes(split: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    config = replace(described.BASE, n_epochs=15, augmentation=0.0, label_smoothing=0.0)
    torch.manual_seed(config.seed)
    images, labels = torch.from_numpy(split[0].pixels), torch.from_numpy(split[0].labels)

    @torch.no_grad()
    def loss(model: Classifier) -> float:
        return float(torch.nn.functional.cross_entropy(model.eval()(images), labels))

    before = loss(Classifier(config.base, split[0].n_classes))
    assert loss(fit(config, *split, tmp_path, small.CPU)) < 0.8 * before


@pytest.mark.parametrize("stops", [(1,), (1, 2)], ids=str)
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(
    split: tuple[ImageSet, ImageSet], whole: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """Bit for bit, optimizer state included; the stops lie within an epoch and at its end."""
    for stop in stops:
        fit(described.BASE, *split, tmp_path, small.CPU, stop_after=stop)
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors")["step"] == sum(stops)
    assert not same(whole, tmp_path)
    fit(described.BASE, *split, tmp_path, small.CPU)
    assert same(whole, tmp_path)


def test_normalisation_resumes_with_its_statistics(split: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """Which SqueezeNet has none of: running means and variances are the run's, too."""
    config = replace(described.BASE, base=BaseSpec("resnet18", described.SIZE), n_epochs=1)
    fit(config, *split, tmp_path / "whole", small.CPU)
    for _ in range(2):
        fit(config, *split, tmp_path / "parts", small.CPU, stop_after=1)
    assert any(name.endswith("running_var") for name in tensors(tmp_path / "whole"))
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_trained_further(split: tuple[ImageSet, ImageSet], whole: Path) -> None:
    before = (whole / "checkpoint.safetensors").read_bytes()
    fit(described.BASE, *split, whole, small.CPU)
    assert (whole / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (replace(described.BASE, base=BaseSpec("squeezenet1_1", described.SIZE, same_padding=True)), "base"),
        (described.BASE, "images"),
    ],
    ids=["base", "images"],
)
def test_a_run_of_something_else_is_not_resumed(
    split: tuple[ImageSet, ImageSet], whole: Path, config: Config, named: str
) -> None:
    train, validation = split
    if named == "images":  # of as many classes, so that every tensor has its shape
        train = replace(train, pixels=np.ascontiguousarray(train.pixels[:, ::-1]))
    before = (whole / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=f"was trained with another {named}; start a new run folder with --run"):
        fit(config, train, validation, whole, small.CPU)
    assert (whole / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("changes", [{"seed": 1}, {"learning_rate": 0.02}, {"weight_decay": 0.0}], ids=str)
def test_a_run_with_other_settings_is_not_resumed(
    split: tuple[ImageSet, ImageSet], whole: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=f"another {next(iter(changes))}; start a new run folder with --run"):
        fit(replace(described.BASE, **changes), *split, whole, small.CPU)


def test_a_run_of_an_older_version_goes_on_for_longer(
    split: tuple[ImageSet, ImageSet], whole: Path, tmp_path: Path
) -> None:
    """What its configuration does not have yet was as the default is; precision and length may change."""
    header = checkpoint.read_header(whole / "checkpoint.safetensors")
    del header["config"]["augmentation"], header["config"]["base"]["same_padding"]
    save_file(tensors(whole), tmp_path / "checkpoint.safetensors", metadata={"header": json.dumps(header)})
    fit(replace(described.BASE, n_epochs=3, bf16=True), *split, tmp_path, small.CPU, stop_after=1)
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors")["step"] == N_STEPS + 1


def test_a_run_that_diverges_keeps_its_checkpoint(
    split: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(described.BASE, *split, tmp_path, small.CPU, stop_after=1)
    before = tensors(tmp_path)
    monkeypatch.setattr(augment, "distort_pixels", lambda pixels, *_: math.nan * pixels.float())
    with pytest.raises(CheckpointError, match=r"diverged at step 1 .* the checkpoint of step 1 is kept"):
        fit(described.BASE, *split, tmp_path, small.CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(tmp_path).items())


def test_a_base_of_ones_own_images_says_so(split: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    fit(described.BASE, *split, tmp_path, small.CPU, own_images=True, stop_after=1)
    found = origin(str(tmp_path / "checkpoint.safetensors"))
    assert found["own_images"]
    assert f"images of one's own (digest {split[0].digest})" in card.met(found, "another")


def test_a_pretrained_one_takes_classes_it_has_rows_for(
    split: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = tmp_path / "imagenet-text" / "descriptions.json"
    texts.parent.mkdir()
    texts.write_text(json.dumps({"n01440764": {"index": 0}}))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    config = replace(described.BASE, pretrained="imagenet-mobilenet")
    with pytest.raises(
        DataError, match=r"has no row for '.*', which is no WordNet id; train these images from scratch"
    ):
        fit(config, *split, tmp_path / "run", small.CPU)


def test_validation_tells_what_features_are_worth(
    split: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 where each class has features of its own, chance where all have the same; the model trains on afterwards."""
    monkeypatch.setattr(base, "N_VALIDATION_TASKS", 20)
    _, unseen = split
    shape = shrink(VALIDATION, unseen)
    model = Classifier(described.SPEC, 2)
    apart = replace(
        unseen, pixels=np.ones_like(unseen.pixels) * (40 + 170 * unseen.labels[:, None, None, None]).astype(np.uint8)
    )
    alike = replace(unseen, pixels=np.zeros_like(unseen.pixels))
    assert validate(model, apart, shape) == pytest.approx(1)
    assert validate(model, alike, shape) == pytest.approx(1 / unseen.n_classes)
    assert 0 <= validate(model, unseen, shape) <= 1
    assert model.training
