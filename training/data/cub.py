"""Caltech-UCSD Birds 200-2011: 11,788 photographs of 200 species (Wah et al., 2011); 100/50/50 in both splits."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from models.preprocess import PreprocessSpec
from training.data import archives, zero_shot
from training.data.folders import ImageSet
from training.data.zero_shot import Catalog, SplitName

NAME = "cub"
SPEC = zero_shot.SPEC
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


def load(part: str, spec: PreprocessSpec = SPEC, *, split: SplitName = "standard") -> ImageSet:
    """``part``: "train", "validation", "test", or "all"; classes are named as their folders."""
    catalog = read_catalog(source())
    if part == "all":
        return catalog.read(catalog.files.keys(), spec)
    remedy = zero_shot.xian_remedy(NAME, split, "CUB")
    lists = zero_shot.read_split(zero_shot.split_folder(NAME, split), catalog.files, remedy)
    return catalog.read(zero_shot.part_of(lists, part), spec)


def read_catalog(folder: Path) -> Catalog:
    """By ``classes.txt`` ("1 001.Black_footed_Albatross") and ``images.txt`` ("1 <class>/<file>.jpg")."""
    names = zero_shot.read_table(folder / "classes.txt").values()
    paths = zero_shot.read_table(folder / "images.txt").values()
    pairs = ((PurePosixPath(path).parent.name, folder / "images" / path) for path in paths)
    files = zero_shot.by_class(pairs, names, folder / "classes.txt")
    return Catalog(files, {name: name for name in files})


def source() -> Path:
    """Where the archive is unpacked; raises DataError with the command that fetches it."""
    return zero_shot.find(NAME, "CUB_200_2011", "images")


def download(root: Path) -> Path:
    """Fetch the archive (1.1 GB) into ``root/cub/CUB_200_2011``, if not there; needs a network."""
    folder = root / NAME / "CUB_200_2011"
    if not folder.exists():
        archives.fetch(URL, root / NAME, MD5)
    return folder
