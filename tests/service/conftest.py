"""One running service for the tests of a module that only need some service; its meta-models are small and real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live

LIMITS = {"max_image_bytes": 200_000, "max_image_pixels": 1_000_000, "max_request_bytes": 1_000_000}


@pytest.fixture(scope="session")
def meta_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One meta-model for drawings, one for photographs that takes no unlabelled images, and one broken folder."""
    folder = tmp_path_factory.mktemp("meta-models")
    centroids.meta_model(folder)
    centroids.meta_model(folder, name="photos", domain="photographs", accepts_unlabeled=False)
    (folder / "half-written").mkdir()
    return folder


@pytest.fixture
def settings(meta_models: Path, tmp_path: Path) -> Settings:
    return Settings(meta_models=meta_models, state_dir=tmp_path / "state", **LIMITS)


@pytest.fixture(scope="module")
def service(meta_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    state_dir = tmp_path_factory.mktemp("state")
    with live(Settings(meta_models=meta_models, state_dir=state_dir, **LIMITS)) as running:
        yield running
