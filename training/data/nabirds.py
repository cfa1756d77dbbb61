"""NABirds: 48,562 photographs of North American birds (Van Horn et al., 2015), as 404 species; 324/40/40 classes.

The set's 555 visual categories, such as "American Kestrel (Adult male)", are taken together by species, as by Elhoseiny
et al. (2017). N3's lists were not published: put yours, of species' names, in ``nabirds/splits``; without any the
standard split is our own (``own_split``), and there is no proposed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import zero_shot
from training.data.folders import DataError, ImageSet, data_root
from training.data.zero_shot import LISTS, Catalog, Split, SplitName

NAME = "nabirds"
SPEC = zero_shot.SPEC
FORM = "https://dl.allaboutbirds.org/nabirds"
N_VALIDATION = N_TEST = 40


def load(part: str, spec: PreprocessSpec = SPEC, *, split: SplitName = "standard") -> ImageSet:
    """``part``: "train", "validation", "test", or "all"; classes are species, groups what is above them."""
    catalog = read_catalog(source())
    if part == "all":
        return catalog.read(catalog.files.keys(), spec)
    return catalog.read(zero_shot.part_of(split_of(catalog, split), part), spec)


def split_of(catalog: Catalog, split: SplitName) -> Split:
    """The lists put in ``nabirds/splits``, else, of the standard split, our own."""
    folder = zero_shot.split_folder(NAME, split)
    if split == "standard" and not folder.exists():
        return zero_shot.own_split(catalog.files, n_validation=N_VALIDATION, n_test=N_TEST)
    remedy = f"none is published: write {', '.join(LISTS.values())}, a species' name a line"
    return zero_shot.read_split(folder, catalog.files, remedy)


def read_catalog(folder: Path) -> Catalog:
    """By ``images.txt`` (id, path), ``image_class_labels.txt`` (id, category), ``classes.txt``, ``hierarchy.txt``."""
    paths, labels, names, parents = (
        zero_shot.read_table(folder / name)
        for name in ("images.txt", "image_class_labels.txt", "classes.txt", "hierarchy.txt")
    )
    species = {category: without_plumage(name) for category, name in names.items()}
    _check(folder, paths.keys() - labels.keys(), "images.txt", "image_class_labels.txt")
    _check(folder, set(labels.values()) - names.keys(), "image_class_labels.txt", "classes.txt")
    _check(folder, parents.keys() - names.keys(), "hierarchy.txt", "classes.txt")
    shown = {species[category]: category for category in labels.values()}
    pairs = ((species[labels[image]], folder / "images" / path) for image, path in paths.items())
    files = zero_shot.by_class(pairs, shown, folder / "classes.txt")
    return Catalog(files, {name: group_of(category, species, parents) for name, category in shown.items()})


def without_plumage(name: str) -> str:
    """The species' name: "American Kestrel (Female, immature)" -> "American Kestrel"."""
    return name.split("(")[0].strip()


def group_of(category: str, species: Mapping[str, str], parents: Mapping[str, str]) -> str:
    """The first name above a category that is not its species' own; its own where nothing is above."""
    above, seen = category, set[str]()
    while species.get(above) == species[category]:
        seen.add(above)
        above = parents.get(above, "")
        if above in seen:
            raise DataError(f"hierarchy.txt has category {above} above itself; unpack the whole archive again.")
    return species.get(above, species[category])


def source() -> Path:
    """Where the archive is unpacked; raises DataError that says where it comes from."""
    try:
        return zero_shot.find(NAME, "nabirds", "images")
    except DataError as error:
        raise DataError(f"No NABirds: {_remedy(data_root())}, or set CLASSMITH_DATASETS.") from error


def download(root: Path) -> Path:
    """Raises DataError: the archive is given only to those who sign a form."""
    raise DataError(f"NABirds cannot be downloaded by a program: {_remedy(root)}.")


def _remedy(root: Path) -> str:
    return f"fill in the form at {FORM}, and unpack nabirds.tar.gz in {root / NAME}"


def _check(folder: Path, missing: set[str], by: str, path: str) -> None:
    if missing:
        raise DataError(f"{folder / by} speaks of {min(missing)}, which {path} lacks; unpack the whole archive again.")
