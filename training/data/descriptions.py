"""What is written about each class: ``descriptions.json`` beside a data set's images, and documents made of it.

A file is one JSON object, of one value a class, in any of these forms:

    {"n01443537": {"name": "goldfish", "phrases": ["a small mouth", ...], "sentences": ["Goldfish are ...", ...]}}
    {"apple": {"name": "apple", "cupl_base": ["An apple is ...", ...], "cupl_full": [...]}}
    {"red_panda": "Red panda: a mammal with reddish fur. Its tail is ringed."}
    {"red_panda": ["A mammal with reddish fur.", "a ringed tail"]}

The last two are what a user writes: texts are taken apart into sentences, and a class is called as its key says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from unicodedata import normalize

import numpy as np

from models.task import canonical_text, class_text
from training.data.folders import DataError, data_root

FILE = "descriptions.json"
FORM = '{"<class>": "<what it looks like>", ...}, or lists of such texts'
PHRASES, SENTENCES = ("phrases",), ("sentences", "cupl_base", "cupl_full")
PROPOSED = "-ps"
NUMBER = re.compile(r"^\d+\.")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
NAMELESS = "thing"
Json: TypeAlias = "str | int | float | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class ClassTexts:
    """A class's name and what is written about it, cleaned as the service cleans texts, each text once.

    ``phrases`` name a part or a look ("a small mouth"), ``sentences`` are whole; one of the two is never empty.
    ``other_names`` (WordNet's synonyms) are in no document; they are withheld with the name.
    """

    name: str
    phrases: tuple[str, ...]
    sentences: tuple[str, ...]
    other_names: tuple[str, ...] = ()


def beside(images: Path) -> Path:
    """Where the descriptions of a ZIP or folder of images are: in the folder, else next to the ZIP or folder."""
    inside, next_to = images / FILE, images.parent / FILE
    return inside if inside.exists() or (images.is_dir() and not next_to.exists()) else next_to


def of_dataset(name: str) -> dict[str, ClassTexts]:
    """Those of a data set, by class; both splits of one have the same file."""
    return read_descriptions(data_root() / name.removesuffix(PROPOSED) / FILE)


def of(dataset: str, images: Path | None = None) -> dict[str, ClassTexts]:
    """Those of a user's own ZIP or folder of images, where there is one, else of the data set; raises DataError."""
    return read_descriptions(beside(images)) if images else of_dataset(dataset)


def texts_digest(texts: Iterable[ClassTexts]) -> str:
    """Twelve hexadecimal digits that name these texts in their order."""
    written = json.dumps([astuple(own) for own in texts])
    return hashlib.sha256(written.encode()).hexdigest()[:12]


def read_descriptions(path: Path) -> dict[str, ClassTexts]:
    """The texts by class (the file's keys); raises DataError for a file, or a class, that has none."""
    try:
        found: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; write it: {FORM}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); write {FORM}.") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path} is not a JSON object of classes; write {FORM}.")
    return {name: _class_texts(name, value, path) for name, value in found.items()}


def in_order(class_names: Iterable[str], texts: Mapping[str, ClassTexts]) -> tuple[ClassTexts, ...]:
    """The texts of classes in their order; a class is found by its whole name, or by its own folder's.

    However their accents are written: macOS has "e" and an accent in names of folders, editors have one character.
    Raises DataError that names the classes without texts, or two with the same.
    """
    found = {normalize("NFC", key): own for key, own in texts.items()}
    whole = {name: normalize("NFC", name) for name in class_names}
    names = {name: own if own in found else PurePosixPath(own).name for name, own in whole.items()}
    if missing := [name for name, key in names.items() if key not in found]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"No text says what {', '.join(map(repr, missing[:3]))}{more} look like; add them to {FILE} as {FORM}."
        )
    if len(set(names.values())) < len(names):
        raise DataError(f"Classes of one name share their texts; write whole names, such as {next(iter(names))!r}.")
    return tuple(found[key] for key in names.values())


