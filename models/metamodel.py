"""The meta-model folder: what `training export` writes and the service loads.

    manifest.json      what it takes, what it writes, the digest of every file the service uses; written last
    generator.onnx     support images, or token embeddings and features -> the task's tensors
    words_gradient.onnx    optional, of those that read descriptions: what the words of a task carried
    skeleton.onnx      the target network with external weights
    base.safetensors   the weights all its tasks share (may be empty)
    evaluation.json    figures by the protocol;  CARD.md is rendered from it (neither changes the digest)

A folder is loaded only when every file is there and has its digest: a half-written or altered one is refused. So is a
file that was changed later, when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.numpy import load as load_safetensors

from models.decision import temperature_of
from models.errors import InvalidMetaModel, Unavailable
from models.preprocess import PreprocessSpec

FORMAT_VERSION: Final = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"
Domain = Literal["drawings", "photographs"]
ZOO = Path(__file__).parent / "zoo"
CODES, BASIS, GAMMA = ".codes", ".basis", ".gamma"
HEAD = ("logits.weight", "logits.bias")
N_CLASSES = "n_classes"
"""Stands for the number of classes of a task in the shape of a written tensor."""


class TensorSpec(BaseModel):
    """A tensor of a task's network or bundle: its shape, and where it comes from.

    "bundle": written for the task. "base": shared by all tasks. "adapted": the base's times the layer's gamma, plus the
    task's codes for the layer ``(O, R)`` times the base's basis for it ``(R, I)`` (``X``, ``LAYER.gamma`` and
    ``X.basis`` in base.safetensors, ``LAYER.codes`` in the bundle).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: tuple[int | Literal["n_classes"], ...]
    source: Literal["bundle", "base", "adapted"]

    def shape_for(self, n_classes: int) -> tuple[int, ...]:
        """The shape in a task of ``n_classes``."""
        return tuple(n_classes if d == N_CLASSES else int(d) for d in self.shape)


class Manifest(BaseModel):
    """What a meta-model is; see the module's docstring for the files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = FORMAT_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    method: str
    summary: str
    domain: Domain
    preprocess: PreprocessSpec
    min_classes: int = 2
    max_classes: int
    max_images: int
    """Most support and unlabelled images together that one forward pass takes."""
    accepts_unlabeled: bool
    accepts_images: bool = True
    """Whether classes may have support images."""
    accepts_descriptions: bool = False
    """Whether classes may have a description instead of images, or beside them."""
    text_encoder: str | None = None
    """The encoder (``models.text``) that reads its descriptions."""
    refinement: float | None = Field(default=None, gt=0)
    """How much the written logits count where the classification layer is fitted to the images (``models.refine``)."""
    unlabeled_sharpness: float | None = Field(default=None, gt=0)
    """How sharply unlabelled images are told apart where they move the logits layer (``models.unlabeled``)."""
    mirrored_support: bool = False
    shifted_support: int = Field(default=0, ge=0)
    """How its generator sees each support image beside as it is (``models.views``)."""
    temperature: float = Field(gt=0)
    """Of the logits of two classes without images (``temperature_for``)."""
    temperature_by_images: float = Field(default=0.0, ge=-1, le=1)
    temperature_by_classes: float = Field(default=0.0, ge=-1, le=1)
    abstain_below: float = Field(ge=0, le=1)
    tensors: dict[str, TensorSpec]
    files: dict[str, str]
    """File name -> SHA-256."""

    @property
    def adapts_layers(self) -> bool:
        """Whether a task changes layers that all tasks share, beside what it writes whole."""
        return any(spec.source == "adapted" for spec in self.tensors.values())

    def temperature_for(self, n_classes: int, n_images: int) -> float:
        """The temperature of a task's logits, by its numbers of classes and of support images."""
        return temperature_of(
            n_classes,
            n_images,
            temperature=self.temperature,
            by_images=self.temperature_by_images,
            by_classes=self.temperature_by_classes,
        )

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if not (self.accepts_images or self.accepts_descriptions):
            raise ValueError("it accepts neither images nor descriptions")
        if self.accepts_descriptions != (self.text_encoder is not None):
            raise ValueError("text_encoder goes with accepts_descriptions")
        if self.unlabeled_sharpness is not None and not self.accepts_unlabeled:
            raise ValueError("unlabeled_sharpness is for those that accept unlabelled images")
        if self.refinement is not None and not self.accepts_descriptions:
            raise ValueError("refinement is for those that read features of images beside descriptions")
        return self


