"""The classifier that ``fit`` gets: made and run in this process, or by a service. Both answer alike.

In this process the parts of the service itself do the work, so that checks, choice of meta-model and pixels are the
same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.bundle import decode, encode
from models.errors import ClassmithError
from models.generator import OnnxGenerator
from models.graph import INPUT, PROBABILITIES, self_contained
from models.metamodel import MetaModel
from models.preprocess import PreprocessSpec, to_pixels
from models.runtime import make_session
from models.task import TaskSpec
from models.text import Encoders
from service.catalogue import Catalogue, read_catalogue
from service.client import Classmith
from service.images import Image, Intake
from service.requests import ClassRequest, Specifier, TaskRequest
from service.settings import Settings, read_settings

NO_LIMIT = 10**9
BATCH = 256
Specified = tuple[TaskSpec, MetaModel, tuple[str, ...]]


@dataclass(frozen=True)
class Shown:
    """A class as a generator is shown it."""

    name: str
    description: str
    images: tuple[bytes, ...]


class Network(Protocol):
    """A fitted classifier."""

    @property
    def meta_model(self) -> str:
        """The one that wrote it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of how the descriptions were read."""

    def probabilities(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        """Encoded images -> ``(N, K)``, classes in the order they were given; rows sum to 1."""


@dataclass
class LocalNetwork:
    """A classifier in this process: an ONNX file by itself, which pickles, and which nothing else is needed to run."""

    onnx: bytes
    meta_model: str
    preprocess: PreprocessSpec
    abstain_below: float
    notes: tuple[str, ...]
    _session: ort.InferenceSession | None = field(default=None, init=False, repr=False, compare=False)

    def probabilities(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        """Some images at a time; raises ValueError, which names the sample at fault."""
        if self._session is None:
            self._session = make_session(self.onnx, {})
        numbered = list(enumerate(images))
        batches = [numbered[i : i + BATCH] for i in range(0, len(images), BATCH)]
        found = [self._session.run([PROBABILITIES], {INPUT: self._pixels(batch)})[0] for batch in batches]
        return _normalised(np.concatenate(found))

    def __getstate__(self) -> dict[str, Any]:
        """All but the session, which is made again."""
        return self.__dict__ | {"_session": None}

    def _pixels(self, numbered: Sequence[tuple[int, bytes]]) -> NDArray[np.uint8]:
        return np.stack([_decoded(image, number, self.preprocess) for number, image in numbered])


@dataclass(frozen=True)
class RemoteNetwork:
    """A task of a service."""

    url: str
    api_key: str | None = field(repr=False)
    task_id: str
    meta_model: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    def probabilities(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        """By the service; raises the client's errors."""
        with Classmith(self.url, self.api_key) as client:
            found = client.task(self.task_id).predict(images)
        return _normalised(np.array([[answer.probabilities[name] for name in self.class_names] for answer in found]))


def fit_remotely(classes: Sequence[Shown], meta_model: str, url: str, api_key: str | None) -> RemoteNetwork:
    """The task of these classes at a service; raises the client's errors."""
    body = {c.name: {"description": c.description, "images": c.images} for c in classes}
    with Classmith(url, api_key) as client:
        task = client.create(body, meta_model=meta_model)
    return RemoteNetwork(url, api_key, task.id, task.info.meta_model, task.info.class_names, task.info.notes)


def fit_here(classes: Sequence[Shown], meta_model: str, folder: Path) -> LocalNetwork:
    """Written by a meta-model of a folder, in this process; raises ValueError in the service's words."""
    images = tuple(tuple(Image("X", data) for data in c.images) for c in classes)
    asked = TaskRequest(
        tuple(ClassRequest(c.name, c.description, shown) for c, shown in zip(classes, images, strict=True)),
        generator=meta_model,
    )
    try:
        spec, chosen, notes = _in_a_thread(asked, folder)
        bundle = decode(encode(_generator().generate(chosen, spec)))  # weights as they are stored: float16
    except ClassmithError as error:
        raise ValueError(error.message) from error
    onnx = self_contained(chosen, bundle.header, bundle.tensors)
    return LocalNetwork(onnx, chosen.name, chosen.manifest.preprocess, bundle.header.abstain_below, notes)


def _in_a_thread(asked: TaskRequest, folder: Path) -> Specified:
    """The service's own checks run in an event loop of their own: a notebook has one already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(_specify(asked, folder))).result()


async def _specify(asked: TaskRequest, folder: Path) -> Specified:
    settings = Settings.model_construct(max_images_per_class=NO_LIMIT, max_description_chars=NO_LIMIT)
    intake = Intake(n_threads=2, max_pixels=settings.max_image_pixels, max_queue=NO_LIMIT)
    try:
        specifier = Specifier(settings, _catalogue(folder), intake)
        found = await specifier.specify(asked)
        return found.spec, found.meta_model, await specifier.notes(asked, found)
    finally:
        intake.close()


@cache
def _catalogue(folder: Path) -> Catalogue:
    return read_catalogue(folder)


@cache
def _generator() -> OnnxGenerator:
    """One for the process: it keeps the meta-models' sessions."""
    settings = read_settings()
    return OnnxGenerator(encoders=Encoders(settings.text_encoder, download=settings.download_encoder))


def _decoded(image: bytes, number: int, spec: PreprocessSpec) -> NDArray[np.uint8]:
    try:
        return to_pixels(image, spec)
    except ClassmithError as error:
        raise ValueError(f"Sample {number}: {error.message}") from error


def _normalised(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """In double precision, so that rows sum to 1: answers come rounded."""
    found = np.asarray(probabilities, dtype=np.float64)
    total: NDArray[np.float64] = found / found.sum(axis=1, keepdims=True)
    return total
