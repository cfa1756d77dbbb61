"""A task: what a user asks for, its stored form (the recipe), and its content-hash id.

The recipe is canonical: equal requests give equal bytes, and so equal ids. It holds the *preprocessed* support pixels,
so that the network can be made again, the same, whatever happened to it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import ImpossibleTask, InvalidRequest

FORMAT_VERSION = 1
NOT_TEXT = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that no name shows: controls, formats, halves of surrogate pairs, separators of lines."""
JOINERS = "\u200c\u200d"
"""Formats that are kept inside a word: Persian and the scripts of India are spelt with them, emoji are put together."""
WITHOUT_JOINERS = dict.fromkeys(map(ord, JOINERS))
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ClassSpec:
    """One class: a name, a description or support images or both. Images are preprocessed ``(H, W, C)`` uint8."""

    name: str
    description: str = ""
    images: tuple[Pixels, ...] = ()


@dataclass(frozen=True)
class TaskSpec:
    """An ordered list of classes, and optional unlabelled images of them."""

    classes: tuple[ClassSpec, ...]
    unlabeled: tuple[Pixels, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the task."""
        return tuple(c.name for c in self.classes)

    @property
    def n_images(self) -> int:
        """Support and unlabelled images together."""
        return sum(len(c.images) for c in self.classes) + len(self.unlabeled)


def canonical_text(text: str) -> str:
    """NFC; what is not text, and runs of white space, to single spaces; ends trimmed; joiners inside words alone."""
    kept = "".join(" " if unicodedata.category(ch) in NOT_TEXT and ch not in JOINERS else ch for ch in text)
    words = (word.strip(JOINERS) for word in kept.split())
    return unicodedata.normalize("NFC", " ".join(word for word in words if word))


def class_text(name: str, description: str) -> str:
    """The one text that stands for a class: its name and its description; a name that is only a number says nothing."""
    if not description:
        return name
    return description if name.isdecimal() else f"{name}. {description}"


def check_classes(spec: TaskSpec, *, min_classes: int, max_classes: int) -> None:
    """Raise ImpossibleTask unless the classes have distinct, non-empty names and their number is in range.

    Names that differ in joiners only are not distinct: they may look alike.
    """
    n = len(spec.classes)
    if not min_classes <= n <= max_classes:
        wanted = f"give between {min_classes} and {max_classes} classes"
        raise ImpossibleTask(f"A task of {n} class{'es' if n != 1 else ''} cannot be made; {wanted}.", where="classes")
    seen: dict[str, int] = {}
    for i, name in enumerate(spec.class_names):
        if not name:
            raise ImpossibleTask("A class has an empty name; name every class.", where=f"classes[{i}].name")
        shown = name.translate(WITHOUT_JOINERS)
        if shown in seen:
            first = seen[shown]
            message = f"Classes {first} and {i} are both named {name!r}; give every class its own name."
            raise ImpossibleTask(message, where=f"classes[{i}].name")
        seen[shown] = i


def encode_recipe(spec: TaskSpec) -> bytes:
    """The canonical bytes of a task: one safetensors file of pixels, and the texts as JSON in its header."""
    groups = [*((f"class{i}", c.images) for i, c in enumerate(spec.classes)), ("unlabeled", spec.unlabeled)]
    tensors = {name: np.stack(images) for name, images in groups if images}
    tensors["format"] = np.array([FORMAT_VERSION], dtype=np.uint8)
    texts = [{"name": c.name, "description": c.description} for c in spec.classes]
    return save(tensors, metadata={"classes": json.dumps(texts, ensure_ascii=False, separators=(",", ":"))})


def decode_recipe(recipe: bytes) -> TaskSpec:
    """The inverse of encode_recipe; raises InvalidRequest where the bytes are not a recipe of this version."""
    try:
        tensors = load(recipe)
        version = int(tensors.pop("format")[0])
        texts = [(str(text["name"]), str(text["description"])) for text in json.loads(_metadata(recipe)["classes"])]
    except (SafetensorError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"These bytes are not a task recipe ({error}); create the task again.") from error
    if version != FORMAT_VERSION:
        raise InvalidRequest(f"Recipe format {version} is not {FORMAT_VERSION}; create the task again.")
    if any(tensor.dtype != np.uint8 or tensor.ndim != 4 for tensor in tensors.values()):
        raise InvalidRequest("A recipe's images are not pixels; create the task again.")
    classes = [ClassSpec(*text, tuple(tensors.get(f"class{i}", ()))) for i, text in enumerate(texts)]
    return TaskSpec(tuple(classes), tuple(tensors.get("unlabeled", ())))


def task_id(recipe: bytes, *, tenant: str, meta_model_digest: str, preprocessing: str) -> str:
    """The content hash that names a task: 32 hexadecimal digits (128 bits of SHA-256), different for each tenant."""
    return digest_of((f"classmith task {FORMAT_VERSION}", tenant, meta_model_digest, preprocessing, recipe))[:32]


def digest_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of length-prefixed parts, so that no two different lists of parts run together into one digest."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def canonical_order(spec: TaskSpec) -> list[int]:
    """Class positions sorted by content: generators see classes in this order, so listing order changes no weight."""
    keys = [digest_of([c.name, c.description, *sorted(i.tobytes() for i in c.images)]) for c in spec.classes]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return metadata
