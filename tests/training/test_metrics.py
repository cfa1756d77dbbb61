"""Figures worked out by hand, and what must hold for any predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics


def test_a_mean_and_its_interval_by_hand() -> None:
    assert metrics.figure([0.5, 0.7, 0.9]) == {"mean": 70.0, "ci95": round(4.302653 * 20 / math.sqrt(3), 2)}
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
