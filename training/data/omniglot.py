"""Omniglot: handwritten characters of 30 alphabets (Lake et al., 2015); split by whole alphabets.

Every sixth alphabet, by name, is for validation.
"""

from __future__ import annotations

from pathlib import Path

from models.preprocess import PreprocessSpec
from training.data import archives
from training.data.folders import DataError, ImageSet, data_root, read_images

NAME = "omniglot"
SPEC = PreprocessSpec(size=28, channels=1, fit="pad", invert_dark=True)


def load(part: str, spec: PreprocessSpec = SPEC) -> ImageSet:
    """``part``: "train", "validation", or "all" (both)."""
    images = read_images(source(), spec)
    held_out = set(sorted(set(images.groups))[::6])
    if part == "validation":
        return images.where(lambda _, group: group in held_out)
    if part == "all":
        return images
    return images.where(lambda _, group: group not in held_out)


def source() -> Path:
    """Where the background set is; raises DataError with the command that fetches it."""
    for path in (data_root() / NAME / "images_background.zip", data_root() / NAME / "images_background"):
        if path.exists():
            return path
    raise DataError(f"No Omniglot below {data_root()}; run `training data omniglot`, or set CLASSMITH_DATASETS.")


def download(root: Path) -> Path:
    """Fetch the background set into ``root/omniglot/images_background``, if it is not there; needs a network."""
    from torchvision.datasets import Omniglot

    folder, unpacked = root / NAME / "images_background", root / NAME / "omniglot-py"
    if not folder.exists():
        url = f"{Omniglot.download_url_prefix}/{folder.name}.zip"
        archives.fetch(url, unpacked, Omniglot.zips_md5[folder.name])
        (unpacked / folder.name).rename(folder)
    return folder
