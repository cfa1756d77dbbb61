"""From logits to calibrated answers: numbers worked out by hand, and what must hold for any logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.decision import decide, probabilities

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-1e4, 1e4, width=32)
)


def test_probabilities_worked_out_by_hand() -> None:
    found = probabilities(np.log(np.array([[1, 3, 4]], np.float32)), 1.0)
    np.testing.assert_allclose(found, [[1 / 8, 3 / 8, 4 / 8]], rtol=1e-6)
    cooler = probabilities(np.log(np.array([[1, 9]], np.float32)), 2.0)
    np.testing.assert_allclose(cooler, [[1 / 4, 3 / 4]], rtol=1e-6)


@given(LOGITS, st.floats(0.05, 20))
@settings(max_examples=100)
def test_probabilities_are_probabilities_and_keep_the_order(logits: np.ndarray, temperature: float) -> None:
    found = probabilities(logits, temperature)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-9)
    assert np.isfinite(found).all()
    assert (np.take_along_axis(found, logits.argmax(-1)[:, None], -1)[:, 0] == found.max(-1)).all()


@given(LOGITS)
@settings(max_examples=50)
def test_a_row_is_decided_on_its_own(logits: np.ndarray) -> None:
    names = tuple(f"class {k}" for k in range(logits.shape[1]))

    def decided(rows: np.ndarray) -> list[object]:
        return [*decide(rows, names, temperature=1.3, abstain_below=0.4)]

    assert decided(logits) == [decided(row[None])[0] for row in logits]


def test_decisions_name_rank_and_abstain() -> None:
    logits = np.log(np.array([[2, 5, 3], [4, 3, 3]], np.float32))
    sure, unsure = decide(logits, ("a", "b", "c"), temperature=1.0, abstain_below=0.45)
    assert (sure.label, sure.probability, sure.abstain) == ("b", 0.5, False)
    assert list(sure.probabilities) == ["b", "c", "a"]
    assert (unsure.label, unsure.probability, unsure.abstain) == ("a", 0.4, True)
    assert sum(unsure.probabilities.values()) == pytest.approx(1)


def test_top_k_lists_the_best() -> None:
    logits = np.array([[1, 3, 2]], np.float32)
    (decision,) = decide(logits, ("a", "b", "c"), temperature=1.0, abstain_below=0.0, top_k=2)
    assert list(decision.probabilities) == ["b", "c"]
    (everything,) = decide(logits, ("a", "b", "c"), temperature=1.0, abstain_below=0.0, top_k=9)
    assert list(everything.probabilities) == ["b", "c", "a"]


def test_of_equal_classes_the_first_named_wins() -> None:
    (decision,) = decide(np.zeros((1, 3), np.float32), ("a", "b", "c"), temperature=1.0, abstain_below=0.0)
    assert (decision.label, list(decision.probabilities)) == ("a", ["a", "b", "c"])


def test_a_probability_on_the_threshold_is_an_answer() -> None:
    (decision,) = decide(np.zeros((1, 2), np.float32), ("a", "b"), temperature=1.0, abstain_below=0.5)
    assert not decision.abstain


def test_no_images_no_answers() -> None:
    assert decide(np.zeros((0, 2), np.float32), ("a", "b"), temperature=1.0, abstain_below=0.5) == []
