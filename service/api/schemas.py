"""What travels as JSON: the requests that are checked against these shapes, and the answers that have them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from models.metamodel import Domain
from service.ports import State, TaskRecord

Base64 = Annotated[str, Field(description="A JPEG, PNG or WebP file in base64.", json_schema_extra={"format": "byte"})]


class _Request(BaseModel):
    """Unknown members are refused: a misspelt one would otherwise be ignored in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassIn(_Request):
    """One class of a task: a name, and support images or a description or both."""

    name: str
    description: str = ""
    images: list[Base64] = []


class TaskIn(_Request):
    """A task as JSON. ``unlabeled``: images of these classes, without saying of which."""

    classes: list[ClassIn]
    unlabeled: list[Base64] = []
    generator: str = Field("auto", description="The name of a meta-model, or `auto`.")


class DescribedClassIn(_Request):
    """One class in the ``task`` part of a multipart request; its images are file parts."""

    name: str
    description: str = ""


class TaskPartIn(_Request):
    """The optional JSON part ``task`` of a multipart request: descriptions, the order of classes, the generator."""

    classes: list[DescribedClassIn] = []
    generator: str = "auto"


class PredictIn(_Request):
    """Images to classify, as JSON."""

    images: list[Base64]


class ClassOut(BaseModel):
    """A class of a stored task."""

    name: str
    description: str
    n_images: int


class TaskOut(BaseModel):
    """A stored task. ``bytes``: size of its generated weights; ``error``: why it failed.

    ``notes``: what to know of how it was read, e.g. that a description was longer than the text encoder takes.
    """

    id: str
    state: State
    classes: list[ClassOut]
    n_unlabeled: int
    meta_model: str
    created_at: datetime
    generate_ms: float | None
    bytes: int | None
    error: str | None
    notes: list[str]


class TaskListOut(BaseModel):
    """One page of tasks, newest first; ``next`` is the address of the page after it."""

    tasks: list[TaskOut]
    next: str | None


class MetaModelOut(BaseModel):
    """What `generator` may name. ``image_size``: pixels a side that its networks see; ``max_images``: of a task."""

    name: str
    digest: str
    summary: str
    domain: Domain
    image_size: int
    min_classes: int
    max_classes: int
    max_images: int
    accepts_images: bool
    accepts_descriptions: bool
    accepts_unlabeled: bool


class MetaModelListOut(BaseModel):
    """All meta-models, in the order of their names."""

    meta_models: list[MetaModelOut]


class PredictionOut(BaseModel):
    """The answer for one image. ``abstain``: the classifier does not know; take a person's answer."""

    label: str
    probability: float
    probabilities: dict[str, float]
    abstain: bool


class PredictionsOut(BaseModel):
    """Answers in the order of the images sent."""

    predictions: list[PredictionOut]


class WordOut(BaseModel):
    """A word of a description, from character ``start`` to ``end``; ``weight``: positive for the predicted class."""

    text: str
    start: int
    end: int
    weight: float


class SaliencyOut(BaseModel):
    """Cells over the whole upright image, row by row; positive for the predicted class."""

    width: int
    height: int
    values: list[list[float]]


class ExplanationOut(BaseModel):
    """What carried a decision. ``words`` by class, null without descriptions; ``notes``: what is left out, and why."""

    label: str
    probability: float
    words: dict[str, list[WordOut]] | None
    saliency: SaliencyOut | None
    notes: list[str]


class LayerOut(BaseModel):
    """``relative_change``: the norm of what the task added to the layer's weight, over that of the weight before."""

    name: str
    type: str
    relative_change: float


class AdaptationOut(BaseModel):
    """The layers that a task adapts, from the image on; none where it makes its classification layer alone."""

    layers: list[LayerOut]


class LocatedOut(BaseModel):
    """A part of the request, e.g. ``classes[2].images[0]``, and what is wrong with it."""

    where: str
    detail: str


class ProblemOut(BaseModel):
    """An RFC 9457 problem document; ``detail`` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[LocatedOut] = []


def task_out(record: TaskRecord) -> TaskOut:
    """A record as it is shown to clients (the tenant stays here)."""
    return TaskOut(
        id=record.id,
        state=record.state,
        classes=[ClassOut(name=c.name, description=c.description, n_images=c.n_images) for c in record.classes],
        n_unlabeled=record.n_unlabeled,
        meta_model=record.meta_model,
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        generate_ms=None if record.generate_ms is None else round(record.generate_ms, 3),
        bytes=record.bytes,
        error=record.error,
        notes=list(record.notes),
    )
