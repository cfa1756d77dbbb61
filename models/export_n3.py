"""A trained N3 -> generator.onnx, its words_gradient.onnx, skeleton.onnx and base.safetensors, checked against PyTorch.

A task's bundle has the codes of each adapted layer and its classification layer; the base has, besides the shared
weights, the gamma of each layer and the bases that turn codes into differences (mu in them).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn
from torch.export import Dim

from models.explain_export import export_words_gradient, words_gradient_error
from models.explain_words import WORDS_GRADIENT
from models.export import check_errors, export_graph, export_skeleton, relative_error, to_array
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import BASIS, CODES, GAMMA, HEAD, Manifest, TensorSpec
from models.methods.n3 import N3, Adaptation
from models.runtime import make_session

INPUTS = ("tokens", "token_mask", "features", "feature_mask")
NETWORK = "base.network."


@dataclass(frozen=True)
class Shape:
    """The shape of a task to check: classes, tokens, images a class."""

    n_way: int
    n_tokens: int
    n_shot: int


CHECKED_SHAPES = (Shape(2, 5, 1), Shape(10, 60, 1), Shape(5, 1, 5), Shape(30, 20, 2))


class Generator(nn.Module):
    """Token embeddings and features of each class -> the bundle's tensors, in the order of ``bundle_names``."""

    def __init__(self, model: N3) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, token_mask: Tensor, features: Tensor, feature_mask: Tensor) -> tuple[Tensor, ...]:
        """See ``N3.generate``."""
        codes, weight, bias = self.model.generate(tokens, token_mask, features, feature_mask)
        return (*(codes[layer] for layer in self.model.layers), weight, bias)


def bundle_names(model: N3) -> list[str]:
    """The tensors that differ between tasks."""
    return [*(f"{NETWORK}{layer}{CODES}" for layer in model.layers), *HEAD]


def tensor_specs(model: N3) -> dict[str, TensorSpec]:
    """Shapes and sources of the network's weights, and of the codes."""
    adapted = {f"{NETWORK}{layer}.{kind}" for layer in model.layers for kind in ("weight", "bias")}
    specs = {
        name: TensorSpec(shape=tuple(tensor.shape), source="adapted" if name in adapted else "base")
        for name, tensor in model.target.named_parameters()
        if name not in HEAD
    }
    for layer in model.layers:
        n_columns = model.target.base.convolutions[layer].out_channels
        specs[f"{NETWORK}{layer}{CODES}"] = TensorSpec(shape=(n_columns, model.config.code_dim), source="bundle")
    specs["logits.weight"] = TensorSpec(shape=("n_classes", model.config.n_features), source="bundle")
    specs["logits.bias"] = TensorSpec(shape=("n_classes",), source="bundle")
    return specs


def export_files(model: N3) -> dict[str, bytes]:
    """The files of a meta-model folder, by name."""
    model = copy.deepcopy(model).eval().float().cpu()
    spec, generator = model.config.base, _export_generator(model)
    return {
        "generator.onnx": generator,
        WORDS_GRADIENT: _export_words_gradient(model, generator),
        "skeleton.onnx": export_skeleton(model.target, (spec.size, 3)),
        "base.safetensors": save(base_tensors(model)),
    }


def check_parity(model: N3, files: dict[str, bytes], manifest: Manifest) -> dict[str, float]:
    """Largest relative errors of ONNX Runtime against PyTorch; raises InvalidMetaModel where one is too large."""
    model = copy.deepcopy(model).eval().float().cpu()
    generator = make_session(files["generator.onnx"], {})
    errors = {"generator": 0.0, "logits": 0.0}
    for seed, shape in enumerate(CHECKED_SHAPES):
        inputs = random_inputs(model, shape, seed)
        written = generator.run(None, dict(zip(INPUTS, map(to_array, inputs), strict=True)))
        with torch.no_grad():
            expected = Generator(model)(*inputs)
        for ours, theirs in zip(written, expected, strict=True):
            errors["generator"] = max(errors["generator"], relative_error(ours, to_array(theirs)))
        logits, reference = _run_both(model, files["skeleton.onnx"], manifest, inputs, seed)
        errors["logits"] = max(errors["logits"], relative_error(logits, reference))
    tasks = [random_inputs(model, shape, seed) for seed, shape in enumerate(CHECKED_SHAPES)]
    errors["words"] = words_gradient_error(Generator(model), tasks, INPUTS, files)
    return check_errors(errors)


