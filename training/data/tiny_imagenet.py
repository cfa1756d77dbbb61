"""Tiny ImageNet: photographs of ImageNet classes, 64 x 64 (Le and Yang, 2015; ImageNet's terms: research only).

Every fourth class, by WordNet id, is for validation: neither its images nor its texts are met in training.
"""

from __future__ import annotations

from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import archives
from training.data.folders import DataError, ImageSet, data_root, read_images

NAME = "tiny-imagenet"
SPEC = PreprocessSpec(size=64, channels=3, fit="crop")
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load(part: str, spec: PreprocessSpec = SPEC) -> ImageSet:
    """``part``: "train", "validation", or "all" that is here; class names are WordNet ids."""
    images = read_images(source(), spec)
    if part == "all":
        return images
    held_out = set(sorted(images.class_names)[3::4])
    return images.where(lambda name, _: (name in held_out) == (part == "validation"))


def source() -> Path:
    """Where the images are; raises DataError with the command that fetches them."""
    for path in (data_root() / NAME / "images.zip", data_root() / NAME / "images"):
        if path.exists():
            return path
    raise DataError(f"No Tiny ImageNet below {data_root()}; run `training data {NAME}`, or set CLASSMITH_DATASETS.")


def download(root: Path) -> Path:
    """Fetch the training images into ``root/tiny-imagenet/images/<wnid>/``, if that is not there; needs a network."""
    unpacked, folder = root / NAME / "tiny-imagenet-200" / "train", root / NAME / "images"
    if folder.exists():
        return folder
    archives.fetch(URL, root / NAME)
    with archives.whole(folder) as partial:
        for image in sorted(unpacked.glob("*/images/*.JPEG")):
            target = partial / image.parts[-3] / image.name
            target.parent.mkdir(exist_ok=True)
            image.rename(target)
    return folder
