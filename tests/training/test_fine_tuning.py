"""Fine-tuning learns a task from its own images, repeats itself, and leaves the base it starts from alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import metamodel
from models.metamodel import MetaModel
from models.nn.bases import Base
from tests.models.small_n3 import BASE
from tests.training import described
from training import cli, columns, described_tasks, episodes, fine_tuning
from training.data import descriptions
from training.data.folders import DataError, ImageSet, read_images
from training.described_tasks import Subject
from training.episodes import Episode, EpisodeShape
from training.fine_tuning import FineTuned, Settings, fine_tune
from training.pretrained import base_of

SETTINGS = Settings(n_steps=20, batch_size=4, base_rate=1e-3)
N_SHOTS, N_QUERIES = 3, 20
SHAPE = EpisodeShape(3, 2, 2)


@pytest.fixture(scope="module")
def base() -> Base:
    torch.manual_seed(0)
    return Base(BASE)


def _photographs(n_each: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reddish noise, then bluish."""
    rng, labels = np.random.default_rng(seed), np.repeat([0, 1], n_each)
    pixels = rng.integers(0, 160, (len(labels), BASE.size, BASE.size, 3))
    pixels[:n_each, :, :, 0] += 90
    pixels[n_each:, :, :, 2] += 90
    return pixels.astype(np.uint8), labels


def _tuned(base: Base, *, seed: int = 0) -> FineTuned:
    return fine_tune(base, *_photographs(N_SHOTS, seed=1), settings=SETTINGS, seed=seed)


@pytest.fixture(scope="module")
def tuned(base: Base) -> FineTuned:
    return _tuned(base)


def test_two_classes_that_are_easily_told_apart_are_learned(tuned: FineTuned) -> None:
    queries, labels = _photographs(N_QUERIES, seed=2)
    assert (tuned.answer(queries).argmax(-1) == labels).mean() > 0.8
    assert tuned.seconds > 0


def test_the_same_seed_gives_the_same_network_and_another_seed_another(base: Base, tuned: FineTuned) -> None:
    queries, _ = _photographs(2, seed=2)
    np.testing.assert_array_equal(_tuned(base).answer(queries), tuned.answer(queries))
    assert not np.array_equal(_tuned(base, seed=1).answer(queries), tuned.answer(queries))


