"""The meta-models this service has, and which of them a task gets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models import quantised
from models.errors import ImpossibleTask, InvalidMetaModel, Unavailable
from models.metamodel import MetaModel, load

AUTO = "auto"
PREFERRED: dict[str, tuple[str, ...]] = {
    "drawings": ("omniglot-64",),
    "photographs": ("n3-mobilenet",),
    "words": ("n3-mobilenet",),
    "words and drawings": ("omniglot-64",),
    "words and photographs": ("n3-mobilenet",),
}
"""What is given -> the meta-models that "auto" tries first, in order; the others follow by name."""
Domain = Literal["drawings", "photographs"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """What a request tells about the kind of task.

    ``n_shown``, ``n_described``: of its classes, those with images and those with a description. ``n_images``,
    ``near_grey``: of its classes' images; None where they have none, or where that was not looked at.
    """

    n_classes: int
    n_shown: int
    n_described: int
    n_images: int
    n_unlabeled: int = 0
    near_grey: bool | None = None

    @property
    def domain(self) -> Domain | None:
        """Drawings have next to no colour; None where descriptions are all there is."""
        if self.near_grey is None:
            return None
        return "drawings" if self.near_grey else "photographs"

    @property
    def kind(self) -> str:
        """A key of PREFERRED."""
        given = ["words"] if self.n_described else []
        return " and ".join([*given, self.domain] if self.domain else given)


class Catalogue:
    """Meta-models by name."""

    def __init__(self, meta_models: Mapping[str, MetaModel]) -> None:
        self.by_name = dict(meta_models)

    @property
    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(self.by_name)

    def quantised(self) -> dict[str, bytes]:
        """Skeletons in 8-bit integers by their meta-model's digest; of a broken one an error is logged."""
        found = {}
        for meta_model in self.by_name.values():
            try:
                if read := quantised.read(meta_model):
                    found[meta_model.digest] = read[0]
            except InvalidMetaModel as error:
                log.error("quantised skeleton refused: %s", error.message)
        return found

    @property
    def max_classes(self) -> int:
        """The most classes that any of them takes."""
        return max((m.manifest.max_classes for m in self.by_name.values()), default=64)

    @property
    def text_encoders(self) -> list[str]:
        """The encoders that some of them read descriptions with."""
        return sorted({m.manifest.text_encoder for m in self.by_name.values() if m.manifest.text_encoder})

    @property
    def first_choices(self) -> list[MetaModel]:
        """What "auto" takes for small tasks of each kind, each once: what most users will ask for."""
        found = {}
        for n_shown, n_described, near_grey in ((2, 0, True), (2, 0, False), (0, 2, None), (2, 2, True), (2, 2, False)):
            with contextlib.suppress(ImpossibleTask, Unavailable):
                evidence = Evidence(2, n_shown, n_described, n_shown, near_grey=near_grey)
                chosen = self.choose(AUTO, evidence)
                found[chosen.name] = chosen
        return list(found.values())

    def get(self, name: str) -> MetaModel:
        """The meta-model an existing task was made with; raises Unavailable where it was taken away."""
        if name not in self.by_name:
            remedy = "put its folder back, or create the task again"
            raise Unavailable(f"The task's meta-model {name!r} is not loaded here; {remedy}.")
        return self.by_name[name]

    def choose(self, generator: str, evidence: Evidence) -> MetaModel:
        """The named meta-model, or with "auto" the first that can make use of the classes as they are given.

        That one may leave unlabelled images out: a better network is worth more than they are. Raises ImpossibleTask
        where there is none, saying which there are, and Unavailable where none is loaded at all.
        """
        if not self.by_name:
            problem = "its folder is missing or holds none (CLASSMITH_META_MODELS)"
            raise Unavailable(f"No meta-model is loaded here, so no classifier can be made: {problem}.")
        if generator != AUTO:
            return self._named(generator)
        if able := self.able(evidence):
            return able[0]
        candidates = self._suited(evidence)
        if not candidates:
            raise self._none_for(evidence)
        return candidates[0]  # the first one's limits make the error where none is able

    def able(self, evidence: Evidence) -> list[MetaModel]:
        """Those that can make a task of this kind and size, in the order in which "auto" tries them."""
        return [m for m in self._suited(evidence) if _takes(m, evidence)]

    def _suited(self, evidence: Evidence) -> list[MetaModel]:
        return sorted((m for m in self.by_name.values() if _suits(m, evidence)), key=lambda m: _rank(m, evidence))

    def _named(self, name: str) -> MetaModel:
        if name in self.by_name:
            return self.by_name[name]
        message = f"There is no meta-model {name[:100]!r} here; choose {self._choices()}."
        raise ImpossibleTask(message, where="generator")

    def _none_for(self, evidence: Evidence) -> ImpossibleTask:
        if evidence.domain is None:
            what, remedy = "descriptions alone", "add at least one image to each class"
        else:
            what = f"{evidence.domain}, which these images look like"
            remedy = f"choose {self._choices()} as `generator`"
        return ImpossibleTask(f"No meta-model here takes {what}; {remedy}.", where="classes")

    def _choices(self) -> str:
        return ", ".join([AUTO, *self.names])


def _suits(meta_model: MetaModel, evidence: Evidence) -> bool:
    """Whether it takes this kind of task: what there is of every class, and images that look like these.

    An image for every class is asked for later, where there are images: that error can say which class has none.
    """
    manifest = meta_model.manifest
    if evidence.domain is None:
        return manifest.accepts_descriptions
    return manifest.accepts_images and manifest.domain == evidence.domain


def _rank(meta_model: MetaModel, evidence: Evidence) -> tuple[bool, int, bool, bool, str]:
    """Lower is better: reads the words given, is preferred, uses unlabelled images, is made for just what is given."""
    manifest, preferred = meta_model.manifest, PREFERRED.get(evidence.kind, ())
    reads_words = manifest.accepts_descriptions
    return (
        evidence.n_described > 0 and not reads_words,
        preferred.index(meta_model.name) if meta_model.name in preferred else len(preferred),
        evidence.n_unlabeled > 0 and not manifest.accepts_unlabeled,
        (not evidence.n_described and reads_words) or (not evidence.n_shown and manifest.accepts_images),
        meta_model.name,
    )


def _takes(meta_model: MetaModel, evidence: Evidence) -> bool:
    manifest = meta_model.manifest
    in_range = manifest.min_classes <= evidence.n_classes <= manifest.max_classes
    takes_all = manifest.accepts_descriptions or evidence.n_shown == evidence.n_classes
    n_used = evidence.n_images + (evidence.n_unlabeled if manifest.accepts_unlabeled else 0)
    return in_range and takes_all and n_used <= manifest.max_images


def read_catalogue(folder: Path) -> Catalogue:
    """Every whole meta-model below a folder; a broken one is refused with an error in the log, the others serve on."""
    found = []
    for path in meta_model_folders(folder):
        try:
            found.append(load(path))
        except InvalidMetaModel as error:
            log.error("meta-model refused: %s", error.message)
    return Catalogue({model.name: model for model in found})


def nothing_in(folder: Path) -> str:
    """What to tell an operator whose folder gave no meta-model: its whole path, and what to do."""
    place = folder.resolve()
    problem = f"{place} holds no whole one" if folder.is_dir() else f"there is no folder {place}"
    return f"No meta-model is loaded: {problem}; set CLASSMITH_META_MODELS to their folder and restart."


def meta_model_folders(folder: Path) -> list[Path]:
    """The folders below one, in order; hidden ones are exports under way."""
    below = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in below if path.is_dir() and not path.name.startswith("."))
