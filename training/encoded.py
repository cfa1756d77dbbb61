"""Documents about classes, encoded once before a training: several of each class, as the service would encode them.

Shapes: T tokens of one document, D embedding, A classes, V documents a class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.feeds import padded
from models.text import Encoders, TextEncoder
from training.data.descriptions import ClassTexts, document, draw_document

Embeddings = Literal["contextual", "sentence", "static"]
"""Of the tokens: in their context; one for the whole text (their mean); or each alone, out of context."""
ENCODED_AT_ONCE = 64
YES = frozenset({"1", "true", "yes", "on", "t", "y"})
"""As the service's settings read it."""


def read_encoder(name: str) -> TextEncoder:
    """A text encoder, its files found as the service finds them; raises MissingEncoder, which names the variables."""
    folder, download = (os.environ.get(f"CLASSMITH_{kind}_ENCODER", "") for kind in ("TEXT", "DOWNLOAD"))
    return Encoders(Path(folder) if folder else None, download=download.lower() in YES).get(name)


@dataclass(frozen=True)
class EncodedTexts:
    """``tokens[a][v]``: the embeddings ``(T, D)`` float16 of the v-th document of the a-th class."""

    tokens: tuple[tuple[NDArray[np.float16], ...], ...]

    @property
    def means(self) -> NDArray[np.float64]:
        """The unit mean of each document's embeddings: ``(A, V, D)``."""
        means = np.stack([[tokens.astype(np.float64).mean(axis=0) for tokens in own] for own in self.tokens])
        return np.asarray(means / np.linalg.norm(means, axis=-1, keepdims=True))

    def padded(self, chosen: Sequence[tuple[int, int] | None]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(class, document) of each of K classes, None for no text -> ``(K, T, D)`` and its mask ``(K, T)``."""
        dim = self.tokens[0][0].shape[-1]
        rows = [self.tokens[own[0]][own[1]] if own else np.zeros((0, dim), np.float16) for own in chosen]
        return padded(rows, dim)


def encode_texts(
    texts: Sequence[ClassTexts],
    encoder: TextEncoder,
    n_documents: int,
    *,
    embeddings: Embeddings = "contextual",
    p_name: float = 0.8,
    seed: int = 0,
    progress: bool = True,
) -> EncodedTexts:
    """Draw ``n_documents`` of each class and encode them; the first has the name, all phrases and some sentences."""
    rng = np.random.default_rng(seed)
    documents = [
        [document(own, max_sentences=4), *(draw_document(own, rng, p_name=p_name) for _ in range(n_documents - 1))]
        for own in texts
    ]
    flat = [text for own in documents for text in own]
    encoded: list[NDArray[np.float16]] = []
    for start in tqdm(range(0, len(flat), ENCODED_AT_ONCE), disable=not progress, desc="texts", mininterval=5.0):
        encoded += embed(flat[start : start + ENCODED_AT_ONCE], encoder, embeddings)
    starts = range(0, len(encoded), n_documents)
    return EncodedTexts(tuple(tuple(encoded[i : i + n_documents]) for i in starts))


def embed(texts: Sequence[str], encoder: TextEncoder, embeddings: Embeddings) -> list[NDArray[np.float16]]:
    """The embeddings ``(T, D)`` of each text."""
    if embeddings == "static":
        return [_static(text, encoder) for text in texts]
    found = [own.tokens for own in encoder.encode(texts)]
    if embeddings == "sentence":
        found = [tokens.mean(axis=0, keepdims=True) for tokens in found]
    return [tokens.astype(np.float16) for tokens in found]


def _static(text: str, encoder: TextEncoder) -> NDArray[np.float16]:
    """Every word encoded alone: no word knows its neighbours, as with word vectors."""
    words = text.split() or [text]
    return np.stack([own.tokens.mean(axis=0) for own in encoder.encode(words)]).astype(np.float16)
