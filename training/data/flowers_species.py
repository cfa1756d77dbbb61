"""Flowers-Species: the 55 classes of Oxford Flowers 102 that are one species (Nilsback and Zisserman, 2008); 35/10/10.

N3 (section 4.1) leaves out the classes that are whole genera, by a list that was not published. ``SPECIES`` is our own:
without genera and cultivars. The splits are our own too (``own_split``); lists put in ``flowers-species/splits`` come
before them.
"""

from __future__ import annotations

from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import zero_shot
from training.data.folders import DataError, ImageSet
from training.data.zero_shot import LISTS, Catalog, Split, SplitName

NAME = "flowers-species"
SPEC = zero_shot.SPEC
N_VALIDATION = N_TEST = 10
AGAIN = f"run `training data {NAME}` again"
IN_IMAGENET = frozenset({"artichoke", "oxeye daisy"})
"""ImageNet-1K has "artichoke", and a "daisy" that this one may be."""
SPECIES = (
    "alpine sea holly", "artichoke", "ball moss", "balloon flower", "barbeton daisy", "bearded iris", "bee balm",
    "black-eyed susan", "blackberry lily", "californian poppy", "canterbury bells", "carnation", "cautleya spicata",
    "colt's foot", "common dandelion", "corn poppy", "desert-rose", "english marigold", "fire lily", "garden phlox",
    "giant white arum lily", "great masterwort", "hard-leaved pocket orchid", "japanese anemone", "king protea",
    "lenten rose", "lotus", "love in the mist", "mexican aster", "mexican petunia", "moon orchid", "oxeye daisy",
    "pink primrose", "poinsettia", "prince of wales feathers", "purple coneflower", "red ginger",
    "ruby-lipped cattleya", "siam tulip", "silverbush", "spear thistle", "spring crocus", "stemless gentian",
    "sunflower", "sweet pea", "sweet william", "thorn apple", "tiger lily", "tree mallow", "tree poppy",
    "trumpet creeper", "watercress", "wild pansy", "windflower", "yellow iris",
)  # fmt: skip


def load(part: str, spec: PreprocessSpec = SPEC, *, split: SplitName = "standard") -> ImageSet:
    """``part``: "train", "validation", "test", or "all" three; names are torchvision's of Flowers102."""
    catalog = read_catalog(source())
    return catalog.read(zero_shot.part_of(split_of(catalog, split), part), spec)


def split_of(catalog: Catalog, split: SplitName) -> Split:
    """The lists put in ``flowers-species/splits``, of any of the 102 classes; else our own, of ``SPECIES``."""
    folder = zero_shot.split_folder(NAME, split)
    if folder.exists():
        remedy = (
            f"write all of {', '.join(LISTS.values())}, a class's name a line, or remove the folder for our own split"
        )
        return zero_shot.read_split(folder, catalog.files, remedy)
    never_tested = IN_IMAGENET if split == "proposed" else ()
    return zero_shot.own_split(SPECIES, n_validation=N_VALIDATION, n_test=N_TEST, never_tested=never_tested)


def read_catalog(folder: Path) -> Catalog:
    """By ``imagelabels.mat`` (a label, from 1, an image) and ``jpg/image_00001.jpg``."""
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    path, called = folder / "imagelabels.mat", dict(enumerate(Flowers102.classes, 1))
    try:
        with path.open("rb") as file:
            names = [called[int(label)] for label in loadmat(file)["labels"].ravel()]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {AGAIN}.") from error
    except Exception as error:  # what is no such file raises many kinds
        raise DataError(f"{path} is not the labels of 102 flowers ({error!r}); {AGAIN}.") from error
    pairs = ((name, folder / "jpg" / f"image_{i:05d}.jpg") for i, name in enumerate(names, 1))
    files = zero_shot.by_class(pairs, Flowers102.classes, path)
    return Catalog(files, {name: name for name in files})


def source() -> Path:
    """Where torchvision unpacks Flowers102; raises DataError with the command that fetches it."""
    return zero_shot.find(NAME, "flowers-102", "jpg")


def download(root: Path) -> Path:
    """Fetch all 102 classes (350 MB) with torchvision into ``root/flowers-species/flowers-102``; needs a network."""
    from torchvision.datasets import Flowers102

    try:
        Flowers102(str(root / NAME), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"Flowers 102 could not be fetched ({error}); try again where a network allows it.") from error
    return root / NAME / "flowers-102"
