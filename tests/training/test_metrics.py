"""Figures worked out by hand, and what must hold for any predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decision import probabilities
from training import metrics


def test_a_mean_and_its_interval_by_hand() -> None:
    assert metrics.figure([0.5, 0.7, 0.9]) == {"mean": 70.0, "ci95": round(1.96 * 20 / math.sqrt(3), 2)}
    assert metrics.figure(np.array([0.25, 0.25])) == {"mean": 25.0, "ci95": 0.0}


def test_one_episode_has_no_interval() -> None:
    assert math.isnan(metrics.figure([0.5])["ci95"])


def test_each_class_counts_once_in_the_per_class_accuracy() -> None:
    """Class 0 is right 3 times of 4, class 1 never of 1, class 2 always of 2: 5 of 7 images, but this."""
    predicted, labels = np.array([0, 0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 0, 1, 2, 2])
    assert metrics.per_class_accuracy(predicted, labels, 3) == pytest.approx((0.75 + 0 + 1) / 3)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_of_balanced_classes_the_per_class_accuracy_is_the_accuracy(n_classes: int, n_each: int, seed: int) -> None:
    labels = np.repeat(np.arange(n_classes), n_each)
    predicted = np.random.default_rng(seed).integers(0, n_classes, len(labels))
    assert metrics.per_class_accuracy(predicted, labels, n_classes) == pytest.approx((predicted == labels).mean())


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 1], [0, 1, 2, 3]], ids=["none of one", "none of the last", "more"])
def test_a_class_without_images_has_no_accuracy(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="3 classes were expected"):
        metrics.per_class_accuracy(np.zeros(len(labels), np.int64), np.array(labels), 3)


def test_calibration_error_by_hand() -> None:
    """Two bins of ten: (0.95, 0.95 | right, wrong) is off by 0.45, (0.55 | right) by 0.45."""
    top, correct = np.array([0.95, 0.95, 0.55]), np.array([True, False, True])
    assert metrics.expected_calibration_error(top, correct, n_bins=10) == pytest.approx((0.9 + 0.45) / 3)
    assert metrics.reliability(top, correct, n_bins=10) == [
        {"confidence": 0.55, "accuracy": 1.0, "n": 1},
        {"confidence": 0.95, "accuracy": 0.5, "n": 2},
    ]


def test_the_perfectly_calibrated_and_the_perfectly_wrong() -> None:
    assert metrics.expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert metrics.expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    half = np.array([True, False] * 8)
    assert metrics.expected_calibration_error(np.full(16, 0.5), half) == pytest.approx(0)


def test_accuracy_at_coverage_takes_the_most_confident() -> None:
    top, correct = np.linspace(0.1, 1.0, 10), np.arange(10) >= 4
    found = {entry["coverage"]: entry["accuracy"] for entry in metrics.accuracy_at_coverage(top, correct)}
    assert found[1.0] == 60.0
    assert found[0.6] == 100.0
    assert found[0.8] == 75.0
    assert list(found) == list(metrics.COVERAGES)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 3, (40, 5)).astype(np.float32) for _ in range(60)]
    labels = [np.array([rng.choice(5, p=p) for p in probabilities(z, temperature)]) for z in logits]
    assert metrics.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.15)


def test_tasks_of_different_numbers_of_classes_share_a_temperature() -> None:
    logits = [np.array([[2, 0]], np.float32), np.array([[0, 0, 5]], np.float32)]
    assert 0.05 <= metrics.fit_temperature(logits, [np.array([0]), np.array([2])]) < 0.2


@pytest.mark.parametrize(
    ("top", "good", "answered"),
    [
        ([0.1, 0.9], [False, True], [False, True]),
        ([0.2, 0.3, 0.6, 0.7], [False, False, True, True], [False, False, True, True]),
        ([0.9, 0.8, 0.2], [True, True, True], [True, True, True]),
        ([0.9, 0.8, 0.2], [False, False, False], [True, True, True]),
        ([0.1, 0.9], [True, False], [True, True]),
        ([0.5, 0.5, 0.5], [True, False, True], [True, True, True]),
        ([0.7, 0.7, 0.2, 0.9], [True, False, False, True], [True, True, False, True]),
    ],
    ids=["two", "four", "all good", "none good", "the wrong way round", "equal", "ties stay together"],
)
def test_the_abstention_threshold_parts_good_answers_from_others(
    top: list[float], good: list[bool], answered: list[bool]
) -> None:
    threshold = metrics.fit_abstention(np.array(top), np.array(good))
    assert (np.array(top) >= threshold).tolist() == answered


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100)
def test_no_threshold_between_two_answers_parts_them_better(answers: list[tuple[float, bool]]) -> None:
    top, good = np.array([t for t, _ in answers]), np.array([g for _, g in answers])

    def gain(threshold: float) -> float:
        kept = top >= threshold
        return float(kept[good].mean() if good.any() else 0) - float(kept[~good].mean() if (~good).any() else 0)

    found = metrics.fit_abstention(top, good)
    assert 0 <= found <= 1
    if good.any() and not good.all():
        assert gain(found) >= max(gain(value) for value in [0.0, *top]) - 1e-9
    else:
        assert found == 0
