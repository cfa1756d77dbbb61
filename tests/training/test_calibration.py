"""Temperatures and thresholds fitted to answers whose odds are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decision import probabilities, temperature_of
from training import calibration
from training.calibration import Answered


def tasks_of(n_classes: int, n_images: int, temperature: float, *, n: int = 60, seed: int = 0) -> list[Answered]:
    """Labels drawn from the very probabilities that the temperature gives."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(0, 3, (40, n_classes)).astype(np.float32) for _ in range(n)]
    labels = [np.array([rng.choice(n_classes, p=p) for p in probabilities(z, temperature)]) for z in logits]
    return [Answered(n_images, z, y, z[:0]) for z, y in zip(logits, labels, strict=True)]


def given_by(found: calibration.Calibration, n_classes: int, n_images: int) -> float:
    return temperature_of(
        n_classes, n_images, temperature=found.temperature, by_images=found.temperature_by_images,
        by_classes=found.temperature_by_classes,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    found = calibration.fit(tasks_of(5, 0, temperature))
    assert given_by(found, 5, 0) == pytest.approx(temperature, rel=0.15)


def test_more_images_and_more_classes_have_temperatures_of_their_own() -> None:
    made = {(2, 0): 0.5, (2, 2): 0.7, (2, 30): 1.4, (8, 0): 0.75, (8, 40): 1.6}
    tasks = [task for (k, n), t in made.items() for task in tasks_of(k, n, t, n=150)]
    found = calibration.fit(tasks)
    assert found.temperature_by_images > 0.2
    assert found.temperature_by_classes > 0.1
    for (k, n), temperature in made.items():
        assert given_by(found, k, n) == pytest.approx(temperature, rel=0.25)


def test_tasks_of_one_kind_leave_the_powers_at_zero() -> None:
    found = calibration.fit(tasks_of(2, 0, 0.6))
    assert (found.temperature_by_images, found.temperature_by_classes) == (0, 0)


def test_the_surest_and_the_falsest_stay_within_bounds() -> None:
    sure = [Answered(0, np.array([[90, 0]], np.float32), np.array([0]), np.zeros((0, 2), np.float32))]
    wrong = [task._replace(labels=np.array([1])) for task in sure]
    assert calibration.fit(sure).temperature >= 0.05
    assert calibration.fit(wrong).temperature == pytest.approx(20, rel=0.01)


def test_images_of_unknown_classes_raise_the_threshold() -> None:
    known = tasks_of(4, 4, 1.0)
    doubtful = [task._replace(unknown=task.logits[:10] / 2) for task in known]
    assert calibration.fit(doubtful).abstain_below > 0
    assert calibration.fit(doubtful)[:3] == calibration.fit(known)[:3]


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
        ([0.5, float(np.nextafter(0.5, 1))], [False, True], [False, True]),
    ],
    ids=["two", "four", "all good", "none good", "the wrong way round", "equal", "ties stay together", "neighbours"],
)
def test_the_abstention_threshold_parts_good_answers_from_others(
    top: list[float], good: list[bool], answered: list[bool]
) -> None:
    threshold = calibration.fit_abstention(np.array(top), np.array(good))
    assert (np.array(top) >= threshold).tolist() == answered


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100)
def test_no_threshold_between_two_answers_parts_them_better(answers: list[tuple[float, bool]]) -> None:
    top, good = np.array([t for t, _ in answers]), np.array([g for _, g in answers])

    def gain(threshold: float) -> float:
        kept = top >= threshold
        return float(kept[good].mean() if good.any() else 0) - float(kept[~good].mean() if (~good).any() else 0)

    found = calibration.fit_abstention(top, good)
    assert 0 <= found <= 1
    if good.any() and not good.all():
        assert gain(found) >= max(gain(value) for value in [0.0, *top]) - 1e-9
    else:
        assert found == 0
