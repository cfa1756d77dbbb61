"""Class-by-folder images, from a ZIP or a folder: the format of every data set here, and of a user's own."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from models.errors import ClassmithError
from models.preprocess import PreprocessSpec, to_pixels

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
OTHER_FORMATS = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pgm", ".ppm", ".tif", ".tiff"}
NOT_THE_USERS = {"__MACOSX", "lost+found"}
"""Folders that macOS puts into its ZIP files, and Linux into its file systems."""


class DataError(Exception):
    """A data set is missing or not in the expected layout; the message says what to do."""


@dataclass(frozen=True)
class ImageSet:
    """Images with classes, and classes with groups (an alphabet, a superclass; the class itself where there is none).

    ``pixels`` ``(N, H, W, C)`` uint8, ``labels`` ``(N,)``, both sorted by label; names and groups are by class.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    @cached_property
    def indices(self) -> list[NDArray[np.int64]]:
        """The image indices of each class."""
        return [np.flatnonzero(self.labels == k) for k in range(self.n_classes)]

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name these images and labels."""
        sha = hashlib.sha256("\n".join(self.class_names).encode())
        sha.update(self.labels.tobytes())
        sha.update(np.ascontiguousarray(self.pixels).data)  # gigabytes: never held twice
        return sha.hexdigest()[:12]

    def where(self, keep: Callable[[str, str], bool]) -> ImageSet:
        """The classes for which ``keep(name, group)``; raises DataError if none is left."""
        kept = [
            k for k, (name, group) in enumerate(zip(self.class_names, self.groups, strict=True)) if keep(name, group)
        ]
        if not kept:
            raise DataError("No class is left after choosing a part of the data; check the split's names.")
        chosen = np.concatenate([self.indices[k] for k in kept])
        labels = np.repeat(np.arange(len(kept)), [len(self.indices[k]) for k in kept])
        names, groups = ([values[k] for k in kept] for values in (self.class_names, self.groups))
        return ImageSet(self.pixels[chosen], labels, tuple(names), tuple(groups))


def data_root() -> Path:
    """The folder of data sets: ``CLASSMITH_DATASETS``, else ``../shared/data`` beside the project."""
    return Path(os.environ.get("CLASSMITH_DATASETS", Path(__file__).parents[3] / "shared" / "data"))


def read_images(source: Path, spec: PreprocessSpec) -> ImageSet:
    """A ZIP or folder of ``.../<group>/<class>/<image>`` -> ImageSet, preprocessed as the service does it.

    A class is named by its folder's whole path, its group by the folder above. Hidden files, and what systems add of
    their own, are left out; links are followed. Raises DataError where there is nothing to read, where an image does
    not decode, and for a class folder without images that can be read, or images outside of the class folders.
    """
    found = {path: read for path, read in _entries(source) if not _is_hidden(path)}
    entries: dict[str, list[tuple[str, Callable[[], bytes]]]] = {}
    for path, read in found.items():
        if _suffix(path) in SUFFIXES:
            entries.setdefault(_folder_of(path), []).append((path, read))
    if not entries:
        raise DataError(f"{source} holds no class folders with {', '.join(sorted(SUFFIXES))} images.")
    _refuse_without_images(source, entries, found)
    _refuse_loose(source, {name: own[0][0] for name, own in entries.items()})
    names = sorted(entries)
    in_order = [entry for name in names for entry in sorted(entries[name], key=lambda entry: entry[0])]
    with ThreadPoolExecutor() as pool:
        pixels = list(pool.map(lambda entry: read_pixels(entry[0], entry[1], spec), in_order))
    labels = np.repeat(np.arange(len(names)), [len(entries[name]) for name in names])
    groups = [PurePosixPath(name).parent.name or name for name in names]
    flat = len(set(groups)) == 1
    return ImageSet(np.stack(pixels), labels, tuple(names), tuple(names if flat else groups))


def read_pixels(path: str | Path, read: Callable[[], bytes], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """An image preprocessed as the service does it; raises DataError, naming ``path``, where there is none to read."""
    try:
        return to_pixels(read(), spec)
    except ClassmithError as error:
        raise DataError(f"{path}: {error.message}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); unpack or copy it again.") from error


def join(sets: Iterable[ImageSet]) -> ImageSet:
    """Several sets as one, their classes kept apart."""
    sets = list(sets)
    offsets = np.cumsum([0, *(s.n_classes for s in sets)])
    return ImageSet(
        np.concatenate([s.pixels for s in sets]),
        np.concatenate([s.labels + o for s, o in zip(sets, offsets, strict=False)]),
        tuple(name for s in sets for name in s.class_names),
        tuple(group for s in sets for group in s.groups),
    )


def with_rotations(images: ImageSet) -> ImageSet:
    """Each class four times, as the class of its images turned by 0, 90, 180 and 270 degrees."""

    def turned(quarter: int) -> ImageSet:
        names = tuple(f"{name}@{90 * quarter}" for name in images.class_names)
        groups = tuple(f"{group}@{90 * quarter}" for group in images.groups)
        return ImageSet(np.rot90(images.pixels, quarter, axes=(1, 2)), images.labels, names, groups)

    return join(turned(quarter) for quarter in range(4))


def _entries(source: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Relative path and reader of every file of a ZIP or folder; the paths of folders end with a slash."""
    if source.is_dir():
        for path, is_folder in _below(source, ()):
            yield path.relative_to(source).as_posix() + "/" * is_folder, path.read_bytes
    elif zipfile.is_zipfile(source):
        for name, data in _unzipped(source).items():
            yield name, lambda data=data: data  # type: ignore[misc]
    else:
        raise DataError(f"{source} is neither a folder nor a ZIP file of class folders.")


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """What is in a folder, and whether that is a folder; a link to one of those ``above`` is not followed."""
    above = (*above, folder.resolve())
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); make it readable, or move it away.") from error
    for path in inside:
        is_folder = path.is_dir()
        if _is_hidden(path.name) or (is_folder and path.resolve() in above):
            continue
        yield path, is_folder
        if is_folder:
            yield from _below(path, above)


