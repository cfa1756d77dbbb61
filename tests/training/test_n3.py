"""N3 learns from described pictures, changes only what it may, and resumes bit for bit or not at all."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.methods.n3 import N3, Adaptation
from models.nn.bases import BaseSpec
from tests.training import described, small
from training.checkpoint import CheckpointError, read_header
from training.configs.n3 import Config, _logits_only
from training.data import DATASETS, descriptions
from training.data.descriptions import ClassTexts
from training.data.folders import DataError, ImageSet
from training.described import prepare
from training.encoded import EncodedTexts
from training.pretrained import origin, read_base
from training.recipes import n3

N_STEPS = 24


@pytest.fixture(scope="module")
def texts(cloths: Path) -> dict[str, ClassTexts]:
    return descriptions.read_descriptions(descriptions.beside(cloths))


@pytest.fixture(scope="module")
def split(cloths: Path) -> tuple[ImageSet, ImageSet]:
    return DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)


@pytest.fixture(scope="module")
def config(cloth_base: Path) -> Config:
    """Learns visibly in few steps; the classification layer stays as it is known."""
    return described.config(cloth_base, n_steps=N_STEPS, learning_rate=5e-3, without_text=0.0, n_queries=20)


class Fit:
    """Runs in folders of their own."""

    def __init__(self, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts]) -> None:
        self.split, self.texts = split, texts

    def __call__(self, config: Config, run: Path, *, stop_after: int | None = None, every: int = 100) -> N3:
        return n3.fit(
            config, *self.split, run, small.CPU, texts=self.texts, stop_after=stop_after, validate_every=every
        )


@pytest.fixture(scope="module")
def fit(split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts]) -> Fit:
    return Fit(split, texts)


@pytest.fixture(scope="module")
def start(fit: Fit, config: Config, tmp_path_factory: pytest.TempPathFactory) -> N3:
    """Before the first step."""
    return fit(config, tmp_path_factory.mktemp("start"), stop_after=0)


@pytest.fixture(scope="module")
def run(fit: Fit, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(config, folder, every=10)
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> N3:
    return n3.load_model(run / "checkpoint.safetensors")[0]


@pytest.fixture(scope="module")
def train_texts(config: Config, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts]) -> EncodedTexts:
    return n3._encode_unseen(config, split[0], texts)


def _changed(before: N3, after: N3) -> set[str]:
    """Names of what is not the same to the last bit."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}


def _head(model: N3) -> set[str]:
    own = {id(parameter) for parameter in model.head}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


# --- learning


def test_training_lowers_the_loss_on_images(
    config: Config, start: N3, trained: N3, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts]
) -> None:
    """On the same tasks, of other generators than a step's."""
    base = read_base(config.base, config.model.base)
    material, _ = prepare(config, base, split[0], texts, set(split[1].class_names), small.CPU)

    def mean_loss(model: N3) -> float:
        with torch.no_grad():
            losses = [
                n3._loss_on_images(config, model, material, small.CPU, np.random.default_rng([9, seed]))
                for seed in range(20)
            ]
        return float(torch.stack(losses).mean())

    assert mean_loss(trained) < mean_loss(start)


def test_a_trained_model_tells_its_training_classes_apart_by_words(
    trained: N3, split: tuple[ImageSet, ImageSet], train_texts: EncodedTexts
) -> None:
    """Ten-way, chance being 10 %."""
    assert split[0].n_classes == 10
    assert n3.validate(trained, split[0], train_texts, small.CPU)["adapted"] > 0.2


def test_the_log_tells_loss_and_accuracies_of_some_steps_and_the_last(run: Path) -> None:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [0, 10, 20, N_STEPS]
    assert all(0 <= entry[name] <= 1 for entry in entries for name in ("adapted", "base"))
    assert all(np.isfinite(entry["loss"]) for entry in entries[1:])


def test_validation_is_the_same_each_time_and_leaves_the_model_as_it_is(
    trained: N3, split: tuple[ImageSet, ImageSet], train_texts: EncodedTexts
) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    one, other = (n3.validate(trained, split[0], train_texts, small.CPU) for _ in range(2))
    assert one == other
    assert set(one) == {"adapted", "base"}
    assert all(0 <= share <= 1 for share in one.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_before_the_first_step_the_adapted_network_is_the_base(
    start: N3, split: tuple[ImageSet, ImageSet], train_texts: EncodedTexts
) -> None:
    found = n3.validate(start, split[0], train_texts, small.CPU)
    assert found["adapted"] == found["base"]


# --- what changes


def test_only_layers_that_are_named_are_adapted(start: N3, trained: N3, config: Config) -> None:
    assert trained.layers == config.model.adapts
    labels = torch.randn(3, config.model.label_dim, generator=torch.Generator().manual_seed(0))
    for model, moves in ((start, False), (trained, True)):
        codes = {layer: model.decoder(layer)(labels) for layer in model.layers}
        weight = torch.zeros(3, config.model.n_features)
        adapted = model.adapted(Adaptation(codes, weight, weight[:, 0]))
        assert set(adapted) == {f"{layer}.{part}" for layer in config.model.adapts for part in ("weight", "bias")}
        for name, value in adapted.items():
            assert torch.equal(value, model.target.base.network.get_parameter(name)) is not moves, name


def test_the_target_and_what_is_known_without_gradient_stay(start: N3, trained: N3, config: Config) -> None:
    kept = ("target.", "regression.")
    assert [name for name in _changed(start, trained) if name.startswith(kept)] == []
    base = read_base(config.base, config.model.base).state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in trained.target.base.state_dict().items())


