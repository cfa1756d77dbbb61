"""Training learns, resumes bit for bit, runs in bfloat16 and on several processes; episodes follow from the numbers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.methods.hypertransformer import HyperTransformer
from tests.models import small as small_models
from tests.training import small
from training import checkpoint
from training.checkpoint import CheckpointError
from training.configs.hypertransformer import CONFIGS, Config
from training.data.folders import ImageSet
from training.episodes import EpisodeShape, sample
from training.losses import of_queries
from training.recipes import hypertransformer
from training.recipes.hypertransformer import (
    METHOD,
    Trained,
    _shape_of,
    _train_step,
    assemble,
    fit,
    load_model,
    validate,
)
from training.runtime import Runtime, start
from training.schedule import learning_rate

ROOT = Path(__file__).parents[2]
NEVER = Path("never-written")


def run(config: Config, images: ImageSet, folder: Path, *, stop_after: int | None = None) -> HyperTransformer:
    return fit(config, images, images, folder, small.CPU, stop_after=stop_after)


def assert_bit_equal(one: HyperTransformer, other: HyperTransformer) -> None:
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


# --- resuming


@pytest.mark.parametrize("config", [small.CONFIG, small.BASE], ids=["all layers", "base statistics"])
@pytest.mark.parametrize("stops", [(2,), (1, 4)], ids=str)
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(
    drawings: ImageSet, tmp_path: Path, config: Config, stops: tuple[int, ...]
) -> None:
    """Bit for bit: in the returned model, and in the files, optimizer state included."""
    whole = run(config, drawings, tmp_path / "whole")
    for stop in stops:
        run(config, drawings, tmp_path / "parts", stop_after=stop)
    resumed = run(config, drawings, tmp_path / "parts")
    assert_bit_equal(whole, resumed)
    files = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_a_finished_run_is_not_trained_further(drawings: ImageSet, tmp_path: Path) -> None:
    one = run(small.CONFIG, drawings, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert_bit_equal(one, run(small.CONFIG, drawings, tmp_path))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_more_steps_can_be_asked_for_later(drawings: ImageSet, tmp_path: Path) -> None:
    run(small.CONFIG, drawings, tmp_path)
    run(replace(small.CONFIG, n_steps=8), drawings, tmp_path)
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors")["step"] == 8


def test_a_run_of_another_architecture_is_not_resumed(drawings: ImageSet, tmp_path: Path) -> None:
    """Also where every tensor has the same shape."""
    run(small.CONFIG, drawings, tmp_path, stop_after=1)
    other = replace(small.CONFIG, model=replace(small.MODEL, n_heads=4, negative_slope=0.1))
    with pytest.raises(CheckpointError, match=r"another n_heads, negative_slope; start a new run folder"):
        run(other, drawings, tmp_path)
    with pytest.raises(CheckpointError, match="another architecture"):
        run(replace(small.CONFIG, model=replace(small.MODEL, channels=8)), drawings, tmp_path)


def test_a_run_does_not_go_on_with_other_images(drawings: ImageSet, tmp_path: Path) -> None:
    run(small.CONFIG, drawings, tmp_path, stop_after=1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="another train_data_digest; start a new run folder"):
        run(small.CONFIG, replace_pixels(drawings, 255 - drawings.pixels), tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"learning_rate": 1e-3, "augmentation": 0.5}, "learning_rate, augmentation"),
        ({"shapes": ((1.0, EpisodeShape(4, 1, 2)),)}, "shapes"),
    ],
    ids=str,
)
def test_a_run_does_not_go_on_with_other_settings(
    drawings: ImageSet, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """Also where it is finished, and would be said to be trained."""
    run(small.CONFIG, drawings, tmp_path)
    with pytest.raises(CheckpointError, match=f"was trained with another {named}; start a new run folder with --run"):
        run(replace(small.CONFIG, **changes), drawings, tmp_path)


def test_a_run_of_an_older_version_goes_on(drawings: ImageSet, tmp_path: Path) -> None:
    """What its configuration does not have yet was as the default is."""
    run(small.CONFIG, drawings, tmp_path, stop_after=1)
    path = tmp_path / "checkpoint.safetensors"
    header = checkpoint.read_header(path)
    del header["config"]["unlabeled_sharpness"], header["config"]["model"]["architecture"]
    for _, shape in header["config"]["shapes"]:
        shape.pop("n_unlabeled") if not shape["n_unlabeled"] else None
    save_file(load_file(path), path, metadata={"header": json.dumps(header)})
    with pytest.raises(CheckpointError, match="another unlabeled_sharpness"):
        run(replace(small.CONFIG, unlabeled_sharpness=5.0), drawings, tmp_path)
    run(replace(small.CONFIG, bf16=True, n_steps=2), drawings, tmp_path)
    assert checkpoint.read_header(path)["step"] == 2


def test_a_run_that_diverges_keeps_its_checkpoint(
    drawings: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small.CONFIG, drawings, tmp_path, stop_after=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr(hypertransformer, "of_queries", lambda *given: math.nan * of_queries(*given))
    with pytest.raises(CheckpointError, match=r"diverged at step 2 .* the checkpoint of step 2 is kept"):
        run(small.CONFIG, drawings, tmp_path, stop_after=1)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_half_written_checkpoint_stops_a_run_before_it_starts(drawings: ImageSet, tmp_path: Path) -> None:
    run(small.CONFIG, drawings, tmp_path, stop_after=1)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(small.CONFIG, drawings, tmp_path)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_model(path)


def test_a_checkpoint_of_another_version_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for model in ({"channels": 4, "no_such_field": 1}, {"n_heads": 3}):
        checkpoint.save(path, small_models.model(), None, {"step": 1, "config": {"model": model}})
        with pytest.raises(CheckpointError, match="not of this version"):
            load_model(path)


# --- what a run leaves


def test_a_run_says_what_it_was(drawings: ImageSet, tmp_path: Path) -> None:
    trained = run(small.CONFIG, drawings, tmp_path)
    model, header = load_model(tmp_path / "checkpoint.safetensors")
    assert (header["method"], header["step"]) == (METHOD, 6)
    assert header["train_data_digest"] == drawings.digest
    assert header["config"]["shapes"][1][1]["unbalanced"] is True
    assert model.config == small.MODEL
    assert not model.training
    assert_bit_equal(trained, model)
    (entry,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entry["step"] == 6
    assert 0 < entry["loss"] < 10
    assert 0 <= entry["validation_accuracy"] <= 1


def test_checkpoints_and_validations_come_during_a_run(drawings: ImageSet, tmp_path: Path) -> None:
    fit(small.CONFIG, drawings, drawings, tmp_path, small.CPU, checkpoint_every_s=0, validate_every=2, stop_after=5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors")["step"] == 5


def test_only_the_main_process_writes(drawings: ImageSet, tmp_path: Path) -> None:
    other = replace(small.CPU, rank=1)
    fit(small.CONFIG, drawings, drawings, tmp_path / "run", other, checkpoint_every_s=0, validate_every=1)
    assert not (tmp_path / "run").exists()


# --- learning


def shaken(config: Config, images: ImageSet) -> Trained:
    """What a run trains, no written difference zero."""
    model = Trained(config.model, images.n_classes if config.dense else 0)
    model.load_state_dict(model.state_dict() | small_models.model(config.model).state_dict())
    return model.train()


def test_it_learns_to_tell_drawings_apart(drawings: ImageSet, tmp_path: Path) -> None:
    """A minute's pen strokes: from chance to well above it, on the images that it saw."""
    shape = EpisodeShape(4, 1, 3)
    config = replace(
        small.CONFIG, shapes=((1.0, shape),), validation=shape, n_steps=60, images_per_step=160, augmentation=0.3
    )
    torch.manual_seed(config.seed)
    before = validate(HyperTransformer(config.model), config, drawings, small.CPU)
    after = validate(run(config, drawings, tmp_path), config, drawings, small.CPU)
    assert after > max(0.6, before + 0.05)


