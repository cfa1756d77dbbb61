"""The logits layer that unlabelled images move: by hand, and what must hold for any features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.unlabeled import absorb

NONE = 99


def nearest(centroids: NDArray[np.float32], scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits layer of which logits are ``-scale / 2`` times squared distances, but for what all have in common."""
    return scale * centroids, -scale / 2 * (centroids**2).sum(axis=1)


def test_an_image_right_on_a_class_counts_as_one_of_it() -> None:
    support = np.array([[0, 0], [4, 0]], np.float32)
    features = np.concatenate([support, np.array([[0, 2]], np.float32)])
    weight, bias = absorb(*nearest(support, 3.0), features, np.array([0, 1, NONE]), sharpness=100.0)
    np.testing.assert_allclose(weight, 3 * np.array([[0, 1], [4, 0]]), atol=1e-5)
    np.testing.assert_allclose(bias, -1.5 * np.array([1, 16]), atol=1e-5)


def test_an_image_between_two_classes_counts_half_for_each() -> None:
    support = np.array([[0, 0], [4, 0]], np.float32)
    features = np.concatenate([support, np.array([[2, 3]], np.float32)])
    weight, _ = absorb(*nearest(support, 1.0), features, np.array([0, 1, NONE]), sharpness=7.0)
    np.testing.assert_allclose(weight, [[1 / 1.5, 1], [5 / 1.5, 1]], atol=1e-5)


def test_classes_with_more_images_move_less() -> None:
    support = np.array([[0, 0]] * 9 + [[10, 0]], np.float32)
    features = np.concatenate([support, np.array([[0, 1], [10, 1]], np.float32)])
    labels = np.array([0] * 9 + [1, NONE, NONE])
    weight, _ = absorb(*nearest(support[[0, 9]], 1.0), features, labels, sharpness=50.0)
    np.testing.assert_allclose(weight, [[0, 0.1], [10, 0.5]], atol=1e-5)


def test_what_is_added_to_every_row_does_not_change_how_sure_it_is() -> None:
    rng = np.random.default_rng(0)
    support, unlabeled = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    features, labels = np.concatenate([support, unlabeled]), np.array([0, 1, 2] + [NONE] * 4)
    weight, bias = nearest(support, 2.0)
    moved = absorb(weight + rng.normal(size=5).astype(np.float32), bias, features, labels, sharpness=20.0)
    for one, other in zip(moved, absorb(weight, bias, features, labels, sharpness=20.0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_layer_that_does_not_tell_the_classes_apart_stays(scale: float) -> None:
    support = np.array([[0, 0], [4, 0]], np.float32)
    features = np.concatenate([support, np.array([[1, 1]], np.float32)])
    weight, bias = nearest(support, scale)
    same = absorb(weight, bias, features, np.array([0, 1, NONE]), sharpness=20.0)
    assert all((a == b).all() for a, b in zip(same, (weight, bias), strict=True))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_order_does_not_matter_and_nothing_overflows(n_classes: int, n_shots: int, n_unlabeled: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(n_classes), n_shots), np.full(n_unlabeled, NONE)])
    features = (10.0 ** rng.integers(-3, 4) * rng.normal(size=(len(labels), 3))).astype(np.float32)
    weight, bias = rng.normal(size=(n_classes, 3)).astype(np.float32), np.zeros(n_classes, np.float32)
    found = absorb(weight, bias, features, labels, sharpness=20.0)
    assert all(np.isfinite(tensor).all() for tensor in found)
    order = rng.permutation(len(labels))
    again = absorb(weight, bias, features[order], labels[order], sharpness=20.0)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(one).max())


def test_unlabelled_images_of_the_classes_help_where_one_image_misleads() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8))
    accuracy = []
    for _ in range(20):
        support, unlabeled, query = (
            (np.repeat(centres, n, axis=0) + 0.6 * rng.normal(size=(10 * n, 8))).astype(np.float32) for n in (1, 5, 20)
        )
        features, labels = np.concatenate([support, unlabeled]), np.array([*range(10), *[NONE] * 50])
        written = nearest(support, 1.0)
        targets = np.repeat(np.arange(10), 20)
        layers = written, absorb(*written, features, labels, sharpness=20.0)
        accuracy.append([((query @ w.T + b).argmax(axis=1) == targets).mean() for w, b in layers])
    before, after = np.mean(accuracy, axis=0)
    assert after > before + 0.03
