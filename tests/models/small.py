"""A HyperTransformer small enough for tests, its weights nowhere zero, tasks for it, and a real export of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from models import metamodel
from models.bundle import Bundle, decode, encode
from models.export_hypertransformer import export_files, tensor_specs
from models.generator import OnnxGenerator
from models.metamodel import Manifest, MetaModel
from models.methods.hypertransformer import HyperTransformer, HyperTransformerConfig
from models.preprocess import PreprocessSpec
from models.task import ClassSpec, TaskSpec
from tests.once import once

CONFIG = HyperTransformerConfig(
    channels=4, n_transformer_layers=1, n_heads=2, token_dim=16, label_dim=8, image_embedding_dim=8,
    activation_embedding_dim=8, max_classes=12,
)  # fmt: skip
EXPORTED = replace(CONFIG, n_conv_layers=3, n_generated_layers=4, pooling="ceil", shifted_support=2)
"""Three convolutions, all written, the last pooled from 7 to 4 wide: exported in seconds."""


class Tasks(NamedTuple):
    """B random tasks: normalised support and query images, labels and slots; see HyperTransformer.generate."""

    support: Tensor
    labels: Tensor
    slots: Tensor
    queries: Tensor


def model(config: HyperTransformerConfig = CONFIG, *, seed: int = 0) -> HyperTransformer:
    """A model in evaluation mode whose every parameter was shaken: written differences are not zero as at the start."""
    torch.manual_seed(seed)
    made = HyperTransformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        made.base_mean.normal_(0, 0.1)
        made.base_var.uniform_(0.5, 1.5)
    return made.eval()


def tasks(
    config: HyperTransformerConfig = CONFIG,
    *,
    n_tasks: int = 2,
    shots: tuple[int, ...] = (2, 2, 2),
    n_unlabeled: int = 1,
    n_query: int = 4,
    seed: int = 0,
) -> Tasks:
    """``shots``: the labelled images of each class. Slots are random, and different in each task."""
    random = torch.Generator().manual_seed(seed)
    n_way, n_support = len(shots), sum(shots) + n_unlabeled
    size = (config.image_channels, config.image_size, config.image_size)
    images = torch.randn((n_tasks, n_support + n_query, *size), generator=random)
    slots = torch.stack([torch.randperm(config.max_classes, generator=random)[:n_way] for _ in range(n_tasks)])
    labelled = slots.repeat_interleave(torch.tensor(shots), dim=1)
    labels = torch.cat([labelled, torch.full((n_tasks, n_unlabeled), config.max_classes)], dim=1)
    return Tasks(images[:, :n_support], labels, slots, images[:, n_support:])


def answers(made: HyperTransformer, given: Tasks) -> Tensor:
    """Logits ``(B, Q, K)``."""
    with torch.no_grad():
        return made.classify(made.generate(given.support, given.labels, given.slots), given.queries)


def manifest(config: HyperTransformerConfig = EXPORTED, **changes: object) -> Manifest:
    return Manifest(
        name="small", method="hypertransformer", summary="A test.", domain="drawings", max_classes=config.max_classes,
        max_images=100, preprocess=PreprocessSpec(config.image_size, 1, "pad", True), accepts_unlabeled=True,
        mirrored_support=config.mirrored_support, shifted_support=config.shifted_support,
        temperature=1.5, abstain_below=0.4, tensors=tensor_specs(config), files={},
    ).model_copy(update=changes)  # fmt: skip


def exported(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    """The folder of ``model(EXPORTED)``: exported once, this process's own copy."""

    def make(folder: Path) -> None:
        metamodel.write(folder / "small", manifest(), export_files(model(EXPORTED)))

    made = once(tmp_path_factory, "small", make) / "small"
    return metamodel.load(shutil.copytree(made, tmp_path_factory.mktemp("exported") / "small"))


def spec(*, shots: tuple[int, ...] = (2, 1, 3), n_unlabeled: int = 1, seed: int = 0) -> TaskSpec:
    """A task of random pixels for the exported model."""
    size, rng = EXPORTED.image_size, np.random.default_rng(seed)

    def draw(n: int) -> tuple[np.ndarray, ...]:
        return tuple(rng.integers(0, 256, (n, size, size, 1), dtype=np.uint8))

    classes = [ClassSpec(f"class {k}", images=draw(n)) for k, n in enumerate(shots)]
    return TaskSpec(tuple(classes), draw(n_unlabeled))


def stored(written: MetaModel, task: TaskSpec) -> Bundle:
    """The task's bundle, as read back from its bytes."""
    return decode(encode(OnnxGenerator().generate(written, task)))


def pixels(n: int, *, seed: int = 1) -> np.ndarray:
    size = EXPORTED.image_size
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1), dtype=np.uint8)
