"""What is known without gradient descent has the properties that its equations promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.methods.n3 import KernelRidge, N3Config
from models.nn.bases import BaseSpec
from training import closed_forms as forms
from training.closed_forms import Array

N_CLASSES, N_IMAGES, N_RAW = 4, 60, 6
LABELS = np.repeat(np.arange(N_CLASSES), N_IMAGES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def raw(rng: np.random.Generator) -> Array:
    """Classes differ in two coordinates; what varies most, and within classes alone, is a third."""
    middles = np.zeros((N_CLASSES, N_RAW))
    middles[:, :2] = [[0, 0], [0, 2], [2, 0], [2, 2]]
    return middles[LABELS] + rng.normal(0, [0.3, 0.3, 5, 0.5, 0.5, 0.5], (len(LABELS), N_RAW)) + 3


# --- projection


@pytest.mark.parametrize("shrinkage", [1e-9, 1.0])
def test_a_projection_whitens_the_covariance_within_classes(
    raw: Array, shrinkage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as much of its mean eigenvalue added to each as the shrinkage says."""
    monkeypatch.setattr(forms, "SHRINKAGE", shrinkage)
    projection = forms.fit_projection(raw, LABELS, N_RAW)
    units = forms.unit(raw - projection.center)
    deviations = units - forms.class_means(units, LABELS)[LABELS]
    within = deviations.T @ deviations / len(deviations)
    within += shrinkage * np.trace(within) / N_RAW * np.eye(N_RAW)
    np.testing.assert_allclose(projection.matrix @ within @ projection.matrix.T, np.eye(N_RAW), atol=1e-9)
    if shrinkage < 1e-6:
        features = projection(raw)
        rest = features - forms.class_means(features, LABELS)[LABELS]
        np.testing.assert_allclose(rest.T @ rest / len(rest), np.eye(N_RAW), atol=1e-6)


def test_projected_features_are_centred_and_widest_between_classes_first(raw: Array) -> None:
    features = forms.fit_projection(raw, LABELS, N_RAW)(raw)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    means = forms.class_means(features, LABELS)
    between = means.T @ means / N_CLASSES
    variances = np.diag(between)
    assert (np.diff(variances) <= 1e-12).all()
    np.testing.assert_allclose(between, np.diag(variances), atol=1e-9)
    assert variances[N_CLASSES - 1 :].max() < 1e-9  # so many means span no more


def test_fewer_features_are_the_first_of_many(raw: Array) -> None:
    many, few = (forms.fit_projection(raw, LABELS, n)(raw) for n in (N_RAW, 2))
    assert few.shape == (len(raw), 2)
    np.testing.assert_allclose(few, many[:, :2], atol=1e-9)


def test_a_projection_separates_classes_that_a_wide_nuisance_hides(raw: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SHRINKAGE", 0.01)
    projected = forms.fit_projection(raw, LABELS, 2)(raw)
    assert _nearest_mean_accuracy(projected) > _nearest_mean_accuracy(raw) + 0.1
    assert _nearest_mean_accuracy(projected) > 0.7


def test_a_projection_does_not_change_with_the_place_or_unit_of_raw_features(raw: Array) -> None:
    one, other = (forms.fit_projection(x, LABELS, 3)(x) for x in (raw, 7 * raw - 100))
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-7)  # axes are found up to sign


def test_a_rounded_projection_is_what_float32_keeps(raw: Array) -> None:
    projection = forms.fit_projection(raw, LABELS, 3)
    rounded = projection.rounded
    for name in ("center", "matrix", "bias"):
        once, twice = getattr(rounded, name), getattr(rounded.rounded, name)
        np.testing.assert_array_equal(once, getattr(projection, name).astype(np.float32))
        np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(rounded(raw), projection(raw), atol=1e-4)


def test_a_row_without_length_stays_so() -> None:
    np.testing.assert_array_equal(forms.unit(np.zeros((2, 3))), np.zeros((2, 3)))
    np.testing.assert_allclose(forms.unit(np.array([[3.0, 4.0]])), [[0.6, 0.8]])


# --- means that rows imply


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (40.0, 0.0), (0.01, 5.0)])
def test_rows_of_discriminant_analysis_give_the_means_that_they_were_made_of(
    raw: Array, rng: np.random.Generator, scale: float, shift: float
) -> None:
    """Whatever the rows' common scale and common part; of classes without images, up to the means' scale."""
    projection = forms.fit_projection(raw, LABELS, 3)
    units = forms.unit(raw - projection.center)
    units -= units.mean(axis=0)
    means = forms.class_means(units, LABELS)
    deviations = units - means[LABELS]
    further = rng.normal(0, 0.1, (5, N_RAW))
    further -= further.mean(axis=0)
    true = np.concatenate([means, further])
    rows = scale * np.linalg.solve(deviations.T @ deviations / len(deviations), true.T).T + shift
    found = projection.means_of_rows(rows, raw, LABELS)
    length = np.linalg.norm(means, axis=1).mean() / np.linalg.norm(further, axis=1).mean()
    np.testing.assert_allclose(found[:N_CLASSES], means @ projection.matrix.T, atol=1e-9)
    np.testing.assert_allclose(found[N_CLASSES:], length * further @ projection.matrix.T, atol=1e-7)


def test_classes_with_images_keep_their_own_means_whatever_their_rows(raw: Array, rng: np.random.Generator) -> None:
    projection = forms.fit_projection(raw, LABELS, 3)
    found = projection.means_of_rows(rng.normal(size=(7, N_RAW)), raw, LABELS)
    np.testing.assert_allclose(found[:N_CLASSES], forms.class_means(projection(raw), LABELS), atol=1e-9)
    assert found.shape == (7, 3)


# --- regression


