"""Every number of a card comes from evaluation.json."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.models import small as small_models
from training import card

FIGURE = {"mean": 81.25, "ci95": 0.31}
COLUMN = {
    "shape": {"n_way": 20, "n_shot": 1, "n_query": 5, "n_unlabeled": 0, "unbalanced": False},
    "classes_from": "one group",
    "n_episodes": 1234,
    "n_classes": 97,
    "data_digest": "0123456789ab",
    "seed": 42,
    "chance": 5.0,
    "accuracy": {"generated": FIGURE, "nearest_centroid": {"mean": 77.7, "ci95": 0.4}},
    "expected_calibration_error": 0.0345,
    "abstention": {
        "threshold": 0.31,
        "answered_percent": 88.8,
        "accuracy_when_answered": 91.1,
        "unknown_classes_abstained_percent": 66.6,
    },
}
EVALUATION: dict[str, Any] = {
    "training": {
        "config": {"dataset": "omniglot", "images_per_step": 777, "seed": 3},
        "steps": 5555,
        "n_parameters": 1234567,
        "train_classes": 3141,
        "train_data_digest": "ba9876543210",
        "validation_groups": ["Greek", "Latin"],
    },
    "parity": {"generator": 2.5e-6, "logits": 1.5e-6},
    "columns": [COLUMN, {**COLUMN, "shape": {**COLUMN["shape"], "n_unlabeled": 4}}],  # type: ignore[dict-item]
    "notes": ["What was tried."],
}
MANIFEST = small_models.manifest()
BOTH = {
    **COLUMN,
    "given": "words and images",
    "classes_from": "anywhere",
    "shape": {**COLUMN["shape"], "n_way": 5},
    "n_episodes": 51,
}  # type: ignore[dict-item]
WORDS: dict[str, Any] = {
    **COLUMN,
    "given": "words",
    "classes_from": "anywhere",
    "shape": {**BOTH["shape"], "n_way": 40, "n_shot": 0},  # type: ignore[dict-item]
    "accuracy": {name: {"mean": 10.0 + i, "ci95": 0.5} for i, name in enumerate(card.DESCRIBED_CONTROLS)},
}
CONFIG = {
    "model": {"base": {"architecture": "resnet18", "size": 64}, "adapts": [""]},
    "dataset": "tiny-imagenet",
    "base": "runs/somewhere/checkpoint.safetensors",
    "classifier_rows": False,
    "text_encoder": "all-minilm-l6-v2",
    "embeddings": "contextual",
    "n_queries": 77,
    "n_imagined": 256,
    "seed": 3,
}
OWN_BASE = {"pretrained": "", "dataset": "tiny-imagenet", "train_data_digest": "ba9876543210"}
DESCRIBED = {
    **EVALUATION,
    "training": {**EVALUATION["training"], "config": CONFIG, "base": OWN_BASE},
    "columns": [WORDS, BOTH],
}


def described(**training: Any) -> str:
    return card.render(MANIFEST, {**DESCRIBED, "training": {**DESCRIBED["training"], **training}})


def test_a_card_shows_what_the_evaluation_says() -> None:
    text = card.render(MANIFEST, EVALUATION)
    expected = [
        "# small", "A test.", "20-way 1-shot, classes from one group", "20-way 1-shot + 4 unlabelled", "81.2 ± 0.3",
        "77.7 ± 0.4", "1,234,567", "3141 classes", "ba9876543210", "Greek, Latin", "5555", "777", "2.5e-06", "1234",
        "0123456789ab", "seed 42", "3.5", "88.8", "91.1", "66.6", "What was tried.", "1.5, 0.4", "| chance | 5.0",
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []
    assert "logistic regression" not in text  # not measured, not listed


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("columns", 0, "accuracy", "generated", "mean"), 12.3, "12.3 ± 0.3"),
        (("columns", 0, "n_episodes"), 4321, "4321 episodes"),
        (("training", "steps"), 11, "11 of"),
        (("parity", "logits"), 7e-4, "7.0e-04"),
        (("columns", 1, "abstention", "answered_percent"), 12.1, "12.1"),
    ],
)
def test_another_number_gives_another_card(path: tuple[Any, ...], value: float, shown: str) -> None:
    changed = copy.deepcopy(EVALUATION)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert shown not in card.render(MANIFEST, EVALUATION)
    assert shown in card.render(MANIFEST, changed)


def test_a_comparison_stands_in_the_card_where_there_is_one() -> None:
    column = {
        **WORDS,
        "accuracy": {"N3, every layer": {"mean": 43.2, "ci95": 1.1}, "pdcnn_fc": {"mean": 33.3, "ci95": 2.2}},
        "by_seed": {"N3, every layer": {"0": {}, "1": {}}, "pdcnn_fc": {"0": {}}},
    }
    text = card.render(MANIFEST, DESCRIBED, {"command": "training compare-words RUNS", "columns": [column]})
    assert "| N3, every layer | 2 | 43.2 ± 1.1 |" in text
    assert "| PDCNN-fc | 1 | 33.3 ± 2.2 |" in text
    assert "`training compare-words RUNS`" in text
    assert "Ablations" not in card.render(MANIFEST, DESCRIBED)


def test_where_no_class_is_unknown_nothing_is_said_of_them() -> None:
    unknown = {**COLUMN["abstention"], "unknown_classes_abstained_percent": None}  # type: ignore[dict-item]
    rendered = card.render(MANIFEST, {**EVALUATION, "columns": [{**COLUMN, "abstention": unknown}]})
    assert "| 88.8 | 91.1 |  |" in rendered
    assert "None" not in rendered


def test_what_was_not_evaluated_says_so() -> None:
    text = card.render(MANIFEST, {**EVALUATION, "columns": [], "notes": []})
    assert "Not evaluated yet" in text
    assert "Calibration" not in text
    assert "Notes" not in text


def test_ones_own_images_are_not_passed_off_as_the_data_set() -> None:
    own = {**EVALUATION, "training": {**EVALUATION["training"], "own_images": True}}
    assert "omniglot" not in card.render(MANIFEST, own)
    assert "omniglot" in card.render(MANIFEST, EVALUATION)


def test_a_card_of_described_classes_shows_every_control_and_what_was_read() -> None:
    text = described()
    expected = [
        "40-way, words alone", "5-way, words and 1 image a class", "resnet18, 64 px; adapted: every layer",
        "all-minilm-l6-v2", "77 images and 256 imagined features", "†",
        "1234 episodes (51 5-way, words and 1 image a class)",
        *(f"| {label} | {10 + i}.0 ± 0.5 |" for i, label in enumerate(card.DESCRIBED_CONTROLS.values())),
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []
    assert "†" not in card.render(MANIFEST, EVALUATION)
    assert "what the base has met" not in card.render(MANIFEST, EVALUATION)


def test_a_column_of_one_groups_classes_is_told_from_that_of_any() -> None:
    assert card.column_name({**WORDS, "classes_from": "one group"}) == "40-way, words alone, classes from one group"
    assert card.column_name(WORDS) == "40-way, words alone"


@pytest.mark.parametrize(
    ("training", "claim"),
    [
        ({}, "an unseen class is unseen"),
        ({"base": {**OWN_BASE, "pretrained": "imagenet-mobilenet"}}, card.MET_IMAGENET),
        ({"config": {**CONFIG, "classifier_rows": True}}, card.MET_IMAGENET),
        ({"base": {**OWN_BASE, "train_data_digest": "0123"}}, "**not known**"),
        ({"base": None}, "**not known**"),
    ],
)
def test_only_a_base_of_the_very_training_images_calls_unseen_classes_unseen(
    training: dict[str, Any], claim: str
) -> None:
    claims = ("an unseen class is unseen", card.MET_IMAGENET, "**not known**")
    assert [known for known in claims if known in described(**training)] == [claim]


def test_an_ablation_says_what_it_adapts() -> None:
    for adapts, said in (([], "no layer but the classification"), (["layer4"], "layer4")):
        config = {**CONFIG, "model": {**CONFIG["model"], "adapts": adapts}}  # type: ignore[dict-item]
        assert f"adapted: {said}" in described(config=config)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"pooling": "ceil"}, "keeps the border: 28 > 14 > 7 > 4 > 2 px, 32 features; the paper's Conv-4 drops it"),
        ({"pools_last": False}, "leaves out the last convolution: 28 > 14 > 7 > 3 px, 72 features; the paper's Conv-4"),
    ],
)
def test_more_features_than_the_papers_network_has_are_told(model: dict[str, Any], said: str) -> None:
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["training"]["config"]["model"] = {"n_conv_layers": 4, "channels": 8}
    assert "| pooling |" not in card.render(MANIFEST, evaluation)
    evaluation["training"]["config"]["model"] |= model
    assert f"| pooling | {said}" in card.render(MANIFEST, evaluation)


@pytest.mark.parametrize("evaluation", [EVALUATION, DESCRIBED])
def test_tables_have_as_many_cells_in_every_row(evaluation: dict[str, Any]) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", card.render(MANIFEST, evaluation), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_fine_tuning_stands_apart_with_its_own_episodes_and_seconds() -> None:
    tuned = {
        "n_episodes": 13,
        "accuracy": {name: {"mean": 60.0 + i, "ci95": 7.5} for i, name in enumerate(card.COMPARED)},
        "seconds": {"generated": 0.1234, "fine_tuned": 21.678},
        "n_threads": 1,
        "settings": {"n_steps": 47, "batch_size": 23},
    }
    column = {**BOTH, "hardware": "abacus", "fine_tuning": tuned}
    column["accuracy"] = {**BOTH["accuracy"], "fine_tuned": tuned["accuracy"]["fine_tuned"]}  # type: ignore[dict-item, index]
    text = card.render(MANIFEST, {**DESCRIBED, "columns": [WORDS, column]})
    name = card.column_name(column)
    expected = [
        "## Against fine-tuning", "over the first 13 episodes", "47 steps of 23 images", "abacus", "1 thread",
        f"| {name} | 13 | 60.0 ± 7.5 | 61.0 ± 7.5 | 62.0 ± 7.5 | 0.123 | 21.7 |",
        f"| {card.DESCRIBED_CONTROLS['fine_tuned']} | ",
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert "Against fine-tuning" not in described()
    assert "over the first" not in described()
