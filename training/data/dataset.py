"""What the rest of training knows of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from models.metamodel import Domain
from models.preprocess import PreprocessSpec
from training.data.folders import DataError, ImageSet, read_images

MIN_CLASSES = 7


@dataclass(frozen=True)
class Dataset:
    """A named data set: its domain, how its images are preprocessed, and how its parts are read and fetched.

    ``is_zero_shot``: its classes are also split into ones that are tested, once, at the end.
    """

    name: str
    domain: Domain
    spec: PreprocessSpec
    read: Callable[[str, PreprocessSpec], ImageSet]
    download: Callable[[Path], Path]
    is_zero_shot: bool = False

    def load(self, part: str, *, size: int | None = None) -> ImageSet:
        """One part, its images ``size`` pixels wide (None: the data set's own size); raises DataError without one."""
        if part == "test" and not self.is_zero_shot:
            raise DataError(f"{self.name} has no test classes here; give images with --images.")
        return self.read(part, self._spec(size))

    def split(
        self, images: Path | None = None, *, size: int | None = None, train_size: int | None = None
    ) -> tuple[ImageSet, ImageSet]:
        """Training and validation classes, disjoint: of the data set, or of a user's own ZIP or folder.

        ``train_size``: of training images, where not ``size``. Of a user's own, every sixth class validates. Raises
        DataError where that leaves fewer than two.
        """
        if images is None:
            return self.load("train", size=train_size or size), self.load("validation", size=size)
        everything = read_images(images, self._spec(size))
        if everything.n_classes < MIN_CLASSES:
            found = f"{images} has {everything.n_classes}"
            raise DataError(f"Training takes {MIN_CLASSES} classes at least (every sixth validates); {found}.")
        held_out = set(sorted(everything.class_names)[::6])
        learned = read_images(images, self._spec(train_size)) if train_size else everything
        return learned.where(lambda n, _: n not in held_out), everything.where(lambda n, _: n in held_out)

    def _spec(self, size: int | None) -> PreprocessSpec:
        return replace(self.spec, size=size or self.spec.size)
