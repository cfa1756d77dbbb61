"""Animals with Attributes 2: 37,322 photographs of 50 animals (Xian et al., 2018); 30/10/10 classes in both splits.

Xian et al.'s lists have 27 training and 13 validation classes, N3's table 30 and 10 by lists that were not published.
Here the first 10 of ``valclasses1.txt``, by name, validate, and the others train; those tested are Xian et al.'s.
"""

from __future__ import annotations

from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import archives, zero_shot
from training.data.folders import SUFFIXES, ImageSet
from training.data.zero_shot import Catalog, Split, SplitName

NAME = "awa2"
SPEC = zero_shot.SPEC
URL = "https://cvml.ista.ac.at/AwA2/AwA2-data.zip"
N_VALIDATION = 10


def load(part: str, spec: PreprocessSpec = SPEC, *, split: SplitName = "standard") -> ImageSet:
    """``part``: "train", "validation", "test", or "all"; classes are named as their folders ("grizzly+bear")."""
    catalog = read_catalog(source())
    if part == "all":
        return catalog.read(catalog.files.keys(), spec)
    remedy = zero_shot.xian_remedy(NAME, split, "AWA2")
    lists = zero_shot.read_split(zero_shot.split_folder(NAME, split), catalog.files, remedy)
    return catalog.read(zero_shot.part_of(with_fewer_validating(lists), part), spec)


def with_fewer_validating(split: Split) -> Split:
    """Validation classes over ``N_VALIDATION``, the last by name, train."""
    kept = frozenset(sorted(split["validation"])[:N_VALIDATION])
    return {**split, "train": split["train"] | (split["validation"] - kept), "validation": kept}


def read_catalog(folder: Path) -> Catalog:
    """By ``classes.txt`` ("1 antelope") and ``JPEGImages/<class>/``."""
    names = sorted(zero_shot.read_table(folder / "classes.txt").values())
    images = (path for name in names for path in sorted((folder / "JPEGImages" / name).glob("*")))
    pairs = ((path.parent.name, path) for path in images if path.suffix.lower() in SUFFIXES)
    files = zero_shot.by_class(pairs, names, folder / "classes.txt")
    return Catalog(files, {name: name for name in files})


def source() -> Path:
    """Where the archive is unpacked; raises DataError with the command that fetches it."""
    return zero_shot.find(NAME, "Animals_with_Attributes2", "JPEGImages")


def download(root: Path) -> Path:
    """Fetch the archive (13 GB) into ``root/awa2/Animals_with_Attributes2``, if not there; needs a network."""
    folder = root / NAME / "Animals_with_Attributes2"
    if not folder.exists():
        archives.fetch(URL, root / NAME)
    return folder