def test_every_layer_learns_and_the_base_stays_as_it_is(base: Base) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    own = dict(_tuned(base).network.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert own.keys() == {*(f"0.{name}" for name, _ in base.named_parameters()), "1.weight", "1.bias"}
    assert not any(torch.equal(own[f"0.{name}"], tensor) for name, tensor in base.named_parameters())


def test_a_base_that_is_held_is_trained_in_its_copy_alone(tuned: FineTuned, base: Base) -> None:
    held = Base(BASE)
    held.load_state_dict(base.state_dict())
    held.requires_grad_(False)
    queries, _ = _photographs(2, seed=2)
    np.testing.assert_array_equal(_tuned(held).answer(queries), tuned.answer(queries))
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_every_query_is_answered_on_its_own(tuned: FineTuned) -> None:
    queries, _ = _photographs(3, seed=2)
    alone = np.concatenate([tuned.answer(queries[i : i + 1]) for i in range(len(queries))])
    np.testing.assert_allclose(tuned.answer(queries), alone, atol=1e-4 * np.abs(alone).max())


def test_all_images_are_met_equally_often(base: Base) -> None:
    """Of five images in batches of two, ten steps meet each four times."""
    order = fine_tuning._batches(5, Settings(n_steps=10, batch_size=2), torch.Generator().manual_seed(0))
    assert [len(batch) for batch in order] == [2] * 10
    assert torch.bincount(torch.cat(order)).tolist() == [4] * 5


# --- beside a meta-model


@pytest.fixture(scope="module")
def meta_model(cloth_zoo: Path) -> MetaModel:
    return metamodel.load(cloth_zoo / "cloths")


@pytest.fixture(scope="module")
def subject(meta_model: MetaModel, cloths: Path) -> Subject:
    texts = descriptions.read_descriptions(descriptions.beside(cloths))
    return Subject(meta_model, read_images(cloths, meta_model.manifest.preprocess), texts)


@pytest.fixture(scope="module")
def compared(subject: Subject) -> dict[str, Any]:
    return fine_tuning.compare(subject, SHAPE, n_episodes=3, seed=5, settings=SETTINGS, progress=False)


def test_fine_tuning_is_measured_on_the_first_tasks_of_the_column(compared: dict[str, Any], subject: Subject) -> None:
    """What ``described_tasks.evaluate`` says of as many episodes; the tuned one by hand."""
    base, images = base_of(subject.meta_model.folder), subject.images
    right = []
    for number in range(3):
        episode, _, _ = subject.draw(SHAPE, 5, number)
        support = images.pixels[episode.support]
        tuned = fine_tune(base, support, episode.support_labels, settings=SETTINGS, seed=number)
        right.append((tuned.answer(images.pixels[episode.query]).argmax(-1) == episode.query_labels).mean())
    assert compared["accuracy"]["fine_tuned"]["mean"] == pytest.approx(100 * np.mean(right), abs=0.01)
    assert compared["n_episodes"] == 3
    assert compared["seconds"]["fine_tuned"] > 0
    assert compared["seconds"]["generated"] > 0
    assert compared["settings"]["n_steps"] == SETTINGS.n_steps


def test_the_option_adds_a_row_with_an_interval_of_its_own(
    meta_model: MetaModel, cloths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(described_tasks, "N_AGNOSTIC", 2)
    arguments = ["evaluate", str(meta_model.folder), "--images", str(cloths), "--ways", "3", "--shots", "1"]
    arguments += ["--queries", "2", "--episodes", "3", "--seed", "5", "--out", str(tmp_path / "column.json")]
    columns_by_option = []
    for option in (["--fine-tuning", "0"], ["--fine-tuning", "2"], ["--fine-tuning", "9"]):
        assert cli.main([*arguments, *option]) == 0
        columns_by_option.append(json.loads((tmp_path / "column.json").read_text()))
    without, two, all_ = columns_by_option
    assert "fine_tuning" not in without
    assert two["accuracy"].keys() - without["accuracy"].keys() == {"fine_tuned"}
    assert two["accuracy"]["fine_tuned"] == two["fine_tuning"]["accuracy"]["fine_tuned"]
    assert two["accuracy"]["fine_tuned"]["ci95"] >= 0
    assert (two["fine_tuning"]["n_episodes"], all_["fine_tuning"]["n_episodes"]) == (2, 3)
    for name in ("generated", "images_alone"):
        assert all_["fine_tuning"]["accuracy"][name] == without["accuracy"][name], "of all episodes, the same tasks"


def test_classes_of_one_group_are_asked_for_in_every_task(
    meta_model: MetaModel, cloths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in those that fine-tuning meets."""
    for name in described.CLASSES:
        shutil.copytree(cloths / name, tmp_path / "cloths" / name.split()[0] / name)
    shutil.copy(cloths / "descriptions.json", tmp_path / "cloths")
    drawn: list[set[str]] = []

    def sample(images: ImageSet, *arguments: Any, **options: Any) -> Episode:
        episode = episodes.sample(images, *arguments, **options)
        drawn.append({images.groups[k] for k in episode.classes})
        return episode

    monkeypatch.setattr(described_tasks, "N_AGNOSTIC", 2)
    monkeypatch.setattr(described_tasks, "sample", sample)
    found = columns.evaluate_images(
        meta_model, tmp_path / "cloths", EpisodeShape(3, 1, 2), within_group=True, n_episodes=4, seed=0, n_fine_tuned=2
    )
    assert found["classes_from"] == "one group"
    assert len(drawn) > 2 + 4 + 2
    assert {len(groups) for groups in drawn} == {1}


def test_unlabelled_images_that_nobody_takes_are_not_drawn(meta_model: MetaModel, cloths: Path) -> None:
    shape = EpisodeShape(3, 1, 2, n_unlabeled=1)
    with pytest.raises(DataError, match="takes no unlabelled images; leave out --unlabeled"):
        columns.evaluate_images(meta_model, cloths, shape, within_group=False, n_episodes=2, seed=0)


def test_without_images_or_a_base_there_is_nothing_to_fine_tune(
    meta_model: MetaModel, exported: MetaModel, cloths: Path
) -> None:
    given: dict[str, Any] = {"within_group": False, "n_episodes": 2, "seed": 0, "n_fine_tuned": 2}
    with pytest.raises(DataError, match="--shots 1"):
        columns.evaluate_images(meta_model, cloths, EpisodeShape(3, 0, 2), **given)
    with pytest.raises(DataError, match=r"lacks a base.*leave out --fine-tuning"):
        columns.evaluate_images(exported, cloths, EpisodeShape(3, 1, 2), **given)
    with pytest.raises(DataError, match=r"lacks a base.*leave out --fine-tuning"):
        columns.evaluate_standard(exported, n_fine_tuned=2)


def test_a_column_of_twenty_images_is_there_where_each_class_has_more() -> None:
    for n_images, shots in ((30, [0, 1, 5, 20]), (21, [0, 1, 5, 20]), (20, [0, 1, 5]), (5, [0, 1])):
        labels = np.repeat(np.arange(6), n_images)
        names = tuple(f"class {k}" for k in range(6))
        images = ImageSet(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, names, names)
        assert [shape.n_shot for shape, _ in columns.described_columns(images, 10, shots=True)] == shots
