"""A task as it was asked for -> the task as it is made: every check, then its meta-model, then its pixels.

The checks come in the order of their cost, all of them before anything is stored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from models.errors import ImpossibleTask, TooLarge
from models.metamodel import Manifest, MetaModel
from models.task import ClassSpec, TaskSpec, canonical_text, check_classes, digest_of
from service.catalogue import AUTO, Catalogue, Evidence
from service.descriptions import Described, DescriptionReader, check_descriptions
from service.images import Image, Intake, Looks
from service.repeats import check_images
from service.settings import Settings

MIN_CLASSES = 2


@dataclass(frozen=True)
class ClassRequest:
    """A class as it was asked for."""

    name: str
    description: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class TaskRequest:
    """A task as it was asked for. ``generator``: the name of a meta-model, or "auto"."""

    classes: tuple[ClassRequest, ...]
    unlabeled: tuple[Image, ...] = ()
    generator: str = AUTO

    @property
    def labeled(self) -> list[Image]:
        """The images of the classes, class by class."""
        return [image for c in self.classes for image in c.images]

    @property
    def images(self) -> list[Image]:
        """All images, class by class, then the unlabelled ones."""
        return self.labeled + list(self.unlabeled)

    def fingerprint(self) -> str:
        """What makes two requests the same request, however they were written down."""
        texts = [part for c in self.classes for part in (c.name, c.description, str(len(c.images)))]
        return digest_of([self.generator, str(len(self.classes)), *texts, *(image.data for image in self.images)])


class Specified(NamedTuple):
    """A request's task and meta-model. ``looks``: of its images, where "auto" looked; ``repeats``: notes of those."""

    spec: TaskSpec
    meta_model: MetaModel
    looks: Looks | None
    repeats: tuple[str, ...]


@dataclass(frozen=True)
class Specifier:
    """Turns requests into tasks within the service's limits."""

    settings: Settings
    catalogue: Catalogue
    intake: Intake
    reader: DescriptionReader = field(default_factory=DescriptionReader)

    async def specify(self, request: TaskRequest) -> Specified:
        """The task and the meta-model it gets; raises ImpossibleTask, TooLarge or an image's error, located."""
        texts = self._texts(request)
        is_looked_at = request.generator == AUTO and request.labeled
        looks = await self.intake.looks(request.labeled) if is_looked_at else None
        evidence = _evidence(request, texts, looks.near_grey if looks else None)
        meta_model = self.catalogue.choose(request.generator, evidence)
        if request.generator == AUTO and not meta_model.manifest.accepts_unlabeled:
            request = replace(request, unlabeled=())
        _check_fits(texts, request, meta_model, self.max_classes(meta_model.manifest.max_classes))
        pixels = iter(await self.intake.pixels(request.images, meta_model.manifest.preprocess))
        classes = tuple(
            ClassSpec(text.name, text.description, tuple(next(pixels) for _ in asked.images))
            for text, asked in zip(texts.classes, request.classes, strict=True)
        )
        repeats = await asyncio.to_thread(check_images, classes, meta_model.manifest)
        return Specified(TaskSpec(classes, tuple(pixels)), meta_model, looks, repeats)

    async def notes(self, request: TaskRequest, found: Specified) -> tuple[str, ...]:
        """What the author should know of how the request was read; raises MissingEncoder."""
        notes: tuple[str, ...] = ()
        described = [Described(c.description, s) for c, s in zip(request.classes, found.spec.classes, strict=True)]
        if any(c.sent for c in described):
            notes = tuple(await asyncio.to_thread(self.reader.notes, described, found.meta_model.manifest))
        return (*notes, *found.repeats, *(self._notes_of_choice(request, found) if request.generator == AUTO else ()))

    def _notes_of_choice(self, request: TaskRequest, found: Specified) -> list[str]:
        """What "auto" left out or took for granted, and which generator would not have."""
        notes, meta_model = [], found.meta_model
        taken_for_drawings = meta_model.manifest.domain == "drawings" if request.labeled else None
        evidence = _evidence(request, found.spec, taken_for_drawings)
        if request.unlabeled and not meta_model.manifest.accepts_unlabeled:
            users = (m.name for m in self.catalogue.able(evidence) if m.manifest.accepts_unlabeled)
            remedy = f"; choose generator {name} to use them" if (name := next(users, None)) else ""
            notes.append(f"{meta_model.name} cannot use unlabelled images, so they were left out{remedy}.")
        others = self.catalogue.able(replace(evidence, near_grey=False)) if taken_for_drawings else []
        if others and found.looks and not found.looks.on_paper:
            remedy = f"if they are photographs, choose generator {others[0].name}"
            notes.append(f"The images have no colour, so they were taken for drawings; {remedy}.")
        return notes

    def _texts(self, request: TaskRequest) -> TaskSpec:
        """Names and descriptions in canonical form, once their number and lengths are checked."""
        limit = self.max_classes(self.catalogue.max_classes)
        n_classes = len(request.classes)
        if n_classes > limit:  # before their texts are looked at: there may be very many
            check_classes(TaskSpec((ClassSpec(""),) * n_classes), min_classes=MIN_CLASSES, max_classes=limit)
        for i, asked in enumerate(request.classes):
            self._check_class(asked, f"classes[{i}]")
        texts = TaskSpec(
            tuple(ClassSpec(canonical_text(c.name), canonical_text(c.description)) for c in request.classes)
        )
        check_classes(texts, min_classes=MIN_CLASSES, max_classes=limit)
        return texts

    def _check_class(self, asked: ClassRequest, where: str) -> None:
        limits = self.settings
        check_length(asked.name, limits.max_name_chars, f"{where}.name")
        check_length(asked.description, limits.max_description_chars, f"{where}.description")
        if len(asked.images) > limits.max_images_per_class:
            most = limits.max_images_per_class
            message = f"{len(asked.images)} images are over the limit of {most} a class; send fewer."
            raise TooLarge(message, where=f"{where}.images")

    def max_classes(self, most: int) -> int:
        """Of a task, where a meta-model takes ``most``: the service may have a lower limit."""
        return max(MIN_CLASSES, min(most, self.settings.max_classes or most))


