"""The protocol: what is measured is what the service would answer, repeatable, beside every control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.graph import INPUT, LOGITS, self_contained
from models.metamodel import MetaModel
from models.task import ClassSpec, TaskSpec
from tests.models import small as small_models
from tests.service import centroids
from training import evaluate as evaluation
from training.card import CONTROLS
from training.columns import STANDARD, evaluate_images, evaluate_standard
from training.data import omniglot
from training.data.dataset import Dataset
from training.data.folders import DataError, ImageSet
from training.episodes import Episode, EpisodeShape, sample
from training.evaluate import Evaluator, calibrate, evaluate

SHAPE = EpisodeShape(3, 1, 2, n_unlabeled=1)


@pytest.fixture
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "N_AGNOSTIC", 3)


@pytest.fixture(scope="module")
def column(exported: MetaModel, drawings: ImageSet) -> dict:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(evaluation, "N_AGNOSTIC", 5)
        return evaluate(exported, drawings, SHAPE, n_episodes=12, seed=4, progress=False)


def test_a_column_has_every_control_and_says_how_to_repeat_it(
    column: dict, exported: MetaModel, drawings: ImageSet
) -> None:
    assert column["accuracy"].keys() == CONTROLS.keys()
    for figure in column["accuracy"].values():
        assert 0 <= figure["mean"] <= 100
        assert figure["ci95"] >= 0
    assert column["chance"] == 33.33
    assert (column["meta_model"], column["meta_model_digest"]) == (exported.name, exported.digest)
    assert (column["data_digest"], column["n_classes"]) == (drawings.digest, drawings.n_classes)
    assert (column["seed"], column["n_episodes"], column["classes_from"]) == (4, 12, "anywhere")
    assert column["shape"]["n_unlabeled"] == 1
    assert "cores" in column["hardware"]
    assert column["abstention"]["threshold"] == exported.manifest.abstain_below
    assert 0 <= column["expected_calibration_error"] <= 1
    assert sum(part["n"] for part in column["reliability"]) == 12 * 6
    json.dumps(column, allow_nan=False)


@pytest.mark.usefixtures("_few_tasks")
def test_the_same_seed_gives_the_same_figures_and_another_seed_others(exported: MetaModel, drawings: ImageSet) -> None:
    one, same, other = (
        evaluate(exported, drawings, SHAPE, n_episodes=4, seed=seed, within_group=True, progress=False)
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one["reliability"] != other["reliability"]
    assert one["classes_from"] == "one group"


def test_answers_are_those_of_the_classifier_a_user_gets(exported: MetaModel, drawings: ImageSet) -> None:
    """Of the self-contained file, run by plain ONNX Runtime, one image at a time."""
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    episode = sample(drawings, SHAPE, rng)
    found, accuracy = Evaluator(exported, drawings).answer(episode, rng, controls=False)
    labels, pixels = episode.support_labels, drawings.pixels
    classes = [ClassSpec(f"class {k}", images=tuple(pixels[episode.support[labels == k]])) for k in range(3)]
    bundle = small_models.stored(exported, TaskSpec(tuple(classes), tuple(pixels[episode.unlabeled])))
    session = ort.InferenceSession(self_contained(exported, bundle.header, bundle.tensors))
    expected = np.concatenate([session.run([LOGITS], {INPUT: pixels[[i]]})[0] for i in episode.query])
    np.testing.assert_allclose(found.logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(found.labels, episode.query_labels)
    assert found.n_images == len(episode.support)
    assert accuracy == {"generated": float((expected.argmax(-1) == episode.query_labels).mean())}
    assert found.unknown.shape == (evaluation.N_UNKNOWN, 3)


def test_a_method_with_a_known_answer_is_measured_right(drawings: ImageSet, tmp_path: Path) -> None:
    """A meta-model that writes nearest centroids on pixels: the written network and that closed form agree."""
    images = ImageSet(drawings.pixels[:, 2:26:3, 2:26:3], drawings.labels, drawings.class_names, drawings.groups)
    meta_model = centroids.meta_model(tmp_path)
    found = evaluate(meta_model, images, EpisodeShape(4, 2, 3), n_episodes=25, progress=False)["accuracy"]
    assert found["generated"]["mean"] == pytest.approx(found["nearest_centroid"]["mean"], abs=1.5)
    assert found["generated"]["mean"] == pytest.approx(found["pixels_nearest_centroid"]["mean"], abs=1.5)
    assert found["generated"]["mean"] > 45
    assert found["shuffled_labels"]["mean"] < 45
    assert abs(found["task_agnostic"]["mean"] - 25) < 20


def test_with_every_class_in_the_task_there_is_no_unknown_one(exported: MetaModel, drawings: ImageSet) -> None:
    three = drawings.where(lambda name, _: name in drawings.class_names[:3])
    found = evaluate(exported, three, SHAPE, n_episodes=2, controls=False, progress=False)
    assert found["abstention"]["unknown_classes_abstained_percent"] is None
    assert found["accuracy"].keys() == {"generated"}


def test_calibration_finds_a_temperature_and_a_threshold(exported: MetaModel, drawings: ImageSet) -> None:
    found = calibrate(exported, drawings, [SHAPE, EpisodeShape(4, 2, 1)], n_episodes=6)
    assert 0.05 <= found.temperature <= 20
    assert 0 <= found.abstain_below <= 1
    assert found == calibrate(exported, drawings, [SHAPE, EpisodeShape(4, 2, 1)], n_episodes=6)


@pytest.mark.usefixtures("_few_tasks")
def test_classes_of_one_group_are_never_topped_up_from_others(
    exported: MetaModel, drawings: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three alphabets the first has five characters, the last four: 5-way tasks are of the others."""
    drawn: list[set[str]] = []

    def spy(images: ImageSet, *arguments: Any, **options: Any) -> Episode:
        episode = sample(images, *arguments, **options)
        drawn.append({images.groups[k] for k in episode.classes})
        return episode

    monkeypatch.setattr(evaluation, "sample", spy)
    found = evaluate(exported, drawings, EpisodeShape(5, 1, 2), n_episodes=6, within_group=True, progress=False)
    assert len(drawn) > 6
    assert {len(groups) for groups in drawn} == {1}
    assert set.union(*drawn) == {"ash", "birch"}
    assert (found["data_digest"], found["n_classes"]) == (drawings.digest, drawings.n_classes)


