"""Descriptions: what is refused, and what their author is told of how they are read. Nothing is dropped in silence."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from models.errors import ImpossibleTask, MissingEncoder
from models.metamodel import Manifest
from models.task import ClassSpec, class_text
from models.text import Encoders, TextEncoder
from service.language import LanguageDetector

MAX_NAMED = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Described:
    """A description as it was sent, and its class (without pixels) with the description in canonical form."""

    sent: str
    spec: ClassSpec


@dataclass(frozen=True)
class DescriptionReader:
    """Says how a meta-model reads descriptions. Blocks where an encoder or the detector has to be loaded first."""

    encoders: Encoders = field(default_factory=Encoders)
    languages: LanguageDetector = field(default_factory=LanguageDetector)

    def notes(self, classes: Sequence[Described], manifest: Manifest) -> tuple[str, ...]:
        """What the author should know; raises MissingEncoder where the meta-model's encoder is not here."""
        blank = [c.spec for c in classes if c.sent and not c.spec.description]
        notes = [f"{_of(blank)} blank, and not used."] if blank else []
        used = [c for c in classes if c.spec.description]
        if used and manifest.text_encoder:
            notes += self._notes_of_used(used, self.encoders.get(manifest.text_encoder))
        elif used:
            notes.append(f"The descriptions were kept, but not used: {manifest.name} reads images only.")
        return tuple(notes)

    def _notes_of_used(self, used: Sequence[Described], encoder: TextEncoder) -> list[str]:
        notes = []
        if odd := [c.spec for c in used if has_controls(c.sent)]:
            notes.append(f"{_of(odd)} read without the control characters in it.")
        if long := [c.spec for c in used if encoder.is_truncated(class_text(c.spec.name, c.spec.description))]:
            limit = f"the {encoder.spec.max_tokens} word pieces that the text encoder takes"
            notes.append(f"{_of(long)} longer than {limit}: its end was not read.")
        foreign: dict[str, list[ClassSpec]] = {}
        for c in used:
            if language := self.languages.foreign(c.spec.description):
                foreign.setdefault(language, []).append(c.spec)
        notes += [
            f"{_of(specs)} not English, but {language}, it seems; the text encoder was trained on English."
            for language, specs in foreign.items()
        ]
        return notes


def check_descriptions(classes: Sequence[ClassSpec], n_images: Sequence[int]) -> None:
    """Raise ImpossibleTask where two classes have the same description and no images, so that nothing differs."""
    seen: dict[str, int] = {}
    for i, spec in enumerate(classes):
        if not spec.description or n_images[i]:
            continue
        first = seen.setdefault(spec.description.casefold(), i)
        if first != i:
            remedy = "say what tells them apart, or add images"
            message = f"Classes {classes[first].name!r} and {spec.name!r} have the same description; {remedy}."
            raise ImpossibleTask(message, where=f"classes[{i}].description")


def prepare_encoders(names: Iterable[str], encoders: Encoders) -> None:
    """Read the encoders now; where one is missing the log says so, and the first description that needs it."""
    for name in names:
        try:
            encoders.get(name).prepare()
        except MissingEncoder as error:
            log.warning("%s", error.message)


def has_controls(text: str) -> bool:
    """Whether a text holds characters that are no text and no white space."""
    return any(unicodedata.category(ch) == "Cc" and not ch.isspace() for ch in text)


def listed(specs: Sequence[ClassSpec]) -> str:
    """The names of some classes, however many there are: "'a'", "'a' and 'b'", "'a', 'b', 'c' and 2 more"."""
    names = [repr(spec.name) for spec in specs[:MAX_NAMED]]
    if len(specs) > MAX_NAMED:
        names.append(f"{len(specs) - MAX_NAMED} more")
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _of(specs: Sequence[ClassSpec]) -> str:
    """The subject of a note."""
    return f"The description of {listed(specs)} is"
