"""One thread for PyTorch, and one real export for all tests (PyTorch's exporter takes seconds)."""

from __future__ import annotations

import pytest
import torch

from models.metamodel import MetaModel
from tests.models import small

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    """The folder of ``small.model()``."""
    return small.exported(tmp_path_factory)