@dataclass(frozen=True)
class MetaModel:
    """A verified meta-model folder."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest, and so of every file it names; part of every task id."""

    @property
    def name(self) -> str:
        """By which users choose it; the name of its folder."""
        return self.manifest.name

    @cached_property
    def base(self) -> dict[str, NDArray[np.float32]]:
        """The shared weights, float32."""
        tensors = load_safetensors(self.read("base.safetensors"))
        return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

    def weights(self, tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Every external weight of the skeleton for the task that has these written tensors."""
        specs = {name: spec for name, spec in self.manifest.tensors.items() if not name.endswith(CODES)}
        supply = {"bundle": tensors.__getitem__, "base": self.base.__getitem__}
        return {
            name: self._adapted(name, tensors) if spec.source == "adapted" else supply[spec.source](name)
            for name, spec in specs.items()
        }

    def weights_before_tasks(self) -> dict[str, NDArray[np.generic]]:
        """Every external weight of the skeleton for ``min_classes``: the base as it is, zeros where a task writes."""
        return {
            name: np.zeros(spec.shape_for(self.manifest.min_classes), np.float32)
            if spec.source == "bundle"
            else self.base[name]
            for name, spec in self.manifest.tensors.items()
            if not name.endswith(CODES)
        }

    def _adapted(self, name: str, tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        layer, own = name.rpartition(".")[0], self.base[name]
        codes = np.asarray(tensors[layer + CODES], np.float32)
        difference: NDArray[np.float32] = (codes @ self.base[name + BASIS]).reshape(own.shape)
        return self.base[layer + GAMMA] * own + difference

    def has(self, file: str) -> bool:
        """Whether it has an optional file."""
        return file in self.manifest.files

    def read(self, file: str) -> bytes:
        """One of its files, whole; raises Unavailable where it is no longer the one that was loaded."""
        expected = self.manifest.files.get(file)
        try:
            data = (self.folder / file).read_bytes()
        except OSError:
            data = None
        if data is None or (expected and _sha256(data) != expected):
            changed = f"{file} of {self.name} was changed since it was loaded (exported again, perhaps)"
            raise Unavailable(f"{changed}; restart the service, or put that version back.")
        return data


def load(folder: Path) -> MetaModel:
    """Load and verify one folder; raises InvalidMetaModel with what is wrong and what to do."""
    try:
        return _verified(folder)
    except OSError as error:
        why = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise InvalidMetaModel(f"{folder} ({why}); let this user read it, or move it elsewhere.") from error


def _verified(folder: Path) -> MetaModel:
    path = folder / "manifest.json"
    if not path.is_file():
        raise InvalidMetaModel(
            f"{folder} has no manifest.json: it is not a meta-model, or was only half written; export it again."
        )
    raw = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise InvalidMetaModel(
            f"{path} is not a manifest of format {FORMAT_VERSION} ({where}: {first['msg']}); export it again."
        ) from error
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise InvalidMetaModel(
                f"{folder} lacks {name}: it was only half written or copied; export or copy it again."
            )
        if _sha256(file.read_bytes()) != expected:
            raise InvalidMetaModel(
                f"{file} was changed after the export (its digest differs); export or copy it again."
            )
    return MetaModel(folder, manifest, _sha256(raw))


def load_all(folder: Path) -> dict[str, MetaModel]:
    """Every meta-model below a folder, by name, in the order of their names; hidden folders are work in progress."""
    paths = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [load(path) for path in paths if not path.name.startswith((".", "_"))]
    return {model.name: model for model in found}


def write(
    folder: Path, manifest: Manifest, files: dict[str, bytes], *, beside: Mapping[str, bytes] | None = None
) -> MetaModel:
    """Write a folder so that it appears whole or not at all; ``manifest.files`` is filled in here.

    ``beside``: files about it, which do not change the digest. Whatever else the folder held is gone.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in [*files.items(), *(beside or {}).items()]:
            (staging / name).write_bytes(data)
        whole = manifest.model_copy(update={"files": {name: _sha256(data) for name, data in sorted(files.items())}})
        (staging / "manifest.json").write_text(json.dumps(whole.model_dump(mode="json"), indent=1) + "\n")
        staging.chmod(0o755)
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load(folder)


def remove(meta_model: MetaModel) -> None:
    """Delete the folder."""
    shutil.rmtree(meta_model.folder)


def _swap(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder``; what was there ends up in its place, or stays if that fails."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    old = staging.with_name(f"{staging.name}-old")
    os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
