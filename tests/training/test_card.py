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


def test_what_was_not_evaluated_says_so() -> None:
    text = card.render(MANIFEST, {**EVALUATION, "columns": [], "notes": []})
    assert "Not evaluated yet" in text
    assert "Calibration" not in text
    assert "Notes" not in text


def test_ones_own_images_are_not_passed_off_as_the_data_set() -> None:
    own = {**EVALUATION, "training": {**EVALUATION["training"], "own_images": True}}
    assert "omniglot" not in card.render(MANIFEST, own)
    assert "omniglot" in card.render(MANIFEST, EVALUATION)


def test_tables_have_as_many_cells_in_every_row() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", card.render(MANIFEST, EVALUATION), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