def test_bfloat16_runs_and_keeps_weights_in_full(drawings: ImageSet, tmp_path: Path) -> None:
    half = replace(small.CPU, bf16=True)
    model = fit(replace(small.CONFIG, bf16=True), drawings, drawings, tmp_path, half, stop_after=3)
    whole = run(small.CONFIG, drawings, tmp_path / "whole", stop_after=3)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all(), name
    distance = max(
        float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )
    assert 0 < distance < 0.05


@pytest.mark.parametrize("config", [small.CONFIG, small.BASE], ids=["all layers", "base statistics"])
def test_a_step_moves_every_parameter_that_has_a_use(drawings: ImageSet, config: Config) -> None:
    model = shaken(config, drawings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        assert math.isfinite(_train_step(config, model, optimizer, drawings, small.CPU, step, NEVER))
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in still if "norm_memory" not in name} == set()


def test_the_rows_of_training_classes_are_no_part_of_the_model(drawings: ImageSet, tmp_path: Path) -> None:
    trained = run(small.BASE, drawings, tmp_path, stop_after=1)
    assert trained.get_parameter("rows").shape == (drawings.n_classes, small.BASE.model.feature_dim)
    model, _ = load_model(tmp_path / "checkpoint.safetensors")
    assert model.state_dict().keys() == HyperTransformer(small.BASE.model).state_dict().keys()


