"""What carried a decision: words of the descriptions and parts of the image; and how far a task changed the network.

A *weight* is a gradient times what it is the gradient of: to first order, how much the logarithm of the predicted
class's probability would fall without it. Of a word: the sum over its tokens' embeddings, through everything that the
task's words made. Of a cell of the image: the sum over its pixels, seen as differences from the image's mean colour.

Source: Jin et al., *Language to Network: Conditional Parameter Adaptation with Natural Language Descriptions*, 2020,
section 5.2, which shows the magnitudes of the same gradients. M. Ancona et al., *Towards better understanding of
gradient-based attribution methods*, 2018, on gradient times input.

Shapes: K classes, T tokens, D embedding, H W C pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from models.bundle import Bundle
from models.decision import probabilities
from models.explain_gradient import GRADIENT, with_gradient
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import BASIS, CODES, GAMMA, N_CLASSES, Manifest, MetaModel
from models.runtime import make_session
from models.task import Pixels

Array = NDArray[np.float32]
SCORE: Final = "score"
TINY: Final = 1e-12
LARGEST_CELLS, IMAGE_CELLS = 64, 16
"""Most cells along a side of a saliency map, and along what the network sees of the image."""


@dataclass(frozen=True)
class Decided:
    """A decision on an image and the gradients of its log-probability.

    ``predicted``: the number of the class. ``pixels`` (H, W, C). ``bundle``: with respect to the task's tensors, by
    name, where that was asked for.
    """

    predicted: int
    probability: float
    pixels: Array
    bundle: dict[str, Array]


@dataclass(frozen=True)
class LayerChange:
    """How far a task changed a layer: ``||theta' - gamma theta|| / ||gamma theta||`` of its weight."""

    name: str
    type: str
    relative_change: float


def decide_with_gradients(meta_model: MetaModel, bundle: Bundle, pixels: Pixels, *, of_bundle: bool) -> Decided:
    """The decision on one image ``(H, W, C)``; ``of_bundle``: with gradients of the task's tensors, too.

    Raises InvalidMetaModel where the network has nodes whose gradient is not known.
    """
    graph, image = scored(meta_model, len(bundle.header.class_names), bundle.header.temperature)
    wanted = made_for_task(meta_model.manifest) if of_bundle else []
    model = with_gradient(graph, SCORE, [image, *wanted])
    session = make_session(model.SerializeToString(), meta_model.weights(bundle.tensors))
    names = [LOGITS, *(name + GRADIENT for name in (image, *wanted))]
    logits, of_image, *of_weights = session.run(names, {INPUT: pixels[None]})
    shares = probabilities(logits[0], bundle.header.temperature)
    predicted = int(shares.argmax())
    of_tensors = _of_bundle(meta_model, dict(zip(wanted, of_weights, strict=True)))
    return Decided(predicted, round(float(shares[predicted]), 6), of_image[0], of_tensors)


