"""Checkpoints come back whole, appear whole or not at all, and what is not one is refused with what to do."""

from __future__ import annotations

import math
import os
import pickle
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models import small as small_models
from training import checkpoint
from training.checkpoint import CheckpointError
from training.data.folders import DataError


def trained(seed: int = 0, *, n_steps: int = 2, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A little network and its optimizer after some steps; one parameter is never used."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(n_steps):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(8, 3)).square().mean())
        optimizer.step()
    return model, optimizer


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.save(path, *trained(), {"step": 2, "config": {"shapes": ((0.5, "é"),)}})
    return path


def test_model_optimizer_and_header_come_back(saved: Path) -> None:
    model, optimizer = trained()
    other, other_optimizer = trained(seed=1, n_steps=0)
    header = checkpoint.load(saved, other, other_optimizer)
    assert header == checkpoint.read_header(saved) == {"format": 1, "step": 2, "config": {"shapes": [[0.5, "é"]]}}
    assert equal(model.state_dict(), other.state_dict())
    states, others = (o.state_dict()["state"] for o in (optimizer, other_optimizer))
    assert states.keys() == others.keys()
    assert all(equal(states[i], others[i]) for i in states)


def test_a_loaded_optimizer_goes_on_as_the_first_would_have(saved: Path) -> None:
    runs = [trained(), trained(seed=1, n_steps=0)]
    checkpoint.load(saved, *runs[1])
    for model, optimizer in runs:
        torch.manual_seed(7)
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(8, 3)).square().mean())
        optimizer.step()
    assert equal(runs[0][0].state_dict(), runs[1][0].state_dict())


def test_a_checkpoint_is_plain_safetensors(saved: Path) -> None:
    names = set(load_file(saved))
    assert {"model/0.weight", "model/1.running_mean", "model/unused", "optimizer/1/exp_avg"} <= names


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_half_written_checkpoint_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    for read in (checkpoint.read_header, lambda path: checkpoint.load(path, trained()[0])):
        with pytest.raises(CheckpointError, match=r"not a whole checkpoint.*delete it and resume from another"):
            read(saved)


@pytest.mark.parametrize("data", [b"no checkpoint", pickle.dumps({"model": 1}), bytes(100), b"\xff" * 100])
def test_other_files_are_refused(saved: Path, data: bytes) -> None:
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        checkpoint.read_header(saved)


def test_a_missing_checkpoint_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; run `training fit` first"):
        checkpoint.read_header(tmp_path / "checkpoint.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError):
        checkpoint.read_header(tmp_path / "folder")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (None, "not a whole checkpoint"),
        ({"header": "["}, "not a whole checkpoint"),
        ({"other": "{}"}, "not a whole checkpoint"),
        ({"header": '{"format": 2}'}, "format 2, not 1"),
        ({"header": "{}"}, "format None, not 1"),
        ({"header": "[1]"}, "not a whole checkpoint"),
    ],
)
def test_safetensors_of_another_kind_are_refused(tmp_path: Path, metadata: dict[str, str] | None, says: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.read_header(path)


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="another architecture; start a new run folder"):
        checkpoint.load(saved, trained(width=5)[0])


def test_a_checkpoint_without_optimizer_state_can_be_used_but_not_resumed(tmp_path: Path) -> None:
    path, (model, _) = tmp_path / "weights.safetensors", trained()
    checkpoint.save(path, model, None, {"step": 2})
    other, optimizer = trained(seed=1)
    assert checkpoint.load(path, other)["step"] == 2
    assert equal(model.state_dict(), other.state_dict())
    with pytest.raises(CheckpointError, match="no optimizer state"):
        checkpoint.load(path, other, optimizer)


def test_a_save_that_fails_leaves_the_last_checkpoint(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(saved, *trained(seed=1), {"step": object()})
    assert saved.read_bytes() == before
    saved.with_suffix(".partial").mkdir()
    with pytest.raises(CheckpointError, match=r"could not be written \(.*goes on from the last checkpoint"):
        checkpoint.save(saved, *trained(seed=1), {"step": 3})
    assert saved.read_bytes() == before
    if os.geteuid():  # root writes everywhere
        saved.with_suffix(".partial").rmdir()
        saved.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(CheckpointError, match="denied"):
            checkpoint.save(saved, *trained(seed=1), {"step": 3})
        saved.parent.chmod(stat.S_IRWXU)
        assert saved.read_bytes() == before


def test_what_an_interrupted_save_left_is_not_read_and_is_written_over(saved: Path) -> None:
    partial = saved.with_suffix(".partial")
    partial.write_bytes(saved.read_bytes()[:50])
    assert checkpoint.read_header(saved)["step"] == 2
    checkpoint.save(saved, *trained(seed=1), {"step": 3})
    assert checkpoint.read_header(saved)["step"] == 3
    assert not partial.exists()


def test_text_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    checkpoint.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        checkpoint.write_text(path, "\ud800")
    assert path.read_text() == "old"
    checkpoint.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_hypertransformer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = small_models.model(), small_models.model(seed=1)
    checkpoint.save(tmp_path / "c.safetensors", model, None, {"step": 0})
    checkpoint.load(tmp_path / "c.safetensors", other)
    assert equal(model.state_dict(), other.state_dict())


def test_own_images_are_asked_for_before_any_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="on your own images; give them with --images"):
        checkpoint.refuse_other_source({"own_images": True}, None)
    with pytest.raises(DataError, match="config's data set; leave out --images"):
        checkpoint.refuse_other_source({"own_images": False}, tmp_path)
    for trained, images in (
        ({"own_images": True}, tmp_path),
        ({"own_images": False}, None),
        ({}, None),
        ({}, tmp_path),
    ):
        checkpoint.refuse_other_source(trained, images)


def test_a_loss_that_is_no_number_stops_a_run(saved: Path, tmp_path: Path) -> None:
    one, no_number, boundless = torch.tensor(1.5), torch.tensor(math.nan), torch.tensor(math.inf)
    assert checkpoint.finite_loss(one, torch.tensor(2.0), 7, saved) == 1.5
    for loss, norm in ((no_number, one), (one, no_number), (one, boundless), (boundless, one)):
        with pytest.raises(
            CheckpointError, match=r"diverged at step 7 .*; the checkpoint of step 2 is kept: .* --seed"
        ):
            checkpoint.finite_loss(loss, norm, 7, saved)
    with pytest.raises(CheckpointError, match="none is kept"):
        checkpoint.finite_loss(no_number, one, 7, tmp_path / "none.safetensors")