def test_features_that_differ_between_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="across_tasks"):
        replace(small.CONFIG, across_tasks=0.5)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    rates = [learning_rate(0.1, step, 1000, n_warmup=100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.001)
    assert 80 < int(np.argmax(rates)) < 100
    assert all(a < b for a, b in pairwise(rates[:80]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert rates[-1] < 1e-5


# --- episodes of a step


def test_validation_is_repeatable_changes_nothing_and_goes_back_to_training(drawings: ImageSet) -> None:
    model = small_models.model(small.MODEL).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = (validate(model, small.CONFIG, drawings, small.CPU, n_steps=2) for _ in range(2))
    assert one == two
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_kinds_of_episodes_come_in_their_shares_alike_on_every_process() -> None:
    kinds = [_shape_of(small.CONFIG, step) for step in range(600)]
    assert 0.62 < kinds.count(small.CONFIG.shapes[0][1]) / 600 < 0.78
    assert kinds == [_shape_of(small.CONFIG, step) for step in range(600)]
    assert kinds != [_shape_of(replace(small.CONFIG, seed=1), step) for step in range(600)]


def test_assembled_tasks_have_random_slots_and_their_own_images(drawings: ImageSet) -> None:
    shape, rng = EpisodeShape(5, 2, 3, n_unlabeled=1), np.random.default_rng(0)
    episodes = [sample(drawings, shape, rng) for _ in range(30)]
    support, labels, slots, queries, targets = assemble(small.MODEL, drawings, episodes, torch.device("cpu"), rng)
    assert support.shape == (30, 15, 1, 28, 28)
    assert queries.shape == (30, 15, 1, 28, 28)
    assert (labels.dtype, slots.dtype, targets.dtype) == (torch.int64,) * 3
    assert set(slots.flatten().tolist()) == set(range(small.MODEL.max_classes))
    assert all(len(set(row)) == 5 for row in slots.tolist())
    assert (labels[:, 10:] == small.MODEL.max_classes).all()
    assert torch.equal(labels[:, :10], slots.repeat_interleave(2, dim=1))
    assert targets[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    mean, std = small.MODEL.pixel_mean, small.MODEL.pixel_std
    expected = (drawings.pixels[episodes[3].query[4]].astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(queries[3, 4].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_augmentation_distorts_a_class_alike_in_support_unlabelled_and_query(drawings: ImageSet) -> None:
    """One image stands for all of each class: with no distortion of single images, it stays the same within a class."""
    first = np.stack([drawings.pixels[drawings.indices[k][0]] for k in drawings.labels])
    same = replace_pixels(drawings, first)
    rng = np.random.default_rng(0)
    episodes = [sample(same, EpisodeShape(3, 2, 2, n_unlabeled=1), rng) for _ in range(2)]
    random = torch.Generator().manual_seed(0)
    support, _, _, queries, _ = assemble(
        small.MODEL, same, episodes, torch.device("cpu"), rng, random=random, augmentation=0.0
    )
    for task in range(2):
        for k in range(3):
            of_class = [support[task, 2 * k], support[task, 2 * k + 1], support[task, 6 + k], queries[task, 2 * k]]
            for image in of_class[1:]:
                torch.testing.assert_close(image, of_class[0])
        assert (support[task, 0] - support[task, 2]).abs().max() > 0.5


def test_tasks_are_augmented_where_the_network_is(drawings: ImageSet) -> None:
    """On a device that, as a GPU does, refuses tensors of another."""
    rng, random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    episodes = [sample(drawings, EpisodeShape(3, 2, 2), rng) for _ in range(2)]
    assert all(
        part.is_meta for part in assemble(small.MODEL, drawings, episodes, torch.device("meta"), rng, random=random)
    )


def replace_pixels(images: ImageSet, pixels: np.ndarray) -> ImageSet:
    return ImageSet(pixels, images.labels, images.class_names, images.groups)


# --- where it runs


def test_alone_a_run_needs_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    here = start(device="cpu")
    assert (here.device.type, here.rank, here.world_size, here.is_main) == ("cpu", 0, 1, True)
    gradient = torch.ones(3)
    here.average([gradient])
    assert torch.equal(gradient, torch.ones(3))
    here.close()


def test_automatic_device_is_a_gpu_where_there_is_one() -> None:
    assert start().device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_processes_draw_different_tasks(drawings: ImageSet) -> None:
    losses = []
    for rank in (0, 1, 0):
        model = shaken(small.CONFIG, drawings)
        here = Runtime(torch.device("cpu"), bf16=False, rank=rank, world_size=1)
        optimizer = torch.optim.AdamW(model.parameters())
        losses.append(_train_step(small.CONFIG, model, optimizer, drawings, here, 0, NEVER))
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


def test_two_processes_train_as_one_and_hold_equal_weights(folders: Path, drawings: ImageSet, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.two_ranks", str(folders), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    header = checkpoint.read_header(tmp_path / "run" / "checkpoint.safetensors")
    assert header["step"] == 2
    alone = run(small.BASE, drawings, tmp_path / "alone", stop_after=2).state_dict()
    assert one.keys() == alone.keys()
    differ = {name for name in one if not torch.equal(one[name], alone[name])}
    assert {"base_mean", "base_var", "base.0"} <= differ


# --- the shipped configurations


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_can_be_built_and_is_within_its_model(name: str) -> None:
    config = CONFIGS[name]()
    model = HyperTransformer(config.model)
    assert sum(p.numel() for p in model.parameters()) > 0
    shapes = [config.validation, *(shape for _, shape in config.shapes)]
    assert all(2 <= shape.n_way <= config.model.max_classes for shape in shapes)
    assert all(weight > 0 for weight, _ in config.shapes)
    assert config.model.normalisation != "query" or "transductive" in name
    assert config.n_steps > config.warmup_steps