def test_a_card_leaves_out_the_column_that_no_group_is_large_enough_for(
    exported: MetaModel, drawings: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((EpisodeShape(5, 1, 2), True), (EpisodeShape(6, 1, 2), False), (EpisodeShape(6, 1, 2), True))
    monkeypatch.setattr("training.columns.STANDARD", {"omniglot": shapes})
    monkeypatch.setattr(
        "training.columns.DATASETS",
        {"omniglot": Dataset("omniglot", "drawings", omniglot.SPEC, lambda *_: drawings, Path)},
    )
    monkeypatch.setattr("training.columns.write_card", lambda _: None)
    monkeypatch.setattr(evaluation, "N_AGNOSTIC", 2)
    path = exported.folder / "evaluation.json"
    path.write_text(json.dumps({"training": {"config": {"dataset": "omniglot"}}}))
    try:
        columns = evaluate_standard(exported, n_episodes=2)["columns"]
    finally:
        path.unlink()
    found = [(column["shape"]["n_way"], column["classes_from"]) for column in columns]
    assert found == [(5, "one group"), (6, "anywhere")]


@pytest.mark.usefixtures("_few_tasks")
def test_a_column_on_ones_own_folders(exported: MetaModel, folders: Path, drawings: ImageSet) -> None:
    found = evaluate_images(exported, folders, SHAPE, within_group=False, n_episodes=2, seed=0)
    assert found["data_digest"] == drawings.digest
    with pytest.raises(DataError, match="these data have 14"):
        evaluate_images(exported, folders, EpisodeShape(15, 1, 1), within_group=False, n_episodes=2, seed=0)
    with pytest.raises(DataError, match="No group has 6 classes"):
        evaluate_images(exported, folders, EpisodeShape(6, 1, 1), within_group=True, n_episodes=2, seed=0)
    with pytest.raises(DataError, match=r"takes 9 images of a class.* give fewer --shots"):
        evaluate_images(exported, folders, EpisodeShape(2, 1, 8), within_group=False, n_episodes=2, seed=0)


def test_standard_columns_are_of_the_meta_models_own_data(exported: MetaModel) -> None:
    assert STANDARD.keys() == {"omniglot", "cifar-fs"}
    assert any(within for _, within in STANDARD["omniglot"])
    path = exported.folder / "evaluation.json"
    with pytest.raises(DataError, match=r"evaluation\.json is missing; export the meta-model again, or give --images"):
        evaluate_standard(exported)
    path.write_text(json.dumps({"training": {"own_images": True, "config": {"dataset": "omniglot"}}}))
    try:
        with pytest.raises(DataError, match=r"your own images.*--images"):
            evaluate_standard(exported)
        for damaged in ("{", "[]", '{"training": {}}'):
            path.write_text(damaged)
            with pytest.raises(
                DataError, match=r"evaluation\.json does not say how it was trained .*; export the meta"
            ):
                evaluate_standard(exported)
    finally:
        path.unlink()
