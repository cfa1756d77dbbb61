"""Post-training quantisation of an exported meta-model: its skeleton in 8-bit integers, and what that changes.

    training quantise models/zoo/n3-mobilenet

Ranges of activations are those that training images have in the network with the mean of the layers that are written
for tasks of training classes. What a task writes itself is rounded when it is loaded (``models.quantised``).
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tqdm import tqdm

from models import quantised
from models.graph import INPUT, externalise, skeleton_for, with_weights, without_provenance
from models.metamodel import MetaModel
from training import metrics
from training.checkpoint import write_bytes, write_text
from training.data.descriptions import ClassTexts, texts_digest
from training.data.folders import DataError, ImageSet
from training.described_tasks import N_AGNOSTIC, Logits, Subject
from training.episodes import EpisodeShape, shrink
from training.evaluate import column

N_IMAGES, N_RUN = 256, 32
OPERATIONS = ["Conv", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"]
AGNOSTIC = EpisodeShape(10, 0, 1)
COLUMNS = (EpisodeShape(10, 0, 15), EpisodeShape(5, 1, 15), EpisodeShape(5, 5, 15))
N_ROUNDS = 15
Texts = Mapping[str, ClassTexts]


class _Images(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Training images, some at a time."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._runs: Iterator[NDArray[np.uint8]] = (pixels[i : i + N_RUN] for i in range(0, len(pixels), N_RUN))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        run = next(self._runs, None)
        return None if run is None else {INPUT: run}


def quantise(
    meta_model: MetaModel,
    train: ImageSet,
    validation: ImageSet,
    texts: Texts,
    *,
    command: str,
    n_episodes: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> quantised.Facts:
    """Write ``skeleton.int8.onnx`` and ``int8.json`` into the folder; returns what the latter says.

    ``command``: what repeats it, for the card. Raises DataError where the meta-model reads no descriptions: the small
    networks of those are slower in integers.
    """
    if not meta_model.manifest.accepts_descriptions:
        raise DataError(f"{meta_model.name}'s networks are small and slower in 8-bit integers; there is nothing to do.")
    skeleton = _quantised_skeleton(meta_model, Subject(meta_model, train, texts), seed)
    subject, shots = Subject(meta_model, validation, texts), meta_model.manifest.accepts_images
    shapes = [shrink(shape, validation) for shape in COLUMNS if shots or not shape.n_shot]
    facts = quantised.Facts(
        meta_model_digest=meta_model.digest,
        sha256=hashlib.sha256(skeleton).hexdigest(),
        command=command,
        columns=[_column(subject, skeleton, shape, n_episodes, seed, progress) for shape in shapes],
    )
    write_bytes(meta_model.folder / quantised.SKELETON, skeleton)
    write_text(meta_model.folder / quantised.FACTS, facts.model_dump_json(indent=1) + "\n")
    return facts


def _quantised_skeleton(meta_model: MetaModel, subject: Subject, seed: int) -> bytes:
    """The skeleton for two classes, with ranges of activations, external weights and as few notes as possible."""
    n_way = meta_model.manifest.min_classes
    tensors = subject.write(subject.draw(shrink(EpisodeShape(n_way, 0, 1), subject.images), seed, 0)[1])
    if subject.adapts_layers:
        shape = shrink(AGNOSTIC, subject.images)
        subject.learn_agnostic([subject.draw(shape, seed, number)[1] for number in range(N_AGNOSTIC)])
        tensors |= subject.agnostic
    model = onnx.load_model_from_string(skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_way))
    weights = meta_model.weights(tensors)
    pixels = subject.images.pixels
    chosen = np.random.default_rng(seed).choice(len(pixels), min(N_IMAGES, len(pixels)), replace=False)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(with_weights(model, weights).SerializeToString())
        logging.disable(logging.WARNING)  # it asks for fusions that an exported graph has had
        try:
            quantize_static(
                source,
                target,
                _Images(pixels[chosen]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATIONS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        found = onnx.load(target)
    names = {name for node in found.graph.node for name in _weights_of(node, found)} | set(weights)
    data: bytes = externalise(without_provenance(found), names).SerializeToString()
    return data


def _weights_of(node: onnx.NodeProto, model: onnx.ModelProto) -> list[str]:
    """Of a convolution's quantised weight and bias: the integers and their scales."""
    if node.op_type != "Conv":
        return []
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return [name for own in node.input[1:] for name in made[own].input[:2]]


def _column(
    subject: Subject, skeleton: bytes, shape: EpisodeShape, n_episodes: int, seed: int, progress: bool
) -> dict[str, Any]:
    """Tasks answered by both networks: accuracy of each, agreement, and how much faster the one in integers is."""
    scores: dict[str, list[float]] = {"float32": [], "int8": [], "difference": [], "agreement": []}
    ratios = []
    for number in tqdm(range(n_episodes), disable=not progress, desc="int8", mininterval=5.0):
        episode, specs, _ = subject.draw(shape, seed, number)
        tensors = subject.write(specs)
        networks = {"float32": subject.whole_network(tensors), "int8": subject.whole_network(tensors, int8=skeleton)}
        answers = {name: network(episode.query).argmax(-1) for name, network in networks.items()}
        right = {name: float((answer == episode.query_labels).mean()) for name, answer in answers.items()}
        for name, share in right.items():
            scores[name].append(share)
        scores["difference"].append(right["int8"] - right["float32"])
        scores["agreement"].append(float((answers["float32"] == answers["int8"]).mean()))
        if number < N_ROUNDS:
            some = episode.query[: quantised.N_TIMED]
            ratios.append(_seconds(networks["float32"], some) / _seconds(networks["int8"], some))
    accuracy = {name: metrics.figure(values) for name, values in scores.items()}
    speed_up = round(float(np.median(ratios)), 2)
    figures = {"descriptions_digest": texts_digest(subject.texts), "accuracy": accuracy, "speed_up": speed_up}
    given = "words and images" if shape.n_shot else "words"
    return {"given": given, **column(subject.images, shape, figures, n_episodes=n_episodes, seed=seed)}


def _seconds(network: Callable[[NDArray[np.int64]], Logits], chosen: NDArray[np.int64]) -> float:
    """The shortest of a few runs on the same images."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        network(chosen)
        times.append(time.perf_counter() - started)
    return min(times)
