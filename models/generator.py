"""The generator of a meta-model in ONNX Runtime: a task in, its written weights out, in one forward pass.

Shapes: S images (support, then unlabelled), K classes, H W C pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.bundle import Bundle, BundleHeader
from models.errors import GenerationFailed, MissingEncoder, Unavailable
from models.feeds import Rows, feature_feeds, token_feeds
from models.graph import FEATURES, INPUT, skeleton_for
from models.metamodel import CODES, HEAD, N_CLASSES, Manifest, MetaModel
from models.refine import refine
from models.runtime import make_session, run
from models.task import Pixels, TaskSpec, canonical_order
from models.text import Encoders
from models.unlabeled import absorb
from models.views import views_of

Weights = dict[str, NDArray[np.generic]]
Codes = Mapping[str, NDArray[np.float32]]
FLOAT16_MAX = float(np.finfo(np.float16).max)
MAX_RUN_IMAGES = 64


class OnnxGenerator:
    """Runs the ``generator.onnx`` of any meta-model; its session is made once, by ``prepare`` or a first task.

    ``encoders``: of the descriptions, for the meta-models that read them.
    """

    def __init__(
        self, *, providers: Sequence[str] | None = None, n_threads: int = 1, encoders: Encoders | None = None
    ) -> None:
        self._providers = providers
        self._n_threads = n_threads
        self._encoders = encoders or Encoders()
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def generate(self, meta_model: MetaModel, spec: TaskSpec, *, codes: Codes | None = None) -> Bundle:
        """One task's bundle, class rows in the order of ``spec``; raises GenerationFailed.

        ``codes``: of layers, in place of those that are written for the task; where empty, no layer is adapted but the
        classification layer. The network sees classes in canonical order and the images of a class sorted by their
        bytes, so that listing either in another order changes no weight: permuting the classes permutes the answers,
        exactly.
        """
        manifest = meta_model.manifest
        _check(spec, manifest)
        order = canonical_order(spec)
        try:
            written = self._written(meta_model, spec, order, codes)
        except Unavailable as error:  # files that were changed: no wait helps, while this process runs
            raise GenerationFailed(error.message) from error
        tensors = {
            name: _in_user_order(tensor, order) if _has_class_rows(manifest, name) else tensor
            for name, tensor in written.items()
        }
        _check_finite(tensors, manifest)
        return Bundle(_header(meta_model, spec), tensors)

    def prepare(self, meta_model: MetaModel) -> None:
        """Make the session of a meta-model now, so that its first task does not wait for it."""
        self._session(meta_model)

    def feeds(self, meta_model: MetaModel, spec: TaskSpec, order: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The inputs of ``generator.onnx`` for a task, its classes in ``order``.

        Raises GenerationFailed, and Unavailable where the meta-model's files were changed.
        """
        if meta_model.manifest.accepts_descriptions:
            return {**self._described(meta_model, spec, order)}
        support, labels = _support(spec, order, unlabeled_slot=meta_model.manifest.max_classes)
        return {"support": support, "labels": labels, "slots": np.arange(len(order), dtype=np.int64)}

    def _written(
        self, meta_model: MetaModel, spec: TaskSpec, order: Sequence[int], codes: Codes | None
    ) -> dict[str, NDArray[np.float32]]:
        """What the network writes for a task's classes in ``order``, ``codes`` in their place."""
        manifest = meta_model.manifest
        feeds = self.feeds(meta_model, spec, order)
        names = [name for name, tensor in manifest.tensors.items() if tensor.source == "bundle"]
        try:
            outputs = self._session(meta_model).run(names, feeds)
        except Unavailable:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            remedy = "check the service's log and memory, and that the meta-model is whole"
            raise GenerationFailed(f"The generator of {manifest.name} failed ({error}); {remedy}.") from error
        written = dict(zip(names, outputs, strict=True))
        if codes is not None:
            written = {name: tensor for name, tensor in written.items() if not name.endswith(CODES)} | dict(codes)
        if manifest.refinement is not None and any(c.images for c in spec.classes):
            written |= self._refined(meta_model, spec, order, feeds, written)
        if manifest.unlabeled_sharpness is not None and spec.unlabeled:
            written |= self._with_unlabeled(meta_model, spec, order, written)
        return written

    def _described(self, meta_model: MetaModel, spec: TaskSpec, order: Sequence[int]) -> dict[str, Rows]:
        """Token embeddings of the descriptions and features of the images, as far as the generator takes them."""
        inputs = {i.name: i.shape for i in self._session(meta_model).get_inputs()}
        classes = [spec.classes[k] for k in order]
        feeds = token_feeds(classes, lambda texts: self._encode(meta_model, texts), inputs["tokens"][-1])
        if "features" in inputs:
            feeds |= feature_feeds(classes, lambda pixels: self._extract(meta_model, pixels), inputs["features"][-1])
        return feeds

    def _encode(self, meta_model: MetaModel, texts: Sequence[str]) -> list[Rows]:
        name = meta_model.manifest.text_encoder
        assert name is not None, "Manifest checks it"
        try:
            return [embeddings.tokens for embeddings in self._encoders.get(name).encode(texts)]
        except MissingEncoder as error:
            raise GenerationFailed(error.message) from error

    def _extract(self, meta_model: MetaModel, pixels: Pixels) -> Rows:
        """Features (S, F) of images by the target network as it is before any task: with the base's weights."""
        return _features(self._base_session(meta_model), pixels)

    def _refined(
        self,
        meta_model: MetaModel,
        spec: TaskSpec,
        order: Sequence[int],
        feeds: Mapping[str, NDArray[Any]],
        written: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, NDArray[np.float32]]:
        """The classification layer fitted to the features that the adapted network has of the support images.

        Where no layer is adapted, those are the features in ``feeds``.
        """
        manifest, trust = meta_model.manifest, meta_model.manifest.refinement
        assert trust is not None
        pixels, labels = _support(spec, order, unlabeled_slot=manifest.max_classes)
        features = feeds["features"][feeds["feature_mask"] > 0]
        if any(name.endswith(CODES) for name in written):
            features = self._features_by(meta_model, written, pixels, n_classes=len(order))
        weight, bias = (written[name] for name in HEAD)
        return dict(zip(HEAD, refine(weight, bias, features, labels, trust=trust), strict=True))

    def _with_unlabeled(
        self, meta_model: MetaModel, spec: TaskSpec, order: Sequence[int], written: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """The logits layer moved to the unlabelled images, by the features that the written network has of them."""
        sharpness = meta_model.manifest.unlabeled_sharpness
        assert sharpness is not None
        pixels, labels = _support(spec, order, unlabeled_slot=meta_model.manifest.max_classes)
        features = self._features_by(meta_model, written, pixels, n_classes=len(order))
        weight, bias = (written[name] for name in HEAD)
        return dict(zip(HEAD, absorb(weight, bias, features, labels, sharpness=sharpness), strict=True))

    def _features_by(
        self, meta_model: MetaModel, written: Mapping[str, NDArray[np.float32]], pixels: Pixels, *, n_classes: int
    ) -> Rows:
        """Features (S, F) of support images by the network that was written for a task: means over their views."""
        manifest = meta_model.manifest
        skeleton = skeleton_for(meta_model.read("skeleton.onnx"), manifest, n_classes)
        weights = meta_model.weights(written)
        session = make_session(skeleton, weights, providers=self._providers, n_threads=self._n_threads)
        views = views_of(pixels, shift=manifest.shifted_support, mirrored=manifest.mirrored_support)
        features: Rows = np.mean([_features(session, view) for view in views], axis=0)
        return features

    def _session(self, meta_model: MetaModel) -> ort.InferenceSession:
        return self._made_once(meta_model.digest, lambda: (meta_model.read("generator.onnx"), {}))

    def _base_session(self, meta_model: MetaModel) -> ort.InferenceSession:
        return self._made_once(f"{meta_model.digest} base", lambda: _base_network(meta_model))

    def _made_once(self, key: str, read: Callable[[], tuple[bytes, Weights]]) -> ort.InferenceSession:
        with self._lock:  # creation holds the GIL anyhow
            if key not in self._sessions:
                model, weights = read()
                self._sessions[key] = make_session(model, weights, providers=self._providers, n_threads=self._n_threads)
            return self._sessions[key]


def _check(spec: TaskSpec, manifest: Manifest) -> None:
    """What the use cases have checked already, again: a stored recipe may be older than the meta-model's limits."""
    size, n_classes = manifest.preprocess.size, len(spec.classes)
    pixels = (size, size, manifest.preprocess.channels)
    images = [image for c in spec.classes for image in c.images] + [*spec.unlabeled]
    problem = ""
    if not manifest.min_classes <= n_classes <= manifest.max_classes:
        problem = f"{n_classes} classes, not {manifest.min_classes} to {manifest.max_classes}"
    elif len(images) > manifest.max_images:
        problem = f"{len(images)} images, over {manifest.max_images}"
    elif images and not manifest.accepts_images:
        problem = "images"
    elif not manifest.accepts_descriptions and not all(c.images for c in spec.classes):
        problem = "a class without images"
    elif spec.unlabeled and not manifest.accepts_unlabeled:
        problem = "unlabelled images"
    elif any(image.shape != pixels for image in images):
        problem = f"images that are not {pixels}"
    if problem:
        raise GenerationFailed(f"{manifest.name} cannot make a task with {problem}; create the task again.")


def _features(session: ort.InferenceSession, pixels: Pixels) -> Rows:
    """Features (S, F) of images, some at a time."""
    runs = (pixels[start : start + MAX_RUN_IMAGES] for start in range(0, len(pixels), MAX_RUN_IMAGES))
    return np.concatenate([run(session, FEATURES, {INPUT: images}) for images in runs])


def _base_network(meta_model: MetaModel) -> tuple[bytes, Weights]:
    """The skeleton and its weights before any task."""
    manifest = meta_model.manifest
    skeleton = skeleton_for(meta_model.read("skeleton.onnx"), manifest, manifest.min_classes)
    return skeleton, meta_model.weights_before_tasks()


def _support(spec: TaskSpec, order: Sequence[int], *, unlabeled_slot: int) -> tuple[Pixels, NDArray[np.int64]]:
    """``support`` (S, H, W, C) and ``labels`` (S,): each image's class slot, ``unlabeled_slot`` where it has none."""
    groups = [(slot, spec.classes[k].images) for slot, k in enumerate(order)] + [(unlabeled_slot, spec.unlabeled)]
    images = [(slot, image) for slot, group in groups for image in sorted(group, key=lambda pixels: pixels.tobytes())]
    return np.stack([image for _, image in images]), np.array([slot for slot, _ in images], dtype=np.int64)


def _has_class_rows(manifest: Manifest, name: str) -> bool:
    return manifest.tensors[name].shape[:1] == (N_CLASSES,)


def _in_user_order(rows: NDArray[np.float32], order: Sequence[int]) -> NDArray[np.float32]:
    """Row ``slot`` belongs to the user's class ``order[slot]``."""
    restored = np.empty_like(rows)
    restored[order] = rows
    return restored


def _check_finite(tensors: dict[str, NDArray[np.float32]], manifest: Manifest) -> None:
    """Nothing may be NaN, infinite, or too large for the float16 that weights are stored in."""
    for name, tensor in tensors.items():
        if not (np.abs(tensor) <= FLOAT16_MAX).all():
            remedy = "try other images; if that does not help, the meta-model is at fault"
            raise GenerationFailed(f"{manifest.name} wrote values in {name} that are no usable weights; {remedy}.")


def _header(meta_model: MetaModel, spec: TaskSpec) -> BundleHeader:
    manifest = meta_model.manifest
    return BundleHeader(
        class_names=spec.class_names,
        meta_model=manifest.name,
        meta_model_digest=meta_model.digest,
        temperature=manifest.temperature_for(len(spec.classes), sum(len(c.images) for c in spec.classes)),
        abstain_below=manifest.abstain_below,
    )