def _evidence(request: TaskRequest, texts: TaskSpec, near_grey: bool | None) -> Evidence:
    return Evidence(
        n_classes=len(request.classes),
        n_shown=sum(bool(c.images) for c in request.classes),
        n_described=sum(bool(c.description) for c in texts.classes),
        n_images=len(request.labeled),
        n_unlabeled=len(request.unlabeled),
        near_grey=near_grey,
    )


def check_length(text: str, most: int, where: str) -> None:
    """Raise TooLarge where a text has more than ``most`` characters."""
    if len(text) > most:
        message = f"The text has {len(text):,} characters, over the limit of {most:,}; shorten it."
        raise TooLarge(message, where=where)


def _check_fits(texts: TaskSpec, request: TaskRequest, meta_model: MetaModel, max_classes: int) -> None:
    """Raise ImpossibleTask where this meta-model cannot make this classifier."""
    manifest = meta_model.manifest
    check_classes(texts, min_classes=manifest.min_classes, max_classes=max_classes)
    for i, asked in enumerate(request.classes):
        _check_evidence(texts.classes[i], len(asked.images), manifest, f"classes[{i}]")
    check_descriptions(texts.classes, [len(c.images) for c in request.classes])
    n_images = len(request.images)
    if n_images > manifest.max_images:
        message = f"{n_images} images are more than {manifest.name} takes ({manifest.max_images}); send fewer."
        raise ImpossibleTask(message, where="classes")
    if request.unlabeled and not manifest.accepts_unlabeled:
        raise ImpossibleTask(f"{manifest.name} takes no unlabelled images; leave them out.", where="unlabeled")


def _check_evidence(spec: ClassSpec, n_images: int, manifest: Manifest, where: str) -> None:
    """Raise ImpossibleTask where the meta-model can tell nothing of a class, or does not take what there is of it."""
    if n_images and not manifest.accepts_images:
        message = f"{manifest.name} reads descriptions only; leave the images out, or choose another `generator`."
        raise ImpossibleTask(message, where=f"{where}.images")
    if n_images:
        return
    if not manifest.accepts_descriptions:
        problem = f"has no image, and {manifest.name} does not take descriptions alone; add at least one image"
        raise ImpossibleTask(f"Class {spec.name!r} {problem}.", where=f"{where}.images")
    if not spec.description:
        problem = "has neither a description nor an image; say in a sentence what it looks like, or show it"
        raise ImpossibleTask(f"Class {spec.name!r} {problem}.", where=f"{where}.description")
