"""The tasks that `make demo` shows, and the images they are made of.

Omniglot is not ours to ship: it is read where it is at hand (``CLASSMITH_DATASETS``, or ``../shared/data``), and else
the invented alphabet of ``service.demo_alphabet`` stands in.
"""

from __future__ import annotations

import base64
import os
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from service.demo_alphabet import alphabet

N_CLASSES = 20
HELD_OUT_EVERY = 6
"""Every sixth alphabet, by name, is kept out of training: the rule of training/data/omniglot.py."""


@dataclass(frozen=True)
class Example:
    """An image and the class it belongs to."""

    label: str
    image: bytes


@dataclass(frozen=True)
class Showcase:
    """A task to make, and images that its classifier has not seen."""

    title: str
    support: tuple[Example, ...]
    queries: tuple[Example, ...]

    @property
    def request(self) -> dict[str, Any]:
        """The body of ``POST /tasks``."""
        images: dict[str, list[str]] = defaultdict(list)
        for example in self.support:
            images[example.label].append(base64.b64encode(example.image).decode())
        return {"classes": [{"name": name, "images": encoded} for name, encoded in images.items()]}


def drawings() -> Showcase:
    """20 characters, one drawing of each to make the classifier from, all other drawings to try it on."""
    characters, source = _characters()
    support = tuple(Example(name, images[0]) for name, images in characters.items())
    queries = tuple(Example(name, image) for name, images in characters.items() for image in images[1:])
    return Showcase(f"{N_CLASSES} characters from one drawing of each ({source})", support, queries)


def media_type(image: bytes) -> str:
    """Told by the first bytes."""
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


def _characters() -> tuple[dict[str, list[bytes]], str]:
    """Name -> drawings of 20 characters, and where they are from."""
    datasets = os.environ.get("CLASSMITH_DATASETS")
    for root in [Path(datasets)] if datasets else [Path("..") / "shared" / "data"]:
        archive = root / "omniglot" / "images_background.zip"
        if archive.is_file():
            return _omniglot(archive), "Omniglot, alphabets kept out of training"
    return alphabet(N_CLASSES), "an alphabet invented for this project"


def _omniglot(archive: Path) -> dict[str, list[bytes]]:
    """20 characters drawn at random from the held-out alphabets of Omniglot's background set."""
    characters: dict[tuple[str, str], list[str]] = defaultdict(list)
    with zipfile.ZipFile(archive) as images:
        for path in sorted(name for name in images.namelist() if name.endswith(".png")):
            _, alphabet_name, character, _ = path.split("/")
            characters[alphabet_name, character].append(path)
        held_out = set(sorted({alphabet_name for alphabet_name, _ in characters})[::HELD_OUT_EVERY])
        chosen = Random(0).sample([key for key in characters if key[0] in held_out], N_CLASSES)
        return {
            f"{alphabet_name} {character}": [images.read(path) for path in characters[alphabet_name, character]]
            for alphabet_name, character in sorted(chosen)
        }
