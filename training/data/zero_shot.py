"""What the data sets of zero-shot learning share: images listed by class, and classes split by lists of names.

A split is three files of class names, one a line, named as Xian et al. name theirs (Zero-Shot Learning: A Comprehensive
Evaluation of the Good, the Bad and the Ugly, 2018): ``trainclasses1.txt``, ``valclasses1.txt``, ``testclasses.txt``, in
``<data set>/splits/standard`` or ``<data set>/splits/proposed``. No class tested by the *proposed* split is one of
ImageNet-1K's, as many tested by the *standard* split are: on a base taught with ImageNet only the first is zero-shot.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from models.preprocess import PreprocessSpec
from training.data.folders import DataError, ImageSet, data_root, read_pixels

SPEC = PreprocessSpec(size=224, channels=3, fit="crop")
SplitName: TypeAlias = Literal["standard", "proposed"]
Split: TypeAlias = Mapping[str, frozenset[str]]
LISTS = {"train": "trainclasses1.txt", "validation": "valclasses1.txt", "test": "testclasses.txt"}
XIAN = "http://datasets.d2.mpi-inf.mpg.de/xian"
XIAN_LISTS = {
    "standard": (f"{XIAN}/standard_split.zip", "standard_split"),
    "proposed": (f"{XIAN}/xlsa17.zip", "xlsa17/data"),
}


@dataclass(frozen=True)
class Catalog:
    """The image files of each class, and each class's group; nothing is decoded yet."""

    files: Mapping[str, Sequence[Path]]
    groups: Mapping[str, str]

    def read(self, names: Collection[str], spec: PreprocessSpec) -> ImageSet:
        """The classes ``names``, sorted, preprocessed as the service does it; raises DataError, naming the file."""
        ordered = sorted(names)
        paths = [path for name in ordered for path in self.files[name]]
        pixels = np.empty((len(paths), spec.size, spec.size, spec.channels), np.uint8)  # gigabytes: never held twice
        with ThreadPoolExecutor() as pool:
            for i, image in enumerate(pool.map(lambda path: read_pixels(path, path.read_bytes, spec), paths)):
                pixels[i] = image
        labels = np.repeat(np.arange(len(ordered)), [len(self.files[name]) for name in ordered])
        return ImageSet(pixels, labels, tuple(ordered), tuple(self.groups[name] for name in ordered))


def find(name: str, unpacked: str, images: str) -> Path:
    """The folder with ``images`` in it: ``<data set>/<unpacked>``, or the data set's own; raises DataError."""
    for folder in (data_root() / name / unpacked, data_root() / name):
        if (folder / images).is_dir():
            return folder
    raise DataError(f"No {name} below {data_root()}; run `training data {name}`, or set CLASSMITH_DATASETS.")


def read_table(path: Path) -> dict[str, str]:
    """A file of lines "key value": the key is one word, the value is the rest of the line."""
    lines = (line.replace("\t", " ").partition(" ") for line in _lines(path, "unpack the whole archive again"))
    return {key: value.strip() for key, _, value in lines}


def part_of(split: Split, part: str) -> frozenset[str]:
    """The classes of "train", "validation" or "test", or of "all" three; raises DataError for another part."""
    if part == "all":
        return frozenset[str]().union(*split.values())
    if part not in split:
        raise DataError(f"There is no part {part!r}; ask for {', '.join(LISTS)} or all.")
    return split[part]


def split_folder(name: str, split: SplitName) -> Path:
    """Where a user puts the three lists."""
    return data_root() / name / "splits" / split


def xian_remedy(name: str, split: SplitName, theirs: str) -> str:
    """Where Xian et al. have the lists of their data set ``theirs``, and where they are looked for."""
    archive, folder = XIAN_LISTS[split]
    return f"copy Xian et al.'s list from {folder}/{theirs}/ of {archive} to {split_folder(name, split)}/"


def read_split(folder: Path, known: Collection[str], remedy: str) -> Split:
    """The three lists in ``folder``, checked: each is there, names classes that are ``known``, and shares none.

    ``remedy`` ends the DataError for a list that is missing: where it comes from. Not all known classes need be named.
    """
    split = {part: frozenset(_lines(folder / name, remedy)) for part, name in LISTS.items()}
    check_split(split, known, {part: str(folder / name) for part, name in LISTS.items()})
    return split


def check_split(split: Split, known: Collection[str], called: Mapping[str, str]) -> None:
    """Raise DataError where a list names a class that is not ``known``, or two share one; ``called``: each list."""
    for part, names in split.items():
        _check_known(called[part], names, known)
    for one, other in combinations(split, 2):
        if shared := sorted(split[one] & split[other]):
            raise DataError(
                f"{called[one]} and {called[other]} share {_some(shared)}; leave each class in one list only."
            )


def own_split(
    names: Collection[str], *, n_validation: int, n_test: int, never_tested: Collection[str] = ()
) -> dict[str, frozenset[str]]:
    """A split for where nobody published one: classes in the order of their names' SHA-256, the first ones tested.

    It is the same on every machine and needs no seed; ``never_tested`` are skipped while the test classes are chosen.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(order) <= n_validation + n_test:
        raise DataError(
            f"{len(order)} classes were found, and {n_validation} validate and {n_test} test; unpack the whole archive."
        )
    test = [name for name in order if name not in never_tested][:n_test]
    rest = [name for name in order if name not in test]
    parts = {"train": rest[n_validation:], "validation": rest[:n_validation], "test": test}
    return {part: frozenset(chosen) for part, chosen in parts.items()}


def by_class(pairs: Iterable[tuple[str, Path]], names: Collection[str], source: Path) -> dict[str, list[Path]]:
    """Files under their classes; raises DataError for a class without an image, and for an image without a class."""
    files: dict[str, list[Path]] = {name: [] for name in names}
    for name, path in pairs:
        if name not in files:
            raise DataError(
                f"{source} has no class {name!r}, of which {path} is an image; unpack the whole archive again."
            )
        files[name].append(path)
    if empty := sorted(name for name, paths in files.items() if not paths):
        raise DataError(f"{source} names {_some(empty)}, without an image; unpack the whole archive again.")
    return files


def _lines(path: Path, remedy: str) -> list[str]:
    """The lines that are not blank, trimmed; raises DataError for a file that is missing, empty or no text."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {remedy}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); {remedy}.") from error
    if not any(lines):
        raise DataError(f"{path} is empty; {remedy}.")
    return [line for line in lines if line]


def _check_known(called: str, names: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; is {unknown[0]!r} {close[0]!r}" if close else f"; classes are called {_some(sorted(known))}"
        raise DataError(f"{called} names {_some(unknown)}, which the data set does not have{hint}?")


def _some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
