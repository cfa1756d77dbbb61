"""The tasks that `make demo` shows, and the images they are made of.

Omniglot and Tiny ImageNet are not ours to ship: they are read where they are at hand (``CLASSMITH_DATASETS``, or
``../shared/data``). Else the invented alphabet of ``service.demo.alphabet`` and the landscapes of
``service.demo.scenes`` stand in.
"""

from __future__ import annotations

import base64
import json
import os
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from service.demo import examples, scenes
from service.demo.alphabet import alphabet

N_CLASSES, N_PHOTOGRAPHED = 20, 10
HELD_OUT_EVERY = 6
"""Every sixth alphabet, by name, is kept out of training: the rule of training/data/omniglot.py."""
HELD_OUT_WNIDS = slice(3, None, 4)
"""So is every fourth class of Tiny ImageNet: the rule of training/data/tiny_imagenet.py."""
N_QUERIES = 20
"""Photographs of each class that its classifier is tried on."""


@dataclass(frozen=True)
class Example:
    """An image and the class it belongs to."""

    label: str
    image: bytes


@dataclass(frozen=True)
class Showcase:
    """A task to make, and images that its classifier has not seen. ``descriptions``: by class, where it has any."""

    title: str
    support: tuple[Example, ...]
    queries: tuple[Example, ...]
    descriptions: dict[str, str] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """The body of ``POST /tasks``."""
        classes: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, text in self.descriptions.items():
            classes[name]["description"] = text
        for example in self.support:
            encoded = base64.b64encode(example.image).decode()
            classes[example.label].setdefault("images", []).append(encoded)
        return {"classes": [{"name": name, **given} for name, given in classes.items()]}


def drawings() -> Showcase:
    """20 characters, one drawing of each to make the classifier from, all other drawings to try it on."""
    characters, source = _characters()
    support = tuple(Example(name, images[0]) for name, images in characters.items())
    queries = tuple(Example(name, image) for name, images in characters.items() for image in images[1:])
    return Showcase(f"{N_CLASSES} characters from one drawing of each ({source})", support, queries)


def words() -> Showcase:
    """Described classes without an image."""
    classes, source = _described()
    return Showcase(f"{len(classes)} classes from words alone ({source})", (), _queries(classes), _texts(classes))


def photographs() -> Showcase:
    """The same classes from one image of each."""
    classes, _ = _described()
    return Showcase(f"The same {len(classes)} classes from one image of each", _support(classes), _queries(classes))


def words_and_photographs() -> Showcase:
    """The same classes from both."""
    classes, _ = _described()
    title = f"The same {len(classes)} classes from words and one image of each"
    return Showcase(title, _support(classes), _queries(classes), _texts(classes))


def media_type(image: bytes) -> str:
    """Told by the first bytes."""
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


@dataclass(frozen=True)
class _Described:
    text: str
    images: tuple[bytes, ...]


def _texts(classes: dict[str, _Described]) -> dict[str, str]:
    return {name: own.text for name, own in classes.items()}


def _support(classes: dict[str, _Described]) -> tuple[Example, ...]:
    return tuple(Example(name, own.images[0]) for name, own in classes.items())


def _queries(classes: dict[str, _Described]) -> tuple[Example, ...]:
    return tuple(Example(name, image) for name, own in classes.items() for image in own.images[1 : 1 + N_QUERIES])


def _described() -> tuple[dict[str, _Described], str]:
    """Name -> description and images of a few classes, and where they are from."""
    for root in _data_roots():
        folder = root / "tiny-imagenet"
        if (folder / "images.zip").is_file() and (folder / "descriptions.json").is_file():
            return _tiny_imagenet(folder), "photographs of Tiny ImageNet, classes kept out of training"
    painted = {
        name: _Described(text, tuple(scenes.picture(kind, number) for number in range(1 + N_QUERIES)))
        for kind, (name, text) in examples.SCENES.items()
    }
    return painted, "landscapes painted for this project"


@cache
def _tiny_imagenet(folder: Path) -> dict[str, _Described]:
    """Classes drawn at random from those held out, with the first of the texts that were written of each."""
    texts = json.loads((folder / "descriptions.json").read_text(encoding="utf-8"))
    with zipfile.ZipFile(folder / "images.zip") as archive:
        paths: dict[str, list[str]] = defaultdict(list)
        for path in sorted(name for name in archive.namelist() if name.lower().endswith(".jpeg")):
            paths[path.split("/")[0]].append(path)
        chosen = Random(0).sample(sorted(paths)[HELD_OUT_WNIDS], N_PHOTOGRAPHED)
        return {
            texts[wnid]["name"]: _Described(
                " ".join([", ".join(texts[wnid]["phrases"]) + ".", *texts[wnid]["sentences"][1:3]]),
                tuple(archive.read(path) for path in paths[wnid][: 1 + N_QUERIES]),
            )
            for wnid in sorted(chosen)
        }


def _data_roots() -> list[Path]:
    datasets = os.environ.get("CLASSMITH_DATASETS")
    return [Path(datasets)] if datasets else [Path("..") / "shared" / "data"]


def _characters() -> tuple[dict[str, list[bytes]], str]:
    """Name -> drawings of 20 characters, and where they are from."""
    for root in _data_roots():
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
