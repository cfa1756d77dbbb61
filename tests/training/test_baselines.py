"""The closed forms: right where the answer is known, and every query answered on its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from training.baselines import logistic_regression, nearest_centroid

METHODS = pytest.mark.parametrize("method", [nearest_centroid, logistic_regression])


def clusters(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three well separated classes in eight dimensions: support, its labels, queries, theirs."""
    rng = np.random.default_rng(seed)
    centres, labels = 5 * np.eye(3, 8), np.repeat(np.arange(3), 4)
    support, queries = (centres[labels] + rng.normal(0, 0.3, (12, 8)) for _ in range(2))
    return support.astype(np.float32), labels, queries.astype(np.float32), labels


def test_the_nearest_mean_by_hand() -> None:
    support = np.array([[0, 0], [2, 0], [10, 0]], np.float32)
    queries = np.array([[5.4, 0], [5.6, 0], [1, 99]], np.float32)
    assert nearest_centroid(support, np.array([0, 0, 1]), queries).tolist() == [0, 1, 0]


@METHODS
def test_separated_classes_are_told_apart(method: Callable[..., np.ndarray]) -> None:
    support, labels, queries, expected = clusters()
    np.testing.assert_array_equal(method(support, labels, queries), expected)


@METHODS
def test_a_query_is_answered_on_its_own(method: Callable[..., np.ndarray]) -> None:
    support, labels, _, _ = clusters()
    queries = np.random.default_rng(1).normal(0, 3, (20, 8)).astype(np.float32)
    alone = [int(method(support, labels, query[None])[0]) for query in queries]
    assert method(support, labels, queries).tolist() == alone


@METHODS
def test_the_order_of_the_support_changes_nothing(method: Callable[..., np.ndarray]) -> None:
    support, labels, queries, _ = clusters()
    order = np.random.default_rng(2).permutation(12)
    np.testing.assert_array_equal(method(support[order], labels[order], queries), method(support, labels, queries))


def test_regression_sees_directions_not_lengths() -> None:
    support, labels, queries, _ = clusters()
    longer = queries * np.linspace(0.1, 100, 12, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(
        logistic_regression(support, labels, longer), logistic_regression(support, labels, queries)
    )
