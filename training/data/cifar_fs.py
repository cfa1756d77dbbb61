"""CIFAR-FS: CIFAR-100 split by class for few-shot learning (Bertinetto et al., 2019; Krizhevsky, 2009); 32 px."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import archives, zero_shot
from training.data.folders import DataError, ImageSet, data_root, read_images

NAME = "cifar-fs"
SPEC = PreprocessSpec(size=32, channels=3, fit="crop")


def load(part: str, spec: PreprocessSpec = SPEC) -> ImageSet:
    """``part``: "train" (64 classes), "validation" (16), or "all" that is here."""
    images = read_images(source(), spec)
    if part == "all":
        return images
    chosen = read_split(part, {Path(name).name for name in images.class_names})
    return images.where(lambda name, _: Path(name).name in chosen)


def read_split(part: str, known: Collection[str]) -> frozenset[str]:
    """The class names of a part, by ``split.json``; raises DataError with what to write there.

    Also where a class that it trains or validates on is not ``known``, or in both lists. The other list may be missing.
    """
    path = data_root() / NAME / "split.json"
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        parts = [name for name in ("train", "validation", part) if name == part or name in lists]
        split = {name: frozenset(map(str, lists[name])) for name in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        form = '{"train": [<64 class names>], "validation": [<16>]}'
        theirs = "the lists of Bertinetto et al.'s CIFAR-FS, https://github.com/bertinetto/r2d2"
        raise DataError(f"{path} does not say what is for {part} ({error!r}); write {form}: {theirs}.") from error
    zero_shot.check_split(split, known, {name: f"{name} of {path}" for name in split})
    return split[part]


def source() -> Path:
    """Where the images are; raises DataError with the command that fetches them."""
    for path in (data_root() / NAME / "images.zip", data_root() / NAME / "images"):
        if path.exists():
            return path
    raise DataError(f"No CIFAR-FS below {data_root()}; run `training data cifar-fs`, or set CLASSMITH_DATASETS.")


def download(root: Path) -> Path:
    """Fetch CIFAR-100 and write it class by folder into ``root/cifar-fs/images``, if not there yet; needs a network.

    The split (``split.json``: class names of "train" and "validation") is Bertinetto et al.'s; put it beside them.
    """
    from torchvision.datasets import CIFAR100

    folder = root / NAME / "images"
    if folder.exists():
        return folder
    archives.fetch(CIFAR100.url, root / NAME, CIFAR100.tgz_md5)
    with archives.whole(folder) as partial:
        for part in ("train", "test"):
            images = CIFAR100(str(root / NAME), train=part == "train")
            for i, (image, label) in enumerate(images):
                path = partial / images.classes[label] / f"{part}_{i:05d}.png"
                path.parent.mkdir(exist_ok=True)
                image.save(path)
    return folder