def random_inputs(model: N3, shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random inputs of the generator; the first class has no image, the last one no text."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(shape.n_way, shape.n_tokens, model.config.token_dim, generator=random)
    features = torch.randn(shape.n_way, shape.n_shot, model.config.n_features, generator=random)
    token_mask, feature_mask = torch.ones(tokens.shape[:2]), torch.ones(features.shape[:2])
    token_mask[-1] = feature_mask[0] = 0
    return tokens * token_mask[..., None], token_mask, features * feature_mask[..., None], feature_mask


def _run_both(
    model: N3, skeleton: bytes, manifest: Manifest, inputs: tuple[Tensor, ...], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One adapted network on the same random images: the skeleton in ONNX Runtime, and ``classify`` in PyTorch."""
    size = model.config.base.size
    pixels = torch.randint(0, 256, (3, size, size, 3), generator=torch.Generator().manual_seed(seed)).byte()
    with torch.no_grad():
        adaptation = model.generate(*inputs)
        reference = model.classify(adaptation, pixels)
        weights = {name: to_array(tensor) for name, tensor in _whole(model, adaptation).items()}
    session = make_session(skeleton_for(skeleton, manifest, len(adaptation.bias)), weights)
    (logits,) = session.run([LOGITS], {INPUT: pixels.numpy()})
    return logits, to_array(reference)


def _whole(model: N3, adaptation: Adaptation) -> dict[str, Tensor]:
    """Every weight of a task's network, by its name in the skeleton."""
    shared = {name: tensor for name, tensor in model.target.named_parameters() if name not in HEAD}
    changed = {NETWORK + name: tensor for name, tensor in model.adapted(adaptation).items()}
    return {**shared, **changed, "logits.weight": adaptation.weight, "logits.bias": adaptation.bias}


@torch.no_grad()
def base_tensors(model: N3) -> dict[str, NDArray[np.floating]]:
    """Gammas apart, as features of support images are the base's before any task; in float32, as all rests on them."""
    tensors: dict[str, Tensor] = {n: tensor for n, tensor in model.target.named_parameters() if n not in HEAD}
    gammas = {}
    for layer in model.layers:
        decoder = model.decoder(layer)
        gammas[f"{NETWORK}{layer}{GAMMA}"] = to_array(decoder.gamma)
        for kind, basis in zip(("weight", "bias"), decoder.bases(), strict=True):
            tensors[f"{NETWORK}{layer}.{kind}{BASIS}"] = basis
    halves = {name: to_array(tensor.contiguous()).astype(np.float16) for name, tensor in tensors.items()}
    return {**halves, **gammas}


def _dynamic_shapes() -> tuple[dict[int, Dim], ...]:
    """Of the generator's inputs."""
    n_classes, n_tokens = Dim("n_classes", min=2, max=512), Dim("n_tokens", max=4096)
    of_text, of_images = {0: n_classes, 1: n_tokens}, {0: n_classes, 1: Dim("n_images", max=512)}
    return of_text, of_text, of_images, of_images


def _export_words_gradient(model: N3, generator: bytes) -> bytes:
    return export_words_gradient(
        Generator(model),
        random_inputs(model, Shape(11, 13, 17), seed=0),
        input_names=INPUTS,
        bundle_names=bundle_names(model),
        dynamic_shapes=_dynamic_shapes(),
        generator=generator,
    )


def _export_generator(model: N3) -> bytes:
    return export_graph(
        Generator(model),
        random_inputs(model, Shape(5, 7, 3), seed=0),
        input_names=list(INPUTS),
        output_names=bundle_names(model),
        dynamic_shapes=_dynamic_shapes(),
    )
