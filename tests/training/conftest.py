"""One thread for PyTorch; drawings and described cloths as folders, and what is trained on them once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.metamodel import MetaModel
from tests.models import small as small_models
from tests.once import once
from tests.training import described, small
from training import described_tasks
from training.data import DATASETS, omniglot
from training.data.descriptions import beside, read_descriptions
from training.data.folders import ImageSet, read_images
from training.episodes import EpisodeShape
from training.export import export
from training.recipes import base, n3

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<alphabet>/<character>/<hand>.png``: 14 characters of three alphabets, each by 8 hands."""
    return small.write_folders(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="session")
def drawings(folders: Path) -> ImageSet:
    return read_images(folders, omniglot.SPEC)


@pytest.fixture(scope="session")
def cloths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<class>/<number>.png`` of described cloths, and ``descriptions.json``; skips where no encoder reads them."""
    described.skip_without_encoder()
    return once(tmp_path_factory, "cloths", described.write_folders)


@pytest.fixture(scope="session")
def cloth_base(cloths: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a base that met the training classes of ``cloths``."""

    def make(run: Path) -> None:
        base.fit(described.BASE, *DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE), run, small.CPU)

    return once(tmp_path_factory, "cloth-base", make) / "checkpoint.safetensors"


@pytest.fixture(scope="session")
def cloth_run(cloths: Path, cloth_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of N3 on the training classes of ``cloths``."""

    def make(run: Path) -> None:
        texts = read_descriptions(beside(cloths))
        train, validation = DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)
        config = described.config(cloth_base)
        n3.fit(config, train, validation, run, small.CPU, texts=texts, own_images=True, validate_every=2)

    return once(tmp_path_factory, "cloth-run", make)


@pytest.fixture(scope="session")
def cloth_zoo(cloths: Path, cloth_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that run's meta-model, evaluated on all classes: words alone, and words with an image."""

    def make(zoo: Path) -> None:
        texts = read_descriptions(beside(cloths))
        with pytest.MonkeyPatch.context() as few:
            few.setattr(described_tasks, "CALIBRATION", (EpisodeShape(2, 0, 2),))
            few.setattr(described_tasks, "N_AGNOSTIC", 2)
            meta_model = export(cloth_run, zoo / "cloths", images=cloths)
            images = read_images(cloths, meta_model.manifest.preprocess)
            columns = [
                described_tasks.evaluate(meta_model, images, texts, EpisodeShape(3, n, 2), n_episodes=3, progress=False)
                for n in (0, 1)
            ]
        path = zoo / "cloths" / "evaluation.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "columns": columns}))

    return once(tmp_path_factory, "cloth-zoo", make)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return small_models.exported(tmp_path_factory)
