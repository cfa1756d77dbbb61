"""Which figures a card shows: the standard columns of each data set, and one column on a user's own images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.metamodel import MetaModel
from training import card, described_tasks
from training.checkpoint import write_text
from training.data import DATASETS, descriptions
from training.data.folders import DataError, ImageSet, read_images
from training.episodes import EpisodeShape, shrink
from training.evaluate import evaluate

Column = tuple[EpisodeShape, bool]
STANDARD: dict[str, tuple[Column, ...]] = {
    "omniglot": (
        (EpisodeShape(20, 1, 5), False),
        (EpisodeShape(20, 1, 5), True),
        (EpisodeShape(20, 5, 5), False),
        (EpisodeShape(20, 1, 5, n_unlabeled=4), False),
        (EpisodeShape(5, 1, 5), False),
    ),
    "cifar-fs": ((EpisodeShape(5, 1, 15), False), (EpisodeShape(5, 5, 15), False), (EpisodeShape(10, 5, 15), False)),
}
"""Of those that read no words: shape, and whether all classes of a task come from one group (the harder column)."""

DESCRIBED = (EpisodeShape(10, 0, 10), EpisodeShape(40, 0, 10), EpisodeShape(5, 1, 5), EpisodeShape(5, 5, 5))
"""Of those that read words; with 0 images of each class, words are all there is."""
FEWER = 20
"""An episode of 40 classes has as many images as these of 10 have; fewer of them make as good a mean."""


def evaluate_standard(meta_model: MetaModel, *, n_episodes: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Evaluate on the validation classes of its data set; writes evaluation.json and CARD.md into the folder.

    Raises DataError where it was trained on a user's own images, or does not say on which.
    """
    path = meta_model.folder / "evaluation.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; export the meta-model again, or give --images.")
    evaluation: dict[str, Any] = json.loads(path.read_text())
    if evaluation["training"].get("own_images"):
        raise DataError(f"{meta_model.name} was trained on your own images; evaluate it on others with --images.")
    dataset = DATASETS[evaluation["training"]["config"]["dataset"]]
    images = dataset.load("validation", size=meta_model.manifest.preprocess.size)
    evaluation["command"] = f"training evaluate models/zoo/{meta_model.name} --episodes {n_episodes} --seed {seed}"
    if meta_model.manifest.accepts_descriptions:
        texts = descriptions.of_dataset(dataset.name)
        evaluation["columns"] = [
            described_tasks.evaluate(meta_model, images, texts, shape, n_episodes=n, seed=seed)
            for shape, n in described_columns(images, n_episodes, shots=meta_model.manifest.accepts_images)
        ]
    else:
        evaluation["columns"] = [
            evaluate(meta_model, images, shape, n_episodes=n_episodes, seed=seed, within_group=within)
            for shape, within in STANDARD[dataset.name]
        ]
    write_text(path, json.dumps(evaluation, indent=1) + "\n")
    write_text(meta_model.folder / "CARD.md", card.render(meta_model.manifest, evaluation))
    return evaluation


def described_columns(images: ImageSet, n_episodes: int, *, shots: bool) -> list[tuple[EpisodeShape, int]]:
    """The columns of classes that are described, as far as the images go, and how many episodes each takes."""
    shapes = dict.fromkeys(shrink(shape, images) for shape in DESCRIBED if shots or not shape.n_shot)
    fewer = max(2, n_episodes // FEWER)
    return [(shape, fewer if shape.n_way == images.n_classes else n_episodes) for shape in shapes]


def evaluate_images(
    meta_model: MetaModel, source: Path, shape: EpisodeShape, *, within_group: bool, n_episodes: int, seed: int
) -> dict[str, Any]:
    """One column on any class-by-folder images, and their ``descriptions.json`` where words are read.

    Raises DataError where the meta-model reads no words and is to get no image, or the other way round.
    """
    if not shape.n_shot and not meta_model.manifest.accepts_descriptions:
        raise DataError(f"{meta_model.name} reads images alone; give it --shots 1 or more.")
    if shape.n_shot and not meta_model.manifest.accepts_images:
        raise DataError(f"{meta_model.name} reads words alone; evaluate it with --shots 0.")
    images = read_images(source, meta_model.manifest.preprocess)
    if meta_model.manifest.accepts_descriptions:
        texts = descriptions.read_descriptions(descriptions.beside(source))
        return described_tasks.evaluate(meta_model, images, texts, shape, n_episodes=n_episodes, seed=seed)
    return evaluate(meta_model, images, shape, n_episodes=n_episodes, seed=seed, within_group=within_group)
