"""The generator of a meta-model in ONNX Runtime: a task in, its written weights out, in one forward pass.

Shapes: S images (support, then unlabelled), K classes, H W C pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.bundle import Bundle, BundleHeader
from models.errors import GenerationFailed
from models.metamodel import N_CLASSES, Manifest, MetaModel
from models.runtime import make_session
from models.task import Pixels, TaskSpec, canonical_order

FLOAT16_MAX = float(np.finfo(np.float16).max)


class OnnxGenerator:
    """Runs the ``generator.onnx`` of any meta-model; its session is made once, by ``prepare`` or a first task."""

    def __init__(self, *, providers: Sequence[str] | None = None, n_threads: int = 1) -> None:
        self._providers = providers
        self._n_threads = n_threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def generate(self, meta_model: MetaModel, spec: TaskSpec) -> Bundle:
        """One task's bundle, class rows in the order of ``spec``; raises GenerationFailed.

        The network sees classes in canonical order and the images of a class sorted by their bytes, so that listing
        either in another order changes no weight: permuting the classes permutes the answers, exactly.
        """
        manifest = meta_model.manifest
        _check(spec, manifest)
        order = canonical_order(spec)
        support, labels = _support(spec, order, unlabeled_slot=manifest.max_classes)
        names = [name for name, tensor in manifest.tensors.items() if tensor.source == "bundle"]
        feeds = {"support": support, "labels": labels, "slots": np.arange(len(order), dtype=np.int64)}
        try:
            outputs = self._session(meta_model).run(names, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            remedy = "check the service's log and memory, and that the meta-model is whole"
            raise GenerationFailed(f"The generator of {manifest.name} failed ({error}); {remedy}.") from error
        tensors = {
            name: _in_user_order(output, order) if _has_class_rows(manifest, name) else output
            for name, output in zip(names, outputs, strict=True)
        }
        _check_finite(tensors, manifest)
        return Bundle(_header(meta_model, spec), tensors)

    def prepare(self, meta_model: MetaModel) -> None:
        """Make the session of a meta-model now, so that its first task does not wait for it."""
        self._session(meta_model)

    def _session(self, meta_model: MetaModel) -> ort.InferenceSession:
        with self._lock:  # creation holds the GIL anyhow
            session = self._sessions.get(meta_model.digest)
            if session is None:
                model = meta_model.read("generator.onnx")
                session = make_session(model, {}, providers=self._providers, n_threads=self._n_threads)
                self._sessions[meta_model.digest] = session
            return session


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
    elif not all(c.images for c in spec.classes):
        problem = "a class without images"
    elif spec.unlabeled and not manifest.accepts_unlabeled:
        problem = "unlabelled images"
    elif any(image.shape != pixels for image in images):
        problem = f"images that are not {pixels}"
    if problem:
        raise GenerationFailed(f"{manifest.name} cannot make a task with {problem}; create the task again.")


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
        temperature=manifest.temperature,
        abstain_below=manifest.abstain_below,
    )