def test_with_no_share_of_the_rate_the_head_stays_as_it_is_known(start: N3, trained: N3) -> None:
    changed = _changed(start, trained)
    assert changed & _head(start) == set()
    for part in ("tokens2label.", "labels2adaptation.", "images2label.", "decoders."):
        assert any(name.startswith(part) for name in changed), part


def test_steps_on_features_teach_the_head_and_no_decoder(fit: Fit, start: N3, config: Config, tmp_path: Path) -> None:
    """Then, on images, the decoders learn too."""
    config = replace(config, n_head_steps=3, head_share=0.5)
    early = fit(config, tmp_path / "run", stop_after=3)
    changed = _changed(start, early)
    assert _head(start) <= changed
    assert [name for name in changed if name.startswith("decoders.")] == []
    late = fit(config, tmp_path / "run", stop_after=2)
    assert any(name.startswith("decoders.") for name in _changed(early, late))


def test_without_layers_to_adapt_the_head_alone_is_trained(fit: Fit, start: N3, config: Config, tmp_path: Path) -> None:
    logits = _logits_only(replace(config, n_steps=3))
    model = fit(logits, tmp_path / "run")
    assert model.layers == ()
    assert not torch.equal(model.log_scale, start.log_scale)
    assert n3.load_model(tmp_path / "run" / "checkpoint.safetensors")[0].config == model.config


def test_without_layers_to_adapt_every_step_is_on_features(fit: Fit, config: Config, tmp_path: Path) -> None:
    """Whatever the configuration says of the first ones, as those of runs of older versions do; they go on."""
    logits, path = _logits_only(config), Path("checkpoint.safetensors")
    for name, n_head_steps in (("one", 0), ("other", 1), ("all", 3)):
        fit(replace(logits, n_head_steps=n_head_steps), tmp_path / name, stop_after=2)
        fit(logits, tmp_path / name, stop_after=1)
    one, other, whole = (load_file(tmp_path / name / path) for name in ("one", "other", "all"))
    assert [
        name for name in one if not (torch.equal(one[name], whole[name]) and torch.equal(one[name], other[name]))
    ] == []


def test_steps_that_would_adapt_no_layer_are_refused(config: Config) -> None:
    with pytest.raises(DataError, match=r"3 steps adapt no layer.* take 4 or more \(--steps\)"):
        replace(config, n_steps=3, n_head_steps=3)
    assert replace(config, n_steps=4, n_head_steps=3).n_steps == 4


# --- going on


@pytest.mark.parametrize("changes", [{}, {"n_head_steps": 3, "head_share": 0.5, "n_imagined": 0, "scatter": 2.0}])
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(
    changes: dict[str, float], fit: Fit, cloth_base: Path, tmp_path: Path
) -> None:
    """Bit for bit, optimizer state included; also where it stopped before its first step on images."""
    config = described.config(cloth_base, n_steps=5, **changes)
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for stop in stops:
            fit(config, tmp_path / name, stop_after=stop)
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(name.startswith("optimizer/") for name in whole)
    assert read_header(tmp_path / "parts" / "checkpoint.safetensors")["step"] == 5


def test_a_loaded_run_is_the_trained_one(fit: Fit, run: Path, trained: N3, config: Config) -> None:
    """A finished run is not trained further."""
    before = (run / "checkpoint.safetensors").read_bytes()
    again = fit(config, run)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert _changed(trained, again) == set()
    assert again.config == trained.config


def test_a_run_that_goes_on_or_is_finished_keeps_its_log(fit: Fit, config: Config, tmp_path: Path) -> None:
    """No step is told twice; so none loses the loss that it has had."""
    for n_steps in (2, 4, 4, 3):
        fit(replace(config, n_steps=n_steps), tmp_path, every=2)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [0, 2, 4]
    assert [entry["loss"] is None for entry in entries] == [True, False, False]