@pytest.fixture
def texts(rng: np.random.Generator) -> Array:
    return forms.unit(rng.normal(size=(5, 2, 16)))


@pytest.fixture
def means(rng: np.random.Generator) -> Array:
    return rng.normal(size=(5, 3))


def test_a_small_ridge_reproduces_what_is_remembered(
    texts: Array, means: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directions of the means, at the length that they have on average; of every document of a class."""
    wanted = (forms.unit(means) * np.linalg.norm(means, axis=1).mean()).repeat(2, axis=0)
    errors = []
    for ridge in (1.0, 0.1, 0.01, 1e-10):
        monkeypatch.setattr(forms, "RIDGE", ridge)
        errors.append(np.abs(forms.fit_regression(texts, means)(texts.reshape(-1, 16)) - wanted).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8
    assert errors[0] > 0.1


def test_a_ridge_makes_means_shorter(texts: Array, means: Array) -> None:
    found = forms.fit_regression(texts, means)(texts.reshape(-1, 16))
    assert np.linalg.norm(found) < np.linalg.norm(means.repeat(2, axis=0))
    assert forms.slope(found, means.repeat(2, axis=0)) > 1


def test_the_order_of_classes_changes_nothing(texts: Array, means: Array, rng: np.random.Generator) -> None:
    order, asked = rng.permutation(5), forms.unit(rng.normal(size=(3, 16)))
    one, other = forms.fit_regression(texts, means), forms.fit_regression(texts[order], means[order])
    np.testing.assert_allclose(one(asked), other(asked), atol=1e-12)


def test_lengths_of_single_means_are_not_learned(texts: Array, means: Array, rng: np.random.Generator) -> None:
    """Of the same lengths, dealt out otherwise, the same is learned."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    asked = forms.unit(rng.normal(size=(3, 16)))
    one, other = forms.fit_regression(texts, means), forms.fit_regression(texts, forms.unit(means) * lengths[::-1])
    np.testing.assert_allclose(one(asked), other(asked), atol=1e-12)


def test_n3_computes_the_same_regression(texts: Array, means: Array, rng: np.random.Generator) -> None:
    fitted = forms.fit_regression(texts, means)
    module = KernelRidge(N3Config(BaseSpec("squeezenet1_1", 32), n_features=3, n_remembered=10, token_dim=16))
    state = {"middle": fitted.middle, "texts": fitted.texts, "coefficients": fitted.coefficients}
    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in state.items()}
    module.load_state_dict({**tensors, "sharpness": torch.tensor(forms.SHARPNESS)})
    asked = forms.unit(rng.normal(size=(6, 16)))
    found = module(torch.as_tensor(asked, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, fitted(asked), atol=1e-5)
    assert np.abs(found).max() > 1e-3


def test_a_kernel_is_one_at_home_and_falls_with_the_angle() -> None:
    angles = np.linspace(0, np.pi, 7)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    values = forms.kernel(around[:1], around)[0]
    assert values[0] == pytest.approx(1)
    assert (np.diff(values) < 0).all()
    assert values[-1] == pytest.approx(np.exp(-4 * forms.SHARPNESS))


# --- slope, scale, variance


def test_a_slope_has_the_least_squared_error(means: Array, rng: np.random.Generator) -> None:
    assert forms.slope(means / 3, means) == pytest.approx(3)
    guessed = means / 3 + rng.normal(0, 0.2, means.shape)
    best = forms.slope(guessed, means)
    errors = [((factor * guessed - means) ** 2).sum() for factor in (best, best + 0.01, best - 0.01)]
    assert min(errors) == errors[0]


def test_guesses_of_nothing_or_of_the_opposite_have_no_slope(means: Array) -> None:
    assert forms.slope(-means, means) == 0
    assert forms.slope(np.zeros_like(means), means) == 0


@pytest.mark.parametrize(("noise", "length"), [(0.3, 1.0), (1.0, 1.0), (1.0, 8.0)])
def test_the_best_scale_has_the_least_cross_entropy_of_a_grid(
    noise: float, length: float, rng: np.random.Generator
) -> None:
    labels, middles = rng.integers(4, size=300), rng.normal(size=(4, 5))
    features = length * (middles[labels] + rng.normal(0, noise, (300, 5)))
    cosines = torch.from_numpy(features @ forms.unit(middles).T)
    scales = np.geomspace(0.1, 100, 61)
    losses = [float(F.cross_entropy(float(s) * cosines, torch.from_numpy(labels))) for s in scales]
    found = forms.best_scale(features, middles, labels)
    assert found == scales[int(np.argmin(losses))]
    assert 0.1 < found < 100
    assert forms.best_scale(features, 1000 * middles, labels) == found  # of unit means


def test_a_scale_is_large_where_labels_are_clear_and_small_where_they_are_wrong() -> None:
    middles, labels = np.eye(3), np.arange(3)
    assert forms.best_scale(middles, middles, labels) > 20  # where the loss is zero but for rounding
    assert forms.best_scale(middles, middles, (labels + 1) % 3) == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_variances_shrink_towards_their_mean(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "VARIANCE_SHRINKAGE", share)
    deviations = np.array([[1.0, 3.0, 0.0], [-1.0, 3.0, 0.0]])  # from zero, not from the mean: 1, 9, 0
    mean = 10 / 3
    wanted = [own + share * (mean - own) for own in (1, 9, 0)]
    np.testing.assert_allclose(forms.variance(deviations), wanted)
    assert forms.variance(deviations).mean() == pytest.approx(mean)


def _nearest_mean_accuracy(features: Array) -> float:
    means = forms.class_means(features, LABELS)
    nearest = ((features[:, None] - means) ** 2).sum(-1).argmin(1)
    return float((nearest == LABELS).mean())
