"""The text encoder with its own files: each text encoded on its own, and none twice (test_export_encoder: rightly)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from models.encoder_files import find
from models.text import TextEncoder, TokenEmbeddings, load_encoder

NAME = "all-minilm-l6-v2"
ZEBRA = "A medium-sized grassland animal whose body is covered in bold black and white stripes."
TEXTS = ["okapi", ZEBRA, "zebra. " + ZEBRA, "", "a red bird", "a tall bird", "naïve café — 斑马 🦓"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return find(NAME)


@pytest.fixture
def encoder(folder: Path) -> TextEncoder:
    return load_encoder(NAME, folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[TokenEmbeddings]:
    """Each text encoded by itself, with nothing remembered."""
    forgetful = load_encoder(NAME, folder, cache_bytes=0)
    return [forgetful.encode([text])[0] for text in TEXTS]


def test_a_text_gives_a_row_for_each_word_piece_and_both_special_tokens(encoder: TextEncoder) -> None:
    (zebra,) = encoder.encode(["zebra"])
    assert zebra.tokens.shape == (3, 384)
    assert zebra.tokens.dtype == np.float32
    assert not zebra.truncated
    assert not zebra.tokens.flags.writeable


def test_the_embeddings_are_contextual(encoder: TextEncoder) -> None:
    river, money = encoder.encode(["the bank of the river", "the bank of england"])
    assert np.abs(river.tokens[2] - money.tokens[2]).max() > 0.1  # "bank"


def test_an_embedding_does_not_depend_on_what_else_is_encoded(
    encoder: TextEncoder, alone: list[TokenEmbeddings]
) -> None:
    for order in (slice(None), slice(None, None, -1)):
        together = encoder.encode(TEXTS[order])
        for one, other in zip(alone[order], together, strict=True):
            np.testing.assert_allclose(one.tokens, other.tokens, atol=1e-5)


def test_texts_longer_than_the_limit_are_cut_and_said_to_be(encoder: TextEncoder) -> None:
    fits, cut, longer = encoder.encode(["zebra " * 254, "zebra " * 255, "zebra " * 5_000])
    assert [e.truncated for e in (fits, cut, longer)] == [False, True, True]
    assert fits.tokens.shape == cut.tokens.shape == (256, 384)
    np.testing.assert_array_equal(cut.tokens, longer.tokens)
    assert encoder.is_truncated("zebra " * 255)
    assert not encoder.is_truncated("zebra " * 254)


def test_a_known_text_is_not_encoded_twice(encoder: TextEncoder) -> None:
    first = encoder.encode(["zebra", ZEBRA, "zebra"])
    again = encoder.encode([ZEBRA, "zebra"])
    assert first[0] is first[2] is again[1]
    assert first[1] is again[0]


def test_what_was_not_used_for_longest_is_forgotten_first(folder: Path) -> None:
    room_for_two = load_encoder(NAME, folder, cache_bytes=2 * 3 * 384 * 4)  # of three tokens
    zebra, _ = room_for_two.encode(["zebra", "tiger"])
    assert room_for_two.encode(["zebra"])[0] is zebra
    room_for_two.encode(["horse"])  # in the place of tiger
    assert room_for_two.encode(["zebra"])[0] is zebra
    room_for_two.encode(["tiger", "horse"])
    assert room_for_two.encode(["zebra"])[0] is not zebra


def test_threads_get_what_one_caller_gets(folder: Path, alone: list[TokenEmbeddings]) -> None:
    shared = load_encoder(NAME, folder, cache_bytes=20_000)  # small: evictions happen all the time
    start, found = threading.Barrier(4), [[TokenEmbeddings(np.zeros((0, 0), np.float32), False)]] * 4

    def encode(i: int) -> None:
        start.wait()
        found[i] = [embeddings for _ in range(3) for embeddings in shared.encode(TEXTS)]

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers in found:
        for one, other in zip(alone * 3, answers, strict=True):
            np.testing.assert_allclose(one.tokens, other.tokens, atol=1e-5)


def test_two_threads_in_parallel_give_the_same(folder: Path, alone: list[TokenEmbeddings]) -> None:
    for one, other in zip(alone, load_encoder(NAME, folder, n_threads=2).encode(TEXTS), strict=True):
        np.testing.assert_allclose(one.tokens, other.tokens, atol=1e-5)
