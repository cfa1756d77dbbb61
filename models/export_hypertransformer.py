"""A trained HyperTransformer -> generator.onnx, skeleton.onnx and base.safetensors, checked against PyTorch.

Exported once per meta-model, never per task. The check writes networks for tasks of several shapes and compares both
graphs with PyTorch, with weights unlike any in the exported files (which hold none of the skeleton's).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn
from torch.export import Dim

from models.export import check_errors, export_graph, export_skeleton, relative_error, to_array
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import Manifest, TensorSpec
from models.methods.hypertransformer import GeneratedNetwork, HyperTransformer, HyperTransformerConfig
from models.nn.conv4 import Conv4, normalise
from models.runtime import make_session


@dataclass(frozen=True)
class Shape:
    """The shape of a task to check: classes, labelled images a class, unlabelled images."""

    n_way: int
    n_shot: int
    n_unlabeled: int


CHECKED_SHAPES = (Shape(2, 1, 0), Shape(5, 5, 3), Shape(20, 1, 0), Shape(10, 2, 30))


class Generator(nn.Module):
    """One task at a time: ``support (S, H, W, C)`` uint8, ``labels (S,)``, ``slots (K,)`` -> the bundle's tensors."""

    def __init__(self, model: HyperTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, support: Tensor, labels: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        """The written tensors, in the order of ``bundle_names``."""
        config = self.model.config
        images = normalise(support, config.pixel_mean, config.pixel_std)
        network = self.model.generate(images[None], labels[None], slots[None])
        written = tensors_of(network)
        return tuple(written[name] for name in bundle_names(config))


def tensors_of(network: GeneratedNetwork) -> dict[str, Tensor]:
    """The one network of a batch of one, by the parameter names of Conv4."""
    named = {}
    for n, (weight, bias) in enumerate(network.convs, start=1):
        named[f"conv{n}.weight"], named[f"conv{n}.bias"] = weight, bias
    named["logits.weight"], named["logits.bias"] = network.logits[0][0], network.logits[1][0]
    return named


def bundle_names(config: HyperTransformerConfig) -> list[str]:
    """The tensors that differ between tasks; the rest is the base."""
    convs = [f"conv{n}.{kind}" for n in range(1, config.n_conv_layers + 1) for kind in ("weight", "bias")]
    return [*(convs if config.writes_convs else []), "logits.weight", "logits.bias"]


def tensor_specs(config: HyperTransformerConfig) -> dict[str, TensorSpec]:
    """Shapes and sources of the skeleton's external weights."""
    target = _target(config, n_classes=config.max_classes)
    bundled = bundle_names(config)
    return {
        name: TensorSpec(
            shape=("n_classes", *parameter.shape[1:]) if name.startswith("logits") else tuple(parameter.shape),
            source="bundle" if name in bundled else "base",
        )
        for name, parameter in target.named_parameters()
    }


def export_files(model: HyperTransformer) -> dict[str, bytes]:
    """The three files of a meta-model folder, by name."""
    model = copy.deepcopy(model).eval().float().cpu()
    return {
        "generator.onnx": _export_generator(model),
        "skeleton.onnx": export_skeleton(
            _target(model.config, n_classes=5), (model.config.image_size, model.config.image_channels)
        ),
        "base.safetensors": save(_base_tensors(model)),
    }


def check_parity(
    model: HyperTransformer, files: dict[str, bytes], manifest: Manifest, shapes: Sequence[Shape] = CHECKED_SHAPES
) -> dict[str, float]:
    """Largest relative errors of ONNX Runtime against PyTorch; raises InvalidMetaModel above MAX_RELATIVE_ERROR."""
    model = copy.deepcopy(model).eval().float().cpu()
    shapes = [replace(shape, n_way=min(shape.n_way, model.config.max_classes)) for shape in shapes]
    generator = make_session(files["generator.onnx"], {})
    errors = {"generator": 0.0, "logits": 0.0}
    for seed, shape in enumerate(shapes):
        inputs = _random_task(model.config, shape, seed)
        with torch.no_grad():
            expected = Generator(model)(*inputs)
        written = generator.run(None, dict(zip(("support", "labels", "slots"), map(to_array, inputs), strict=True)))
        for ours, theirs in zip(written, expected, strict=True):
            errors["generator"] = max(errors["generator"], relative_error(ours, to_array(theirs)))
        logits, reference = _run_both(model, files["skeleton.onnx"], manifest, inputs, seed)
        errors["logits"] = max(errors["logits"], relative_error(logits, reference))
    return check_errors(errors)


def _run_both(
    model: HyperTransformer, skeleton: bytes, manifest: Manifest, inputs: tuple[Tensor, ...], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One written network on the same random queries: the skeleton in ONNX Runtime, and ``classify`` in PyTorch."""
    config, (support, labels, slots) = model.config, inputs
    queries = torch.randint(0, 256, (7, *support.shape[1:]), generator=torch.Generator().manual_seed(seed)).byte()
    with torch.no_grad():
        images = normalise(support, config.pixel_mean, config.pixel_std)
        network = model.generate(images[None], labels[None], slots[None])
        reference = model.classify(network, normalise(queries, config.pixel_mean, config.pixel_std)[None])[0]
    weights = {name: to_array(tensor) for name, tensor in tensors_of(network).items()}
    session = make_session(skeleton_for(skeleton, manifest, len(slots)), weights)
    (logits,) = session.run([LOGITS], {INPUT: queries.numpy()})
    return logits, to_array(reference)


def _target(config: HyperTransformerConfig, n_classes: int) -> Conv4:
    return Conv4(
        (config.image_size, config.image_channels),
        [config.channels] * config.n_conv_layers,
        n_classes,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        negative_slope=config.negative_slope,
        pooling=config.pooling,
        n_poolings=config.n_poolings,
        unit_features=config.unit_features,
    )


def _base_tensors(model: HyperTransformer) -> dict[str, NDArray[np.float32]]:
    """Convolutions shared by all tasks, folded with the base statistics: what any task's network holds there."""
    if model.config.writes_convs:
        return {}
    inputs = _random_task(model.config, Shape(2, 1, 0), seed=0)
    images = normalise(inputs[0], model.config.pixel_mean, model.config.pixel_std)
    with torch.no_grad():
        network = model.generate(images[None], inputs[1][None], inputs[2][None])
    return {n: to_array(t).astype(np.float32) for n, t in tensors_of(network).items() if n.startswith("conv")}


def _export_generator(model: HyperTransformer) -> bytes:
    shape = Shape(5, 2, 3)
    n_images, n_way = Dim("n_images", min=2, max=65536), Dim("n_classes", min=2, max=model.config.max_classes)
    return export_graph(
        Generator(model),
        _random_task(model.config, shape, seed=0),
        input_names=["support", "labels", "slots"],
        output_names=bundle_names(model.config),
        dynamic_shapes=({0: n_images}, {0: n_images}, {0: n_way}),
    )


def _random_task(config: HyperTransformerConfig, shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random pixels of the right shapes: support, labels, slots."""
    random = torch.Generator().manual_seed(seed)
    n_images = shape.n_way * shape.n_shot + shape.n_unlabeled
    size = (n_images, config.image_size, config.image_size, config.image_channels)
    support = torch.randint(0, 256, size, generator=random).byte()
    slots = torch.arange(shape.n_way)
    unlabeled = torch.full((shape.n_unlabeled,), config.max_classes)
    return support, torch.cat([slots.repeat_interleave(shape.n_shot), unlabeled]), slots
