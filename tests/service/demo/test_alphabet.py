"""The invented alphabet: always the same, different between characters and between hands, and like handwriting."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import PreprocessSpec, to_pixels
from service.demo.alphabet import (
    N_CHARACTERS,
    N_HANDS,
    SIZE,
    alphabet,
    character_name,
    contact_sheet,
    drawing,
    stroke_program,
)

SPEC = PreprocessSpec(size=28, channels=1, fit="pad", invert_dark=True)


def ink(png: bytes) -> NDArray[np.bool_]:
    return ~np.asarray(Image.open(io.BytesIO(png)).convert("1"))


@pytest.fixture(scope="module")
def letters() -> dict[str, list[bytes]]:
    return alphabet()


def test_there_are_enough_characters_in_enough_hands(letters: dict[str, list[bytes]]) -> None:
    assert len(letters) == N_CHARACTERS >= 20
    assert all(len(images) == N_HANDS >= 20 for images in letters.values())
    assert len({png for images in letters.values() for png in images}) == N_CHARACTERS * N_HANDS


@given(character=st.integers(0, 143), hand=st.integers(0, 99))
@settings(max_examples=50)
def test_a_drawing_is_a_small_png_with_ink_on_paper_and_is_drawn_the_same_again(character: int, hand: int) -> None:
    png = drawing(character, hand)
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode, image.size) == ("PNG", "1", (SIZE, SIZE))
    assert 0.01 < ink(png).mean() < 0.35
    assert drawing(character, hand) == png


@given(character=st.integers(0, 143))
@settings(max_examples=50)
def test_a_stroke_program_stays_in_its_square(character: int) -> None:
    strokes = stroke_program(character)
    assert 1 <= len(strokes) <= 4
    assert all(0 <= x <= 1 and 0 <= y <= 1 for stroke in strokes for x, y in stroke)


def test_names_are_all_different() -> None:
    assert len({character_name(character) for character in range(144)}) == 144


def test_the_alphabet_is_learnable_from_one_drawing_and_not_trivial(letters: dict[str, list[bytes]]) -> None:
    """Nearest neighbour on raw pixels: far above guessing, far from perfect."""
    pixels = np.stack([[to_pixels(png, SPEC).ravel() for png in images] for images in letters.values()]).astype(float)
    support, queries = pixels[:, 0], pixels[:, 1:]
    distances = ((queries[:, :, None] - support) ** 2).sum(-1)
    right = float((distances.argmin(-1) == np.arange(N_CHARACTERS)[:, None]).mean())
    assert 3 / N_CHARACTERS < right < 0.8


def test_the_contact_sheet_shows_every_drawing() -> None:
    assert contact_sheet(3, 4).size == (4 * (SIZE + 2), 3 * (SIZE + 2))