def scored(meta_model: MetaModel, n_classes: int, temperature: float) -> tuple[onnx.ModelProto, str]:
    """The skeleton with the log-probability of the most probable class as SCORE; and the name of its float pixels."""
    skeleton = skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_classes)
    model = onnx.load_model_from_string(skeleton)
    image = next(node.output[0] for node in model.graph.node if node.op_type == "Cast" and INPUT in node.input)
    divisor = numpy_helper.from_array(np.array(temperature, np.float32), "score/temperature")
    model.graph.initializer.append(divisor)
    model.graph.node.extend(
        [
            helper.make_node("Div", [LOGITS, divisor.name], ["score/scaled"]),
            helper.make_node("LogSoftmax", ["score/scaled"], ["score/logarithms"], axis=-1),
            helper.make_node("ReduceMax", ["score/logarithms"], [SCORE], keepdims=1),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(SCORE, onnx.TensorProto.FLOAT, None))
    return model, image


def made_for_task(manifest: Manifest) -> list[str]:
    """The weights of the network that a task brings, whole or adapted."""
    return [n for n, spec in manifest.tensors.items() if spec.source != "base" and not n.endswith(CODES)]


def _of_bundle(meta_model: MetaModel, of_weights: Mapping[str, Array]) -> dict[str, Array]:
    """Gradients with respect to weights -> to the tensors of the bundle: codes are what adapted weights are made of."""
    found: dict[str, Array] = {}
    for name, gradient in of_weights.items():
        if meta_model.manifest.tensors[name].source == "bundle":
            found[name] = gradient
            continue
        codes, basis = name.rpartition(".")[0] + CODES, meta_model.base[name + BASIS]
        share = gradient.reshape(len(gradient), -1) @ basis.T
        found[codes] = found[codes] + share if codes in found else share
    return found


def token_weights(
    session: ort.InferenceSession,
    manifest: Manifest,
    feeds: Mapping[str, NDArray[Any]],
    of_bundle: Mapping[str, Array],
    order: Sequence[int],
) -> Array:
    """What each token carried, (K, T), in the order of the task.

    ``session``: of ``words_gradient.onnx``. ``feeds``: the generator's, classes in ``order``.
    """
    gradients = {
        name + GRADIENT: gradient[list(order)] if manifest.tensors[name].shape[0] == N_CLASSES else gradient
        for name, gradient in of_bundle.items()
    }
    (of_tokens,) = session.run(None, {**feeds, **gradients})
    weights = np.empty(of_tokens.shape[:2], np.float32)
    weights[list(order)] = (of_tokens * feeds["tokens"]).sum(axis=-1)
    return weights


def saliency(gradient: Array, pixels: Pixels) -> Array:
    """Gradient and pixels (H, W, C) -> what each cell of IMAGE_CELLS x IMAGE_CELLS (fewer pixels: fewer) carried."""
    differences = pixels.astype(np.float32) - pixels.mean(axis=(0, 1), dtype=np.float32)
    weights = (gradient * differences).sum(axis=-1)
    n_cells = min(len(weights), IMAGE_CELLS)
    cells = Image.fromarray(weights).resize((n_cells, n_cells), Image.Resampling.BOX)
    return np.asarray(cells, np.float32) * (len(weights) / n_cells) ** 2


def in_frame(cells: Array, size: tuple[int, int], fit: Literal["pad", "crop"]) -> Array:
    """Cells of what the network saw, a square -> of the whole upright image of ``size`` (width, height) pixels.

    Zero where the network saw nothing: the sides that ``fit`` "crop" takes away.
    """
    width, height = size
    seen = min(size) if fit == "crop" else max(size)
    scale = min(len(cells) / seen, LARGEST_CELLS / max(size))
    columns, rows = (_places(length, seen, scale, len(cells)) for length in (width, height))
    framed = np.pad(cells, 1)[np.ix_(rows, columns)]
    return np.asarray(framed, np.float32)


def _places(length: int, seen: int, scale: float, n_cells: int) -> NDArray[np.int64]:
    """For each cell of the frame along a side, the cell seen there, from 1; 0 where none is."""
    n = max(1, round(length * scale))
    across = ((np.arange(n) + 0.5) / n - 0.5) * length / seen + 0.5
    is_seen = (across >= 0) & (across < 1)
    return np.where(is_seen, np.floor(across * n_cells).astype(np.int64) + 1, 0)


def relative_changes(meta_model: MetaModel, tensors: Mapping[str, NDArray[np.generic]]) -> list[LayerChange]:
    """Of each layer that a task with these tensors adapts, in the order of the network; empty where it adapts none."""
    found = []
    for name, spec in meta_model.manifest.tensors.items():
        layer, _, kind = name.rpartition(".")
        if spec.source != "adapted" or kind != "weight":
            continue
        codes = np.asarray(tensors[layer + CODES], np.float32)
        before = float(np.linalg.norm(meta_model.base[layer + GAMMA] * meta_model.base[name]))
        change = float(np.linalg.norm(codes @ meta_model.base[name + BASIS])) / max(before, TINY)
        found.append(LayerChange(layer.removeprefix("base.network."), _type(layer, spec.shape), change))
    return found


def _type(layer: str, shape: Sequence[object]) -> str:
    """By the layer's name and its weight's shape."""
    if len(shape) != 4:
        return "linear"
    kind = "shortcut" if "downsample" in layer else "depthwise" if shape[1] == 1 else "convolution"
    return f"{kind} {shape[2]} x {shape[3]}"
