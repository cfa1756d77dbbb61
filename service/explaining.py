"""Explanations of decisions: what in the image and in the words carried them, and how far a task changed the network.

One at a time, in a thread of their own, so that they never take a runner from predictions; few may wait, and tenants
take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import onnxruntime as ort

from models.bundle import Bundle
from models.errors import Busy, ClassmithError, Conflict, GenerationFailed, InvalidMetaModel, MissingEncoder
from models.explain import (
    Array,
    Decided,
    LayerChange,
    decide_with_gradients,
    in_frame,
    relative_changes,
    saliency,
    token_weights,
)
from models.explain_words import WORDS_GRADIENT, make_words_session
from models.feeds import text_of
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.preprocess import decode, fit_pixels
from models.task import ClassSpec, TaskSpec, canonical_order, decode_recipe
from models.text import Encoders, TextEncoder
from service.backpressure import jittered
from service.fair_pool import FairPool, Result
from service.observability.telemetry import Metrics
from service.prediction.loading import Loader, unknown_task

MAX_WAITING = 8
TYPICAL_EXPLAIN_S = 0.5


@dataclass(frozen=True)
class WordWeight:
    """Characters ``start`` to ``end`` of a description, and what they carried: positive for the predicted class."""

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Saliency:
    """What each cell of the whole image carried, row by row; zero where the network did not look."""

    width: int
    height: int
    values: list[list[float]]


@dataclass(frozen=True)
class Explanation:
    """Why an image got its label. ``words`` by class, None where none were weighed; ``notes`` say what is left out."""

    label: str
    probability: float
    words: dict[str, list[WordWeight]] | None
    saliency: Saliency | None
    notes: list[str]


class Explainer:
    """Explains decisions of tasks that are ready. ``generator`` and ``encoders``: those that tasks are made with."""

    def __init__(
        self, loader: Loader, generator: OnnxGenerator, encoders: Encoders, *, max_pixels: int, metrics: Metrics
    ) -> None:
        self._loader, self._generator, self._encoders = loader, generator, encoders
        self._max_pixels, self._shed = max_pixels, metrics.shed.labels("explain_queue_full")
        self._pool = FairPool(1, "classmith-explain")
        self._explain_s = TYPICAL_EXPLAIN_S
        self._words_sessions: dict[str, ort.InferenceSession] = {}

    def close(self) -> None:
        """Let the explanation being made end."""
        self._pool.shutdown()

    async def explain(self, tenant: str, task_id: str, image: bytes) -> Explanation:
        """Why an encoded image is classified as it is.

        Raises Busy where MAX_WAITING wait already (of which each tenant has a share), Conflict where the network's
        gradient is not known, and what reading the image or the task raises.
        """
        return await self._in_turn(tenant, lambda: self._explain(tenant, task_id, image))

    async def changes(self, tenant: str, task_id: str) -> list[LayerChange]:
        """How far the task changed each layer that it adapts."""
        return await self._in_turn(tenant, lambda: self._changes(tenant, task_id))

    async def _in_turn(self, tenant: str, work: Callable[[], Result]) -> Result:
        if not self._pool.has_room(tenant, MAX_WAITING):
            self._shed.inc()
            wait_s = jittered(self._pool.n_work * self._explain_s)
            raise Busy("Too many explanations are asked for; try again in a moment.", retry_after_s=wait_s)
        return await self._pool.run(tenant, work)

    def _explain(self, tenant: str, task_id: str, image: bytes) -> Explanation:
        began_at = perf_counter()
        meta_model, bundle = self._classifier(tenant, task_id)
        spec = self._spec(tenant, task_id)
        preprocess = meta_model.manifest.preprocess
        try:
            upright = decode(image, preprocess, max_pixels=self._max_pixels)
        except ClassmithError as error:
            raise error.at("images[0]") from error
        pixels = fit_pixels(upright, preprocess)
        notes = _unreadable(meta_model, spec)
        try:
            decided = decide_with_gradients(meta_model, bundle, pixels, of_bundle=not notes)
        except InvalidMetaModel as error:
            raise Conflict(f"The classifiers of {meta_model.name} cannot be explained. {error.message}") from error
        words = None if notes else self._words(meta_model, spec, decided, notes)
        framed = in_frame(saliency(decided.pixels, pixels), upright.size, preprocess.fit)
        self._explain_s = 0.8 * self._explain_s + 0.2 * (perf_counter() - began_at)
        label = spec.class_names[decided.predicted]
        return Explanation(label, decided.probability, words, _saliency(framed), notes)

    def _changes(self, tenant: str, task_id: str) -> list[LayerChange]:
        meta_model, bundle = self._classifier(tenant, task_id)
        return relative_changes(meta_model, bundle.tensors)

    def _classifier(self, tenant: str, task_id: str) -> tuple[MetaModel, Bundle]:
        record = self._loader.record(tenant, task_id)
        return self._loader.catalogue.get(record.meta_model), self._loader.bundle(record)

    def _spec(self, tenant: str, task_id: str) -> TaskSpec:
        recipe = self._loader.store.recipe(tenant, task_id)
        if recipe is None:
            raise unknown_task(task_id)
        return decode_recipe(recipe)

    def _words(
        self, meta_model: MetaModel, spec: TaskSpec, decided: Decided, notes: list[str]
    ) -> dict[str, list[WordWeight]] | None:
        """What each word of each description carried; None, and a note, where the text encoder is not to be had."""
        order, name = canonical_order(spec), meta_model.manifest.text_encoder
        assert name is not None, "Manifest checks it"
        try:
            encoder = self._encoders.get(name)
            feeds = self._generator.feeds(meta_model, spec, order)
        except (MissingEncoder, GenerationFailed) as error:
            notes.append(f"Words are not weighed: {error.message}")
            return None
        session = self._words_session(meta_model)
        weights = token_weights(session, meta_model.manifest, feeds, decided.bundle, order)
        if any(encoder.is_truncated(text_of(c)) for c in spec.classes):
            notes.append("Words beyond what the text encoder reads carried nothing, and are not marked.")
        return {c.name: _of_class(c, weights[k], encoder) for k, c in enumerate(spec.classes)}

    def _words_session(self, meta_model: MetaModel) -> ort.InferenceSession:
        if meta_model.digest not in self._words_sessions:
            files = (meta_model.read(WORDS_GRADIENT), meta_model.read("generator.onnx"))
            self._words_sessions[meta_model.digest] = make_words_session(*files)
        return self._words_sessions[meta_model.digest]


def _unreadable(meta_model: MetaModel, spec: TaskSpec) -> list[str]:
    """Why no words can be weighed, or nothing."""
    if not any(c.description for c in spec.classes):
        return ["This task has no descriptions, so there are no words to weigh."]
    if not meta_model.manifest.accepts_descriptions:
        return [f"The meta-model {meta_model.name} reads images only, so there are no words to weigh."]
    if not meta_model.has(WORDS_GRADIENT):
        remedy = "export it again with `training export` and create the task again to have them"
        return [f"The meta-model {meta_model.name} was exported without the gradient of its words; {remedy}."]
    return []


def _of_class(spec: ClassSpec, weights: Array, encoder: TextEncoder) -> list[WordWeight]:
    """The words of a class's description; those of its name, which come before it, and punctuation are left out."""
    text = text_of(spec)
    offset, found = len(text) - len(spec.description), []
    for word in encoder.words(text) if spec.description else ():
        written = text[word.start : word.end]
        if word.start >= offset and any(ch.isalnum() for ch in written):
            weight = float(weights[list(word.tokens)].sum())
            found.append(WordWeight(written, word.start - offset, word.end - offset, _short(weight)))
    return found


def _saliency(cells: Array) -> Saliency:
    rows = [[_short(value) for value in row] for row in cells.tolist()]
    return Saliency(len(rows[0]), len(rows), rows)


def _short(value: float) -> float:
    """Four digits are enough to draw."""
    return float(f"{value:.4g}")
