"""Texts -> the contextual token embeddings of a frozen BERT, in ONNX Runtime; no torch.

Shapes: T tokens (word pieces, special tokens included), D embedding.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto
from safetensors import safe_open
from tokenizers import Tokenizer

from models.encoder_files import ENCODERS, GRAPH, TOKENIZER, WEIGHTS, EncoderSpec, check, find, read_spec
from models.runtime import make_session

IDS, TOKENS = "input_ids", "tokens"
MAX_BATCH_TOKENS = 2_048
"""Of one run: about 50 MB of activations."""
CACHE_BYTES = 64_000_000
"""About 500 descriptions of 60 words."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenEmbeddings:
    """One encoded text. ``tokens`` (T, D), read-only. ``truncated``: the text was longer than the encoder reads."""

    tokens: NDArray[np.float32]
    truncated: bool


@dataclass(frozen=True)
class Word:
    """Characters ``start`` to ``end`` of a text, and the places of its tokens (word pieces) among those of the text."""

    start: int
    end: int
    tokens: tuple[int, ...]


class TextEncoder:
    """A frozen encoder; ``encode`` may be called from several threads. Texts it knows are not encoded twice.

    The first ``encode`` reads the weights (``read_session``); until then it holds the tokenizer alone.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        tokenizer: Tokenizer,
        read_session: Callable[[], ort.InferenceSession],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._read_session = read_session
        self._session: ort.InferenceSession | None = None
        self._lock = threading.Lock()
        self._cache = _Cache(cache_bytes)

    def encode(self, texts: Sequence[str]) -> list[TokenEmbeddings]:
        """The embeddings of each text, in order; they do not depend on what else is asked for.

        Texts of exactly equal length run together, so that nothing is padded or masked.
        """
        found = {text: known for text in texts if (known := self._cache.get(text))}
        for text, embeddings in self._encode([text for text in dict.fromkeys(texts) if text not in found]):
            self._cache.put(text, embeddings)
            found[text] = embeddings
        return [found[text] for text in texts]

    def is_truncated(self, text: str) -> bool:
        """Whether the text is longer than the encoder reads; without encoding it."""
        return bool(self._tokenizer.encode(text).overflowing)

    def words(self, text: str) -> list[Word]:
        """The words of a text that the encoder reads, in order; what is special to the encoder is in none."""
        encoding = self._tokenizer.encode(text)
        tokens: dict[int, list[int]] = {}
        for token, word in enumerate(encoding.word_ids):
            if word is not None:
                tokens.setdefault(word, []).append(token)
        spans = [(encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1], tuple(own)) for own in tokens.values()]
        return [Word(*span) for span in spans]

    def prepare(self) -> None:
        """Read the weights now, so that the first text does not wait for them."""
        self._ready_session()

    def _ready_session(self) -> ort.InferenceSession:
        with self._lock:
            if self._session is None:
                self._session = self._read_session()
            return self._session

    def _encode(self, texts: Sequence[str]) -> Iterator[tuple[str, TokenEmbeddings]]:
        encodings = [self._tokenizer.encode(text) for text in texts]
        by_length = sorted(zip(texts, encodings, strict=True), key=lambda pair: len(pair[1].ids))
        for n_tokens, group in groupby(by_length, key=lambda pair: len(pair[1].ids)):
            for batch in _batches(list(group), max(1, MAX_BATCH_TOKENS // n_tokens)):
                ids = np.array([encoding.ids for _, encoding in batch], dtype=np.int64)
                (outputs,) = self._ready_session().run([TOKENS], {IDS: ids})
                for (text, encoding), tokens in zip(batch, outputs, strict=True):
                    own = tokens.copy()  # a view would keep the whole batch in memory
                    own.flags.writeable = False
                    yield text, TokenEmbeddings(own, bool(encoding.overflowing))


def load_encoder(
    name: str, folder: Path, n_threads: int = 1, *, encoders: Path = ENCODERS, cache_bytes: int = CACHE_BYTES
) -> TextEncoder:
    """The encoder ``encoders/NAME`` with its own files from ``folder`` (``encoder_files.find``).

    Raises MissingEncoder where they are not the files that the encoder was made with.
    """
    spec = read_spec(name, encoders)
    check(spec, folder)
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens)

    def read_session() -> ort.InferenceSession:
        graph = (encoders / name / GRAPH).read_bytes()
        return make_session(graph, read_weights(graph, spec, folder / WEIGHTS), n_threads=n_threads)

    return TextEncoder(spec, tokenizer, read_session, cache_bytes=cache_bytes)


class Encoders:
    """The encoders of a process by name, each loaded once, by the first who asks for it."""

    def __init__(self, folder: Path | None = None, *, download: bool = False, encoders: Path = ENCODERS) -> None:
        self._folder, self._download, self._encoders = folder, download, encoders
        self._loaded: dict[str, TextEncoder] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> list[str]:
        """Those that somebody asked for."""
        return sorted(self._loaded)

    def get(self, name: str) -> TextEncoder:
        """The encoder; raises MissingEncoder with what to do. May take tenths of a second, or a download."""
        with self._lock:
            if name not in self._loaded:
                folder = find(name, folder=self._folder, download=self._download, encoders=self._encoders)
                self._loaded[name] = load_encoder(name, folder, encoders=self._encoders)
            return self._loaded[name]


def read_weights(graph: bytes, spec: EncoderSpec, path: Path) -> dict[str, NDArray[np.float32]]:
    """What the graph keeps external, by the names of its initializers, in float32."""
    with safe_open(path, framework="numpy") as file:
        return {
            name: file.get_tensor(spec.tensors.get(name, name)).astype(np.float32, copy=False)
            for name in external_names(onnx.load_model_from_string(graph))
        }


def external_names(model: onnx.ModelProto) -> list[str]:
    """The initializers whose data are elsewhere."""
    return [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]


class _Cache:
    """The texts used last, within a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._known: OrderedDict[str, TokenEmbeddings] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> TokenEmbeddings | None:
        with self._lock:
            if text in self._known:
                self._known.move_to_end(text)
            return self._known.get(text)

    def put(self, text: str, embeddings: TokenEmbeddings) -> None:
        with self._lock:
            if text in self._known:
                return
            self._known[text] = embeddings
            self._n_bytes += embeddings.tokens.nbytes
            while self._n_bytes > self._max_bytes:
                _, oldest = self._known.popitem(last=False)
                self._n_bytes -= oldest.tokens.nbytes


def _batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
