"""Whether a text is English, by a detector that is loaded only where there are texts; short ones get no verdict."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

MIN_WORDS = 5
MIN_UNSPACED_LETTERS = 6
"""Of the scripts that put no spaces between words."""
MIN_PROBABILITY = 0.7
"""On 28,000 English phrases and sentences about images, no other language was found above it."""
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish",
    "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""What is told from English: languages people write in much. Its small relatives are mistaken for it, Latin names for
Latin."""
ENGLISH_WORDS = frozenset({"the", "with", "and", "that", "which", "its", "from"})
"""Words of no other language. Nearly every English text of some length has them at this rate or more, and then the
detector need not be read."""
WORDS_PER_ENGLISH_WORD = 12


class _Identifier(Protocol):
    def classify(self, instance: str) -> tuple[str, float]: ...


class LanguageDetector:
    """py3langid behind one question; the first text that is not plainly English reads its model (a second, 80 MB)."""

    def __init__(self) -> None:
        self._identifier: _Identifier | None = None
        self._lock = threading.Lock()

    @property
    def is_read(self) -> bool:
        """Whether some text needed the model."""
        return self._identifier is not None

    def foreign(self, text: str) -> str | None:
        """The language of a text that is surely not English; None for English, and for what is too short to tell."""
        words = text.split()
        if not _is_long_enough(words) or _is_plainly_english(words):
            return None
        language, probability = self._ready().classify(text)
        return NAMES[language] if language != "en" and probability >= MIN_PROBABILITY else None

    def _ready(self) -> _Identifier:
        with self._lock:
            if self._identifier is None:
                from py3langid.langid import MODEL_FILE, LanguageIdentifier

                found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
                found.set_languages(["en", *NAMES])
                self._identifier = found
            return self._identifier


def _is_long_enough(words: Sequence[str]) -> bool:
    unspaced = sum(ch >= "\u0e00" and ch.isalpha() for word in words for ch in word)  # Thai and what comes after it
    return len(words) >= MIN_WORDS or unspaced >= MIN_UNSPACED_LETTERS


def _is_plainly_english(words: Sequence[str]) -> bool:
    n_english = sum(word.lower().strip(".,;:") in ENGLISH_WORDS for word in words)
    return n_english * WORDS_PER_ENGLISH_WORD >= len(words)
