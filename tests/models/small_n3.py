"""An N3 small enough for tests, its weights nowhere zero, and tasks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import metamodel
from models.export_n3 import export_files, tensor_specs
from models.metamodel import Manifest
from models.methods.n3 import N3, Adaptation, N3Config
from models.nn.bases import BaseSpec
from models.preprocess import PreprocessSpec
from tests.once import once

BASE = BaseSpec("squeezenet1_1", 32)
CONFIG = N3Config(
    BASE, n_features=24, n_remembered=10, token_dim=16, label_dim=16, n_heads=2, n_text_layers=1, n_label_layers=1,
    code_dim=4, column_dim=4, adapts=("features.11", "features.12"), mu=0.3,
)  # fmt: skip


EXPLAINED = replace(CONFIG, token_dim=384, adapts=("features.12",))
"""Its tokens are as wide as those of the text encoder: a service can explain with it."""


class Task(NamedTuple):
    """The inputs of ``N3.generate``."""

    tokens: Tensor
    token_mask: Tensor
    features: Tensor
    feature_mask: Tensor

    def of(self, classes: Tensor) -> Task:
        return Task(*(part[classes] for part in self))


def model(config: N3Config = CONFIG, *, seed: int = 0) -> N3:
    """In evaluation mode; all that is learned is shaken: no difference is zero and no gamma 1, as at the start."""
    torch.manual_seed(seed)
    made = N3(config)
    made.start_decoders()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and not name.startswith("target.base"):
                parameter += 0.1 * torch.randn_like(parameter)
        made.regression.texts.copy_(F.normalize(torch.randn_like(made.regression.texts), dim=-1))
        made.regression.coefficients.normal_(0, 0.5)
    return made.eval()


def half_precise(config: N3Config) -> N3:
    """A small N3 all of whose stored numbers are float16 already, so that the files hold what PyTorch has.

    Its base keeps signals at their size, so that no layer is without a gradient.
    """
    made = model(replace(config, mu=0.25))
    with torch.no_grad():
        for convolution in made.target.base.convolutions.values():
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        for parameter in made.target.parameters():
            parameter.copy_(parameter.half())
        for layer in made.layers:
            decoder = made.decoder(layer)
            decoder.mu.fill_(1)
            decoder.basis.copy_(decoder.basis.half())
    return made.requires_grad_(False)


def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``half_precise(EXPLAINED)``, exported once; not to be changed."""

    def make(folder: Path) -> None:
        made = half_precise(EXPLAINED)
        metamodel.write(folder / "small-n3", manifest(made), export_files(made))

    return once(tmp_path_factory, "explained", make) / "small-n3"


def task(
    lengths: tuple[int, ...] = (4, 7, 0, 2),
    shots: tuple[int, ...] = (2, 0, 1, 3),
    *,
    seed: int = 0,
    token_dim: int = CONFIG.token_dim,
) -> Task:
    """Tokens and images of each class; what is masked is noise, not zeros."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), max(lengths), token_dim, generator=random)
    features = torch.randn(len(shots), max(1, *shots), CONFIG.n_features, generator=random)
    return Task(tokens, _mask(lengths, tokens), features, _mask(shots, features))


def adapt(made: N3, given: Task) -> Adaptation:
    with torch.no_grad():
        return made.generate(*given)


def pixels(n: int, *, size: int = BASE.size, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, size, size, 3), generator=random).to(torch.uint8)


def manifest(made: N3, **changes: object) -> Manifest:
    return Manifest(
        name="small-n3", method="n3", summary="A test.", domain="photographs", max_classes=64, max_images=100,
        preprocess=PreprocessSpec(BASE.size, 3, "crop"), accepts_unlabeled=False, accepts_descriptions=True,
        text_encoder="all-minilm-l6-v2", temperature=1.5, abstain_below=0.4, tensors=tensor_specs(made), files={},
    ).model_copy(update=changes)  # fmt: skip


def _mask(lengths: tuple[int, ...], padded: Tensor) -> Tensor:
    return (torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]).float()
