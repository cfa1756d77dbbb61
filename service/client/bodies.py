"""What a request carries: the classes of a task, and images some at a time, read and encoded."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from service.client.errors import UnusableInput
from service.client.images import LARGE_BYTES, SUFFIXES, Images, Single, class_folders, encoded, expanded, fit_to_send

ClassLike: TypeAlias = str | PathLike[str] | Images | Mapping[str, Any]
"""A class: a description (a string), images, or both: ``{"description": "...", "images": [...]}``."""
Classes: TypeAlias = Mapping[str, ClassLike]

SURROGATE = re.compile("[\ud800-\udfff]")
"""In names of files and in arguments of another encoding; JSON has none."""
UNLABELED = "unlabeled"
BATCH_IMAGES, BATCH_BYTES = 100, 16_000_000
"""A call's worth of images: well below the service's limits, and progress is seen."""


def one(image: Images, large_bytes: int | None = LARGE_BYTES) -> bytes:
    """A single image, encoded; raises UnusableInput where there are several."""
    found = expanded(image)
    if len(found) != 1:
        raise UnusableInput(f"Exactly one image is explained at a time, not {len(found)}.")
    return fit_to_send(encoded(found[0]), large_bytes)


def batches(images: Sequence[Single], large_bytes: int | None = LARGE_BYTES) -> Iterator[list[bytes]]:
    """Images by the call, each read when its call is next."""
    batch: list[bytes] = []
    n_bytes = 0
    for image in images:
        data = fit_to_send(encoded(image), large_bytes)
        if batch and (len(batch) == BATCH_IMAGES or n_bytes + len(data) > BATCH_BYTES):
            yield batch
            batch, n_bytes = [], 0
        batch.append(data)
        n_bytes += len(data)
    if batch:
        yield batch


def task_body(
    classes: Classes, unlabeled: Images | None, meta_model: str, large_bytes: int | None = LARGE_BYTES
) -> dict[str, Any]:
    """The JSON of a task; raises UnusableInput, which names the class at fault.

    JSON rather than a form, so that a class may have any name.
    """
    if not isinstance(classes, Mapping):
        raise UnusableInput(
            'Classes are a mapping: {"zebra": ["1.jpg", "2.jpg"], "okapi": "striped legs, brown coat"}.'
        )
    described = [_class_body(name, value, large_bytes) for name, value in classes.items()]
    return {
        "classes": described,
        "unlabeled": _base64(() if unlabeled is None else unlabeled, large_bytes),
        "generator": meta_model,
    }


def folder_classes(
    folder: str | PathLike[str], descriptions: Mapping[str, str] | None
) -> tuple[dict[str, ClassLike], list[Path] | None]:
    """Classes and unlabelled images of a folder of class folders; classes only described come last."""
    found = class_folders(folder)
    unlabeled = found.pop(UNLABELED, None)
    texts = dict(descriptions or {})
    classes: dict[str, ClassLike] = {
        name: {"description": texts.pop(name, ""), "images": files} for name, files in found.items()
    }
    return classes | texts, unlabeled


def _class_body(name: object, value: object, large_bytes: int | None) -> dict[str, Any]:
    if not isinstance(name, str):
        raise UnusableInput(f"A class's name is a string, not {name!r}.")
    try:
        description, images = _parts(value)
        if SURROGATE.search(name + description):
            raise UnusableInput("Its name or its description is not Unicode; give it one that is, in UTF-8.")
        return {"name": name, "description": description, "images": _base64(images, large_bytes)}
    except UnusableInput as error:
        raise UnusableInput(f"Class {name!r}: {error}") from error


def _parts(value: Any) -> tuple[str, Any]:
    """(description, images) of a class."""
    if isinstance(value, str):
        if value.lower().endswith(SUFFIXES):
            remedy = f"for images give a list, [{value!r}], or a pathlib.Path"
            raise UnusableInput(f"{value!r} looks like a file, and a string is a description; {remedy}.")
        return value, ()
    if not isinstance(value, Mapping):
        return "", value
    unknown = set(value) - {"description", "images"}
    if unknown:
        raise UnusableInput(f'It has "description" and "images", not {sorted(map(str, unknown))}.')
    description, images = value.get("description") or "", value.get("images")
    if not isinstance(description, str):
        raise UnusableInput(f"A description is a string, not {type(description).__name__}.")
    return description, () if images is None else images


def _base64(images: Images, large_bytes: int | None) -> list[str]:
    files = (fit_to_send(encoded(image), large_bytes) for image in expanded(images))
    return [base64.b64encode(data).decode() for data in files]
