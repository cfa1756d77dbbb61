"""CIFAR-FS: CIFAR-100 split by class for few-shot learning (Bertinetto et al., 2019; Krizhevsky, 2009); 32 px."""

from __future__ import annotations

import json
from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data.folders import DataError, ImageSet, data_root, read_images

NAME = "cifar-fs"
SPEC = PreprocessSpec(size=32, channels=3, fit="crop")


def load(part: str, spec: PreprocessSpec = SPEC) -> ImageSet:
    """``part``: "train" (64 classes), "validation" (16), or "all" that is here."""
    images = read_images(source(), spec)
    if part == "all":
        return images
    chosen = set(json.loads((data_root() / NAME / "split.json").read_text())[part])
    return images.where(lambda name, _: Path(name).name in chosen)


def source() -> Path:
    """Where the images are; raises DataError with the command that fetches them."""
    for path in (data_root() / NAME / "images.zip", data_root() / NAME / "images"):
        if path.exists():
            return path
    raise DataError(f"No CIFAR-FS below {data_root()}; run `training data cifar-fs`, or set CLASSMITH_DATASETS.")


def download(root: Path) -> Path:
    """Fetch CIFAR-100 with torchvision and write it class by folder into ``root/cifar-fs``; needs a network.

    The split (``split.json``: class names of "train" and "validation") is Bertinetto et al.'s; put it beside them.
    """
    from torchvision.datasets import CIFAR100

    folder = root / NAME / "images"
    for train in (True, False):
        images = CIFAR100(str(root / NAME), train=train, download=True)
        for i, (image, label) in enumerate(images):
            path = folder / images.classes[label] / f"{'train' if train else 'test'}_{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder
