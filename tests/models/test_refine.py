"""The classification layer fitted to the support images: where it ends up, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from models.refine import RIDGE, refine

K, F, N = 4, 12, 5
Rows = NDArray[np.float32]


def task(*, seed: int = 0) -> tuple[Rows, Rows, Rows, NDArray[np.int64]]:
    """Written rows that point at noisy class means, a bias, and N images of each class."""
    random = np.random.default_rng(seed)
    means, labels = random.normal(0, 2, (K, F)), np.repeat(np.arange(K), N)
    features = (means[labels] + random.normal(0, 2, (K * N, F)) + 1).astype(np.float32)
    rows = 0.3 * (means + random.normal(0, 2, (K, F)))
    return rows.astype(np.float32), random.normal(0, 0.1, K).astype(np.float32), features, labels


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    logits = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("trust", [0.5, 2.0])
def test_it_is_the_minimum_that_a_general_optimiser_finds(trust: float) -> None:
    """Of the ridge-penalised cross-entropy of the written logits plus a linear map of the centred unit features."""
    weight, bias, features, labels = task()
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / lengths
    centred = units - units.mean(0)
    written = trust * (lengths.mean() * units @ weight.T + bias)

    def objective(flat: NDArray[np.float64]) -> float:
        rows = flat.reshape(K, F)
        return len(labels) * cross_entropy(written + centred @ rows.T, labels) + RIDGE / 2 * float((rows**2).sum())

    best = minimize(objective, np.zeros(K * F), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12})
    expected = written + centred @ best.x.reshape(K, F).T
    refined, moved = refine(weight, bias, features, labels, trust=trust)
    found = trust * (lengths.mean() * units @ refined.T + moved)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_it_fits_the_images_better_and_new_images_of_the_classes_too() -> None:
    weight, bias, features, labels = task()
    refined, moved = refine(weight, bias, features, labels, trust=1.0)
    assert cross_entropy(features @ refined.T + moved, labels) < cross_entropy(features @ weight.T + bias, labels)
    right = {"written": 0.0, "refined": 0.0}
    for seed in range(20):
        weight, bias, features, labels = task(seed=seed)
        known = np.arange(K * N) % N < N - 1
        refined, moved = refine(weight, bias, features[known], labels[known], trust=1.0)
        new, of = features[~known], labels[~known]
        right["written"] += float(((new @ weight.T + bias).argmax(1) == of).mean())
        right["refined"] += float(((new @ refined.T + moved).argmax(1) == of).mean())
    assert right["refined"] > right["written"]


def test_great_trust_leaves_the_written_layer() -> None:
    weight, bias, features, labels = task()
    refined, moved = refine(weight, bias, features, labels, trust=1e4)
    np.testing.assert_allclose(refined, weight, atol=1e-2)
    np.testing.assert_allclose(moved, bias, atol=1e-2)


def test_another_order_of_the_classes_gives_the_same_rows_in_that_order() -> None:
    weight, bias, features, labels = task()
    order = np.array([2, 0, 3, 1])
    refined, moved = refine(weight, bias, features, labels, trust=1.0)
    other, shifted = refine(weight[order], bias[order], features, np.argsort(order)[labels], trust=1.0)
    np.testing.assert_allclose(other, refined[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shifted, moved[order], rtol=1e-4, atol=1e-5)


def test_a_class_without_images_keeps_its_row_and_the_others_count_by_their_share() -> None:
    weight, bias, features, labels = task()
    shown = labels < K - 1
    refined, moved = refine(weight, bias, features[shown], labels[shown], trust=1.0)
    np.testing.assert_array_equal(refined[-1], weight[-1])
    assert moved[-1] == bias[-1]
    alone, shifted = refine(weight[:-1], bias[:-1], features[shown], labels[shown], trust=1.0)
    np.testing.assert_allclose(refined[:-1] - weight[:-1], (K - 1) / K * (alone - weight[:-1]), atol=1e-5)
    np.testing.assert_allclose(moved[:-1] - bias[:-1], (K - 1) / K * (shifted - bias[:-1]), atol=1e-5)


def test_images_of_one_class_say_nothing_of_the_others() -> None:
    weight, bias, features, labels = task()
    refined, moved = refine(weight, bias, features[labels == 1], labels[labels == 1], trust=1.0)
    np.testing.assert_array_equal(refined, weight)
    np.testing.assert_array_equal(moved, bias)


@pytest.mark.parametrize("features", [np.zeros((4, F), np.float32), np.ones((4, F), np.float32)], ids=["zero", "equal"])
def test_features_without_a_difference_change_nothing(features: Rows) -> None:
    weight, bias, _, _ = task()
    refined, moved = refine(weight, bias, features, np.arange(4), trust=1.0)
    np.testing.assert_allclose(refined, weight, atol=1e-6)
    np.testing.assert_allclose(moved, bias, atol=1e-6)
