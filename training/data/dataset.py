"""What the rest of training knows of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.preprocess import PreprocessSpec
from training.data.folders import ImageSet, read_images


@dataclass(frozen=True)
class Dataset:
    """A named data set: its domain, how its images are preprocessed, and how its parts are read and fetched."""

    name: str
    domain: Literal["drawings", "photographs"]
    spec: PreprocessSpec
    load: Callable[[str], ImageSet]
    download: Callable[[Path], Path]

    def split(self, images: Path | None = None) -> tuple[ImageSet, ImageSet]:
        """Training and validation classes, disjoint: of the data set, or of a user's own ZIP or folder.

        Of a user's own, every sixth class validates.
        """
        if images is None:
            return self.load("train"), self.load("validation")
        everything = read_images(images, self.spec)
        held_out = set(sorted(everything.class_names)[::6])
        return everything.where(lambda n, _: n not in held_out), everything.where(lambda n, _: n in held_out)
