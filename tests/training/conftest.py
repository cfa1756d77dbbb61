"""One thread for PyTorch; drawings of the invented alphabet as folders and as pixels; and one real export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.metamodel import MetaModel
from tests.models import small as small_models
from tests.training import small
from training.data import omniglot
from training.data.folders import ImageSet, read_images

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<alphabet>/<character>/<hand>.png``: 14 characters of three alphabets, each by 8 hands."""
    return small.write_folders(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="session")
def drawings(folders: Path) -> ImageSet:
    return read_images(folders, omniglot.SPEC)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return small_models.meta_model(tmp_path_factory.mktemp("exported") / "small")