def _unzipped(source: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(source) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except RuntimeError as error:  # NotImplementedError is one
        what = "has a password, or a compression that is not read here"
        raise DataError(f"{source} {what} ({error}); make it again as a plain ZIP file.") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{source} is a damaged ZIP file ({error}); copy or make it again.") from error


def _refuse_without_images(source: Path, names: Collection[str], paths: Collection[str]) -> None:
    """Raise DataError for folders that are empty, or hold images of other formats alone."""
    folders = {_folder_of(path) for path in paths}
    empty = {str(PurePosixPath(path)) for path in paths if path.endswith("/")} - folders
    other = {_folder_of(path) for path in paths if _suffix(path) in OTHER_FORMATS}
    with_images = {str(above) for name in names for above in (PurePosixPath(name), *PurePosixPath(name).parents)}
    if without := sorted((empty | other) - with_images):
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        formats = ", ".join(sorted(SUFFIXES))
        raise DataError(
            f"{source} has no image that can be read in {', '.join(map(repr, without[:3]))}{more}; convert images to "
            f"one of {formats}, or remove what is no class."
        )


def _refuse_loose(source: Path, first: dict[str, str]) -> None:
    """Raise DataError for images beside the class folders; ``first``: one image of each folder with images."""
    top = min(first, key=lambda name: len(PurePosixPath(name).parts))
    if top == "." or (len(first) > 1 and all(PurePosixPath(name).is_relative_to(top) for name in first)):
        raise DataError(
            f"{source}: {first[top]} is outside of the class folders; put each image into a folder of its class, as "
            "<class>/<image>, or remove it."
        )


def _folder_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _suffix(path: str) -> str:
    return "" if path.endswith("/") else PurePosixPath(path).suffix.lower()


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part in NOT_THE_USERS for part in PurePosixPath(path).parts)
