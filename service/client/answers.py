"""What the service answers, as frozen dataclasses. Members that a newer service adds stay in ``document``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

from service.client.errors import GENERATION_FAILED, Problem, TaskFailed

State = Literal["queued", "generating", "ready", "failed"]
Json = dict[str, Any]
Names: TypeAlias = Mapping[str, str]
"""A class's name as the service keeps it -> as it was given, where these differ (Unicode's NFC, white space)."""


@dataclass(frozen=True)
class ClassInfo:
    """A class of a task."""

    name: str
    description: str
    n_images: int


@dataclass(frozen=True)
class TaskInfo:
    """A task as the service shows it. ``bytes``: size of its written weights; ``error``: why it failed.

    ``notes``: what the service has to say about how it was made. ``document``: the answer as it came.
    """

    id: str
    state: State
    classes: tuple[ClassInfo, ...]
    n_unlabeled: int
    meta_model: str
    created_at: datetime
    generate_ms: float | None
    bytes: int | None
    error: str | None
    notes: tuple[str, ...] = ()
    document: Json = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_finished(self) -> bool:
        """Nothing changes any more: it is ready, or it failed."""
        return self.state in ("ready", "failed")

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the task."""
        return tuple(c.name for c in self.classes)

    def checked(self) -> TaskInfo:
        """Itself; raises TaskFailed where it failed."""
        if self.state != "failed":
            return self
        detail = f"{self.error} The task is kept as {self.id}; the same request tries again."
        raise TaskFailed(Problem(GENERATION_FAILED, "Generation failed", 500, detail))


@dataclass(frozen=True)
class MetaModelInfo:
    """What ``create`` may name as ``meta_model``. ``max_images``: of a task; ``document``: the answer as it came."""

    name: str
    summary: str
    domain: str
    min_classes: int
    max_classes: int
    max_images: int
    accepts_images: bool
    accepts_descriptions: bool
    accepts_unlabeled: bool
    document: Json = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. ``probabilities``: best first; ``abstain``: the classifier does not know."""

    label: str
    probability: float
    probabilities: dict[str, float]
    abstain: bool


def task_info(document: Json) -> TaskInfo:
    """A task from its JSON."""
    return TaskInfo(
        id=document["id"],
        state=document["state"],
        classes=tuple(ClassInfo(c["name"], c["description"], c["n_images"]) for c in document["classes"]),
        n_unlabeled=document["n_unlabeled"],
        meta_model=document["meta_model"],
        created_at=datetime.fromisoformat(document["created_at"]),
        generate_ms=document["generate_ms"],
        bytes=document["bytes"],
        error=document["error"],
        notes=tuple(map(str, document.get("notes") or ())),
        document=document,
    )


def page(document: Json) -> tuple[list[TaskInfo], str | None]:
    """A page of tasks, and where the next begins: None after the last.

    Of the next one's address only this counts: a proxy may change the path.
    """
    onward = document["next"]
    after = None if onward is None else parse_qs(urlsplit(onward).query)["after"][0]
    return [task_info(shown) for shown in document["tasks"]], after


def meta_models(document: Json) -> list[MetaModelInfo]:
    """The meta-models from their JSON."""
    names = [f.name for f in fields(MetaModelInfo) if f.name != "document"]
    return [MetaModelInfo(**{name: m[name] for name in names}, document=m) for m in document["meta_models"]]


def names_given(names: Iterable[str], info: TaskInfo) -> Names:
    """The names that come back changed: a task has its classes in the order in which they were given."""
    return {kept: name for kept, name in zip(info.class_names, names, strict=False) if kept != name}


def predictions(document: Json, names: Names) -> list[Prediction]:
    """The answers in the order of the images sent."""
    return [
        Prediction(
            names.get(found["label"], found["label"]),
            found["probability"],
            _renamed(found["probabilities"], names),
            found["abstain"],
        )
        for found in document["predictions"]
    ]


def explanation(document: Json, names: Names) -> Json:
    """What the service says of a decision."""
    if not names:
        return document
    label, words = document["label"], document["words"]
    return {**document, "label": names.get(label, label), "words": words and _renamed(words, names)}


def layers(document: Json) -> list[Json]:
    """The layers that a task adapts, from the image on."""
    found: list[Json] = document["layers"]
    return found


def _renamed(by_class: Json, names: Names) -> Json:
    return {names.get(name, name): value for name, value in by_class.items()} if names else by_class