def test_a_run_does_not_go_on_with_other_images(
    run: Path, config: Config, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts]
) -> None:
    train, validation = split
    other = replace(train, pixels=255 - train.pixels)
    with pytest.raises(CheckpointError, match="another images; start a new run folder"):
        n3.fit(config, other, validation, run, small.CPU, texts=texts)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base": BaseSpec("squeezenet1_1", 48)}, "base"),
        ({"label_dim": 32}, "label_dim"),
        ({"adapts": ("features.12.squeeze",)}, "adapts"),
        ({"n_features": 7, "mu": 0.2}, "n_features, mu"),
    ],
)
def test_a_run_does_not_go_on_with_another_model(
    changes: dict[str, object], named: str, fit: Fit, run: Path, config: Config
) -> None:
    before = (run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=f"another {named}; start a new run folder"):
        fit(replace(config, model=replace(config.model, **changes)), run)  # type: ignore[arg-type]
    assert (run / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embeddings": "static"}, "embeddings"),
        ({"classifier_rows": True}, "classifier_rows"),
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"ways": (2, 3)}, "ways"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(
    changes: dict[str, object], named: str, fit: Fit, run: Path, config: Config
) -> None:
    with pytest.raises(CheckpointError, match=f"another {named}"):
        fit(replace(config, **changes), run)  # type: ignore[arg-type]


def test_a_run_does_not_go_on_with_other_descriptions(
    run: Path, fit: Fit, config: Config, texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    """Of its training classes; a run from before descriptions were counted goes on, and counts them from there on."""
    train, validation = fit.split
    name, held_out = train.class_names[0], validation.class_names[0]
    retold, elsewhere = (texts | {k: replace(texts[k], sentences=("Something else.",))} for k in (name, held_out))
    with pytest.raises(CheckpointError, match="another descriptions_digest; start a new run folder"):
        n3.fit(config, *fit.split, run, small.CPU, texts=retold)
    n3.fit(config, *fit.split, shutil.copytree(run, tmp_path / "run"), small.CPU, texts=elsewhere)
    path = tmp_path / "older" / "checkpoint.safetensors"
    fit(config, path.parent, stop_after=1)
    header = read_header(path)
    digest = header.pop("descriptions_digest")
    save_file(load_file(path), path, metadata={"header": json.dumps(header)})
    fit(config, path.parent, stop_after=1)
    header = read_header(path)
    assert (header["step"], header["descriptions_digest"]) == (2, digest)


def test_a_checkpoint_of_something_else_is_refused(cloth_base: Path) -> None:
    with pytest.raises(CheckpointError, match="is not of this version's N3"):
        n3.load_model(cloth_base)


def test_a_class_without_text_stops_a_run(
    config: Config, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    for name in (split[0].class_names[0], split[1].class_names[0]):
        some = {other: own for other, own in texts.items() if other != name}
        with pytest.raises(DataError, match=name):
            n3.fit(config, *split, tmp_path / "run", small.CPU, texts=some)


def test_classes_that_no_export_could_calibrate_on_stop_a_run(
    config: Config, split: tuple[ImageSet, ImageSet], texts: dict[str, ClassTexts], tmp_path: Path
) -> None:
    train, unseen = split
    kept = np.flatnonzero((unseen.labels != 1) | (np.arange(len(unseen.labels)) == unseen.indices[1][0]))
    few = replace(unseen, pixels=unseen.pixels[kept], labels=unseen.labels[kept])
    with pytest.raises(DataError, match=f"1 images of {few.class_names[1]}.* Add images of that class"):
        n3.fit(config, train, few, tmp_path / "run", small.CPU, texts=texts)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_keeps_its_checkpoint(
    fit: Fit, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(config, tmp_path, stop_after=1)
    before, loss_on_images = (tmp_path / "checkpoint.safetensors").read_bytes(), n3._loss_on_images
    monkeypatch.setattr(n3, "_loss_on_images", lambda *given: math.inf * loss_on_images(*given))
    with pytest.raises(CheckpointError, match=r"diverged at step 1 .* the checkpoint of step 1 is kept"):
        fit(config, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_run_says_what_its_base_was_even_once_that_is_gone(fit: Fit, config: Config, tmp_path: Path) -> None:
    lent = tmp_path / "base.safetensors"
    shutil.copy(config.base, lent)
    borrowed, run = replace(config, base=str(lent)), tmp_path / "run"
    fit(borrowed, run, stop_after=1)
    lent.unlink()
    fit(borrowed, run, stop_after=1)
    header = read_header(run / "checkpoint.safetensors")
    assert (header["step"], header["base_origin"]) == (2, origin(config.base))


def test_positions_are_those_in_the_task() -> None:
    classes = np.array([7, 2, 9])
    assert n3._positions(np.array([2, 9, 9, 7]), classes).tolist() == [1, 2, 2, 0]
