"""Evaluate an exported meta-model by the protocol: what the service would answer, beside its controls.

Everything runs through the exported graphs, the bundle codec (float16 weights) and ONNX Runtime, one task at a time, as
the service does. Support and query are disjoint (the sampler asserts it) and every query is answered on its own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models import bundle
from models.generator import OnnxGenerator
from models.graph import FEATURES, INPUT, LOGITS, skeleton_for
from models.metamodel import MetaModel
from models.runtime import make_session
from models.task import ClassSpec, TaskSpec
from models.views import views_of
from training import calibration, metrics
from training.baselines import logistic_regression, nearest_centroid
from training.calibration import Answered, Calibration
from training.data.folders import ImageSet
from training.episodes import Episode, EpisodeShape, drawable, sample
from training.transductive import N_SUPPORT, transductive

HARDWARE = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
N_AGNOSTIC = 50
N_UNKNOWN = 20
Tensors = dict[str, NDArray[np.float32]]


class Evaluator:
    """Runs one exported meta-model on episodes of one image set."""

    def __init__(self, meta_model: MetaModel, images: ImageSet) -> None:
        self.meta_model, self.images = meta_model, images
        self._generator = OnnxGenerator()
        self._skeletons: dict[int, bytes] = {}
        self._agnostic: Tensors = {}
        written = (spec for spec in meta_model.manifest.tensors.values() if spec.source == "bundle")
        self._writes_convolutions = any(len(spec.shape) == 4 for spec in written)

    def answer(
        self, episode: Episode, rng: np.random.Generator, *, controls: bool
    ) -> tuple[Answered, dict[str, float]]:
        """Write the episode's network and run it on the queries; with its controls and closed forms if asked for.

        Returns the answers, and the accuracy (0..1) of the written network and of each control, by name.
        """
        written = self._write(episode, episode.support_labels)
        pixels = self.images.pixels
        logits, features = self._run(written, len(episode.classes), pixels[episode.query])
        others = np.flatnonzero(~np.isin(self.images.labels, episode.classes))
        unknown, _ = (
            self._run(written, len(episode.classes), pixels[rng.choice(others, N_UNKNOWN)])
            if len(others)
            else (logits[:0], None)
        )
        scores = {"generated": logits.argmax(-1)}
        if controls:
            scores |= self._controls(episode, written, features, rng)
        accuracy = {name: float((predicted == episode.query_labels).mean()) for name, predicted in scores.items()}
        return Answered(len(episode.support), logits, episode.query_labels, unknown), accuracy

    def learn_agnostic(self, episodes: Iterator[Episode]) -> None:
        """The task-agnostic control: the mean of the tensors written for N_AGNOSTIC tasks."""
        sums: Tensors = {}
        for _ in range(N_AGNOSTIC):
            episode = next(episodes)
            for name, tensor in self._write(episode, episode.support_labels).items():
                sums[name] = sums.get(name, np.zeros_like(tensor)) + tensor / np.float32(N_AGNOSTIC)
        self._agnostic = sums

    def _controls(
        self, episode: Episode, written: Tensors, features: NDArray[np.float32], rng: np.random.Generator
    ) -> dict[str, NDArray[np.int64]]:
        n_way, pixels = len(episode.classes), self.images.pixels
        labels, queries = episode.support_labels, pixels[episode.query]
        _, support_features = self._run(written, n_way, pixels[episode.support])
        shuffled = self._write(episode, rng.permutation(n_way)[labels])
        agnostic_logits, agnostic_features = self._run(self._agnostic, n_way, queries)
        _, agnostic_support = self._run(self._agnostic, n_way, pixels[episode.support])
        found = {
            "nearest_centroid": nearest_centroid(support_features, labels, features),
            "logistic_regression": logistic_regression(support_features, labels, features),
            "shuffled_labels": self._run(shuffled, n_way, queries)[0].argmax(-1),
            "task_agnostic": agnostic_logits.argmax(-1),
            "task_agnostic_convolutions_nearest_centroid": nearest_centroid(
                agnostic_support, labels, agnostic_features
            ),
            "pixels_nearest_centroid": nearest_centroid(_flat(pixels[episode.support]), labels, _flat(queries)),
        }
        manifest = self.meta_model.manifest
        views = views_of(pixels[episode.support], shift=manifest.shifted_support, mirrored=manifest.mirrored_support)
        if len(views) > 1:
            seen = np.mean([self._run(written, n_way, view)[1] for view in views], axis=0)
            found["nearest_centroid_of_views"] = nearest_centroid(seen, labels, features)
        if self._writes_convolutions:
            found["transductive"] = self._transductive(episode, written)
        return found

    def _transductive(self, episode: Episode, written: Tensors) -> NDArray[np.int64]:
        """What is predicted with the query batch's statistics, the paper's way."""
        n_support = len(episode.support) + len(episode.unlabeled)  # whose statistics were folded in
        images = np.concatenate([episode.support, episode.unlabeled, episode.query])
        feeds = {INPUT: self.images.pixels[images], N_SUPPORT: np.array([n_support])}
        graph = transductive(self._skeleton(len(episode.classes)))
        (logits,) = make_session(graph, self.meta_model.weights(written)).run([LOGITS], feeds)
        predicted: NDArray[np.int64] = logits[n_support:].argmax(-1)
        return predicted

    def _write(self, episode: Episode, labels: NDArray[np.int64]) -> Tensors:
        """The task's tensors, as read back from a stored bundle."""
        pixels = self.images.pixels
        classes = [
            ClassSpec(f"class {k}", images=tuple(pixels[episode.support[labels == k]]))
            for k in range(len(episode.classes))
        ]
        spec = TaskSpec(tuple(classes), tuple(pixels[episode.unlabeled]))
        stored = bundle.decode(bundle.encode(self._generator.generate(self.meta_model, spec)))
        return {name: tensor.astype(np.float32, copy=False) for name, tensor in stored.tensors.items()}

    def _run(
        self, tensors: Tensors, n_way: int, pixels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pixels ``(N, H, W, C)`` -> logits ``(N, K)`` and features ``(N, F)`` of one network."""
        session = make_session(self._skeleton(n_way), self.meta_model.weights(tensors))
        logits, features = session.run([LOGITS, FEATURES], {INPUT: pixels})
        return logits, features

    def _skeleton(self, n_way: int) -> bytes:
        if n_way not in self._skeletons:
            skeleton = self.meta_model.read("skeleton.onnx")
            self._skeletons[n_way] = skeleton_for(skeleton, self.meta_model.manifest, n_way)
        return self._skeletons[n_way]


def evaluate(
    meta_model: MetaModel,
    images: ImageSet,
    shape: EpisodeShape,
    *,
    n_episodes: int = 1000,
    seed: int = 0,
    within_group: bool = False,
    controls: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of one column (one episode shape, between or within groups), and all that is needed to repeat it.

    Raises DataError where ``drawable`` does.
    """
    rng, drawn = np.random.default_rng(seed), drawable(images, shape, within_group=within_group)

    def episodes() -> Iterator[Episode]:
        while True:
            yield sample(drawn, shape, rng, within_group=within_group)

    evaluator, stream = Evaluator(meta_model, drawn), episodes()
    if controls:
        evaluator.learn_agnostic(stream)
    answers = [
        evaluator.answer(next(stream), rng, controls=controls)
        for _ in tqdm(range(n_episodes), disable=not progress, desc=meta_model.name, mininterval=1.0)
    ]
    accuracy = {name: metrics.figure([own[name] for _, own in answers]) for name in answers[0][1]}
    return {
        "meta_model": meta_model.name,
        "meta_model_digest": meta_model.digest,
        **column(images, shape, {"accuracy": accuracy}, n_episodes=n_episodes, seed=seed, within_group=within_group),
        **calibration.report([answered for answered, _ in answers], meta_model.manifest),
    }


def calibrate(
    meta_model: MetaModel, images: ImageSet, shapes: list[EpisodeShape], *, n_episodes: int = 150, seed: int = 1
) -> Calibration:
    """Temperatures and abstention threshold, chosen on validation classes over all ``shapes``."""
    rng, evaluator = np.random.default_rng(seed), Evaluator(meta_model, images)
    episodes = (sample(images, shape, rng) for shape in shapes for _ in range(n_episodes))
    return calibration.fit([evaluator.answer(episode, rng, controls=False)[0] for episode in episodes])


def column(
    images: ImageSet,
    shape: EpisodeShape,
    figures: Mapping[str, Any],
    *,
    n_episodes: int,
    seed: int,
    within_group: bool = False,
) -> dict[str, Any]:
    """What every column says: how its ``figures`` were measured, these themselves, and what chance gives."""
    return {
        "shape": asdict(shape),
        "classes_from": "one group" if within_group else "anywhere",
        "n_episodes": n_episodes,
        "seed": seed,
        "data_digest": images.digest,
        "n_classes": images.n_classes,
        "hardware": HARDWARE,
        **figures,
        "chance": round(100 / shape.n_way, 2),
    }


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
