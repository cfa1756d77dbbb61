"""scikit-learn's own checks of an estimator, all of them, on rows of numbers taken as lines of pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from service.estimator import ClassmithClassifier

EXPECTED_FAILURES = {
    "check_classifiers_train": "asks for 83 % on points in space, and a line of numbers is no image of anything; what "
    "it checks besides accuracy (shapes, refusals, probabilities) is in test_estimator.py, on images",
}


@pytest.mark.filterwarnings("ignore:.*(have images in common|hold repeats):UserWarning")  # of two or three pixels
@parametrize_with_checks(
    [ClassmithClassifier("omniglot-8", image_shape=(1, -1))],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