def draw_document(
    texts: ClassTexts,
    rng: np.random.Generator,
    *,
    p_name: float = 0.5,
    max_phrases: int = 6,
    max_sentences: int = 6,
) -> str:
    """One document about a class: some phrases, then some sentences, in any order; at least one of either.

    With probability ``p_name`` the name comes first, else it is withheld as by ``document``.
    """
    n_phrases = int(rng.integers(min(max_phrases, len(texts.phrases)) + 1))
    n_sentences = int(rng.integers(min(max_sentences, len(texts.sentences)) + 1))
    if n_phrases + n_sentences == 0:
        n_phrases, n_sentences = (0, 1) if texts.sentences else (1, 0)
    phrases, sentences = _drawn(texts.phrases, n_phrases, rng), _drawn(texts.sentences, n_sentences, rng)
    return _document(texts, phrases, sentences, named=bool(rng.random() < p_name))


def document(texts: ClassTexts, *, named: bool = True, max_sentences: int | None = None) -> str:
    """The same document each time: the name, all phrases, and the first sentences (all of them, unless bounded).

    Not ``named``: the name is left out, and "thing" stands where a text says it or another name; its single words stay
    ("albatross", of a "Laysan albatross").
    """
    return _document(texts, texts.phrases, texts.sentences[:max_sentences], named=named)


def without_names(text: str, names: Iterable[str]) -> str:
    """``text`` with "thing" for each of ``names``, whatever its case, hyphens or plural."""
    for name in sorted(names, key=len, reverse=True):
        words = r"[\s_-]+".join(re.escape(word) for word in re.split(r"[\s_-]+", name) if word)
        either = f"{words[:-1]}(?:y|ies)" if words.endswith("y") else f"{words}(?:e?s)?"
        thing = partial(_thing, last=name[-1].lower())
        text = re.sub(rf"(?<!\w){either}(?!\w)", thing, text, flags=re.IGNORECASE)
    return text


def readable(key: str) -> str:
    """A class's name by its folder: "001.Black_footed_Albatross" -> "Black footed Albatross"."""
    return canonical_text(re.sub(r"[_+]", " ", NUMBER.sub("", PurePosixPath(key).name))) or key


def _class_texts(key: str, value: Json, path: Path) -> ClassTexts:
    """Any of the forms of one class."""
    fields = value if isinstance(value, dict) else {}
    name = canonical_text(str(fields.get("name") or "")) or readable(key)
    if isinstance(value, dict):
        phrases, sentences = (_cleaned(value, names, f"{path}, {key!r}") for names in (PHRASES, SENTENCES))
    else:
        texts = _cleaned({"texts": [value] if isinstance(value, str) else value}, ("texts",), f"{path}, {key!r}")
        phrases, sentences = (), tuple(dict.fromkeys(s for text in texts for s in SENTENCE_END.split(text)))
    if not phrases and not sentences:
        raise DataError(f"{path}, {key!r}: there is no text; say what the class looks like, as {FORM}.")
    others = [canonical_text(other) for other in str(fields.get("wordnet") or "").split(",")]
    return ClassTexts(name, phrases, sentences, tuple(other for other in others if other not in ("", name)))


def _cleaned(fields: Mapping[str, Json], names: Iterable[str], where: str) -> tuple[str, ...]:
    """The texts of some fields, canonical, each once, without empty ones."""
    texts: list[str] = []
    for name in names:
        found = fields.get(name, [])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise DataError(f"{where}: {name} is not a list of texts; write {FORM}.")
        texts += [canonical_text(str(text)) for text in found]
    return tuple(dict.fromkeys(text for text in texts if text))


def _drawn(texts: tuple[str, ...], n: int, rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))[:n]]


def _document(texts: ClassTexts, phrases: Iterable[str], sentences: Iterable[str], *, named: bool) -> str:
    joined = ", ".join(phrase.rstrip(".") for phrase in phrases)
    whole = " ".join(_ended(text) for text in (joined, *sentences) if text)
    return class_text(texts.name, whole) if named else without_names(whole, (texts.name, *texts.other_names))


def _ended(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


def _thing(match: re.Match[str], last: str) -> str:
    """Singular where the match ends as the name does."""
    return NAMELESS if match[0].lower().endswith(last) else f"{NAMELESS}s"
