"""What a report is about, read from files: meta-models with their figures, run folders, and images.

A column is one entry of ``columns`` in an evaluation.json: one kind of task, measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import metamodel
from models.metamodel import MetaModel
from models.preprocess import PreprocessSpec
from training.card import column_name
from training.checkpoint import refuse_other_classes
from training.data import DATASETS, descriptions
from training.data.descriptions import ClassTexts
from training.data.folders import DataError, ImageSet, read_images

OWN_IMAGES = "own images"
COLUMN_KEYS = {"meta_model", "meta_model_digest", "shape", "accuracy", "data_digest"}


@dataclass(frozen=True)
class Column:
    """Figures of one kind of task on one set of images. ``facts``: the JSON; ``images``: their name."""

    facts: dict[str, Any]
    images: str

    @property
    def name(self) -> str:
        """The kind of task in words."""
        return column_name(self.facts)

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of an EpisodeShape."""
        shape: dict[str, Any] = self.facts["shape"]
        return shape

    def accuracy(self, name: str = "generated") -> str:
        """``mean ± interval`` in percent exactly as the file has them; empty where it has none."""
        figure = self.facts["accuracy"].get(name)
        if figure is None:
            return ""
        return f"{figure['mean']}" + ("" if math.isnan(figure["ci95"]) else f" ± {figure['ci95']}")


@dataclass(frozen=True)
class Subject:
    """A meta-model with its figures: those of its evaluation.json, then those measured on other images."""

    meta_model: MetaModel
    evaluation: dict[str, Any]
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """The meta-model's."""
        return self.meta_model.name

    @property
    def training(self) -> dict[str, Any]:
        """What the export says about the training; empty where the folder does not say."""
        training: dict[str, Any] = self.evaluation.get("training", {})
        return training

    @property
    def config(self) -> dict[str, Any]:
        """The training's configuration."""
        config: dict[str, Any] = self.training.get("config", {})
        return config

    @property
    def dataset(self) -> str:
        """The data set it was trained on."""
        return OWN_IMAGES if self.training.get("own_images") else str(self.config.get("dataset", ""))

    @property
    def channels(self) -> int | None:
        """Width of the network it writes, where that has one width."""
        channels: int | None = self.config.get("model", {}).get("channels")
        return channels


@dataclass(frozen=True)
class Run:
    """A folder of `training fit`: ``checkpoint.safetensors`` and ``log.jsonl``."""

    folder: Path


@dataclass
class Images:
    """Image sets to draw from, each read once: the user's, else the validation classes of a named data set."""

    given: Path | None = None
    _read: dict[tuple[str, PreprocessSpec], ImageSet] = field(default_factory=dict)

    def of(self, dataset: str, spec: PreprocessSpec) -> ImageSet:
        """Raises DataError where there are none."""
        key = ("" if self.given else dataset, spec)
        if key not in self._read:
            self._read[key] = self._load(dataset, spec)
        return self._read[key]

    def unseen_by(self, subject: Subject) -> ImageSet:
        """For a meta-model; also raises DataError where other classes than these were held out of its training."""
        images = self.of(subject.dataset, subject.meta_model.manifest.preprocess)
        if self.given is None:
            refuse_other_classes(subject.training, images)
        return images

    def _load(self, dataset: str, spec: PreprocessSpec) -> ImageSet:
        if self.given:
            return read_images(self.given, spec)
        if dataset not in DATASETS:
            raise DataError(
                "There are no images to write networks for; give a ZIP or folder of classes with `--images`."
            )
        return DATASETS[dataset].load("validation", size=spec.size)

    def texts_of(self, dataset: str) -> dict[str, ClassTexts]:
        """What is written about the same classes; raises DataError where nothing is."""
        return descriptions.of(dataset, self.given)


@dataclass(frozen=True)
class Options:
    """What to draw from: images, how many tasks the map of weights takes, and the seed of everything random."""

    images: Images
    n_tasks: int = 240
    seed: int = 0


def read_subjects(zoo: Path, columns: Sequence[Path]) -> list[Subject]:
    """The meta-models of a folder (or the one that it is), by data set and width, each with its share of ``columns``.

    Raises DataError where there is no such folder, or a file of figures can't be read or belongs to none of them, and
    InvalidMetaModel.
    """
    if not zoo.is_dir():
        raise DataError(f"{zoo} is not a folder of meta-models; `training export` makes one.")
    single = (zoo / "manifest.json").is_file()
    found = [metamodel.load(zoo)] if single else list(metamodel.load_all(zoo).values())
    further = [_read_column(path, {model.digest for model in found}) for path in columns]
    subjects = [_subject(model, further) for model in found]
    return sorted(subjects, key=lambda subject: (subject.dataset, subject.channels or 0, subject.name))


def read_log(run: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a run's log in the order of their steps; of steps repeated after a resume, the last.

    Raises DataError where it is no log, or has a line without one of ``fields``.
    """
    path = run / "log.jsonl"
    try:
        entries = {entry["step"]: entry for entry in map(json.loads, path.read_text().splitlines())}
        missing = {name for entry in entries.values() for name in fields if name not in entry}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a log of `training fit` ({error}).") from error
    if missing:
        raise DataError(f"{path} is not a log of `training fit` (it lacks {', '.join(sorted(missing))}).")
    if not entries:
        raise DataError(f"{path} is still empty; its first line comes with the first validation.")
    return [entries[step] for step in sorted(entries)]


def _subject(meta_model: MetaModel, further: Sequence[Column]) -> Subject:
    path = meta_model.folder / "evaluation.json"
    evaluation = _read_json(path) if path.is_file() else {}
    dataset = str(evaluation.get("training", {}).get("config", {}).get("dataset", ""))
    columns = [Column(facts, dataset) for facts in evaluation.get("columns", [])]
    columns += [column for column in further if column.facts["meta_model_digest"] == meta_model.digest]
    return Subject(meta_model, evaluation, tuple(columns))


def _read_column(path: Path, digests: set[str]) -> Column:
    facts = _read_json(path)
    if not set(facts) >= COLUMN_KEYS:
        raise DataError(f"{path} holds no figures; `training evaluate META_MODEL --images ... --out FILE` writes some.")
    if facts["meta_model_digest"] not in digests:
        raise DataError(f"{path} was measured on another export of {facts['meta_model']}; evaluate again.")
    return Column(facts, OWN_IMAGES)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON ({error}); `training evaluate` writes it.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object; `training evaluate` writes one.")
    return value
