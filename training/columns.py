"""Which figures a card shows: the standard columns of each data set, and one column on a user's own images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import quantised
from models.metamodel import MetaModel
from training import card, described_tasks, fine_tuning
from training.checkpoint import refuse_other_classes, refuse_other_images, refuse_other_source, write_text
from training.command_line import command_line
from training.data import DATASETS, descriptions
from training.data.descriptions import ClassTexts
from training.data.folders import DataError, ImageSet, read_images
from training.episodes import EpisodeShape, drawable, shrink
from training.evaluate import evaluate
from training.quantise import quantise

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

DESCRIBED = (
    EpisodeShape(10, 0, 10),
    EpisodeShape(40, 0, 10),
    EpisodeShape(5, 1, 5),
    EpisodeShape(5, 5, 5),
    EpisodeShape(5, 20, 5),
)
"""Of those that read words; with 0 images of each class, words are all there is."""
COMPARISON = "comparison.json"
FULL_WAYS = 10
"""An episode of more classes asks about more images: there are fewer of them, and as many images in all."""


def evaluate_standard(
    meta_model: MetaModel, *, n_episodes: int = 1000, seed: int = 0, n_fine_tuned: int = 0
) -> dict[str, Any]:
    """Evaluate on the validation classes of its data set; writes evaluation.json and CARD.md into the folder.

    ``n_fine_tuned``: episodes of each column with images that its base is fine-tuned on, too. Raises DataError where it
    was trained on a user's own images, or does not say on which, or other classes than those that validate now were
    held out of it, or there is nothing to fine-tune.
    """
    _refuse_fine_tuning(meta_model, n_fine_tuned)
    evaluation = _trained_on(meta_model)
    _comparison(meta_model)  # what the card will hold is read before anything is measured
    dataset = DATASETS[evaluation["training"]["config"]["dataset"]]
    images = dataset.load("validation", size=meta_model.manifest.preprocess.size)
    refuse_other_classes(evaluation["training"], images)
    drawn = {"episodes": n_episodes, "seed": seed, "fine-tuning": n_fine_tuned or None}
    evaluation["command"] = command_line("evaluate", [meta_model.folder], drawn)
    if meta_model.manifest.accepts_descriptions:
        texts = descriptions.of_dataset(dataset.name)
        evaluation["columns"] = [
            _described(meta_model, images, texts, shape, n_episodes=n, seed=seed, n_fine_tuned=n_fine_tuned)
            for shape, n in described_columns(images, n_episodes, shots=meta_model.manifest.accepts_images)
        ]
    else:
        evaluation["columns"] = [
            evaluate(meta_model, images, shape, n_episodes=n_episodes, seed=seed, within_group=within)
            for shape, within in STANDARD[dataset.name]
            if not within or max(Counter(images.groups).values()) >= shape.n_way
        ]
    write_text(meta_model.folder / "evaluation.json", json.dumps(evaluation, indent=1) + "\n")
    write_card(meta_model)
    return evaluation


def write_card(meta_model: MetaModel) -> None:
    """CARD.md, from the evaluation.json and, where there are any, the comparison.json and int8.json beside it.

    Raises DataError where comparison.json is damaged.
    """
    evaluation = json.loads((meta_model.folder / "evaluation.json").read_text())
    found = quantised.read(meta_model)
    rendered = card.render(meta_model.manifest, evaluation, _comparison(meta_model), found[1] if found else None)
    write_text(meta_model.folder / "CARD.md", rendered)


def quantise_trained(
    meta_model: MetaModel, *, images: Path | None = None, n_episodes: int = 100, seed: int = 0
) -> quantised.Facts:
    """Quantise by the classes that it was trained on, compare on those that validate, and write the card anew.

    ``images``: the user's own class folders, where it was trained on them. Raises DataError where that is not so, also
    where they have changed since, and as ``training.quantise``.
    """
    training = _evaluation(meta_model)["training"]
    _comparison(meta_model)
    refuse_other_source(training, images)
    dataset = DATASETS[training["config"]["dataset"]]
    size, train_size = meta_model.manifest.preprocess.size, training["config"].get("train_size")
    train, validation = dataset.split(images, size=size, train_size=train_size)
    refuse_other_images(training, train)
    texts = descriptions.of(dataset.name, images)
    options = {"episodes": n_episodes, "seed": seed, "images": images}
    command = command_line("quantise", [meta_model.folder], options)
    facts = quantise(meta_model, train, validation, texts, n_episodes=n_episodes, seed=seed, command=command)
    write_card(meta_model)
    return facts


def described_columns(images: ImageSet, n_episodes: int, *, shots: bool) -> list[tuple[EpisodeShape, int]]:
    """The columns of classes that are described, as far as the images go, and how many episodes each takes.

    Fewer queries and classes than a column wants will do; of fewer images to learn from it would be another column.
    """
    wanted = [(shape, shrink(shape, images)) for shape in DESCRIBED if shots or not shape.n_shot]
    shapes = dict.fromkeys(found for shape, found in wanted if found.n_shot == shape.n_shot)
    return [(shape, min(n_episodes, max(2, n_episodes * FULL_WAYS // shape.n_way))) for shape in shapes]


def evaluate_images(
    meta_model: MetaModel,
    source: Path,
    shape: EpisodeShape,
    *,
    within_group: bool,
    n_episodes: int,
    seed: int,
    n_fine_tuned: int = 0,
) -> dict[str, Any]:
    """One column on any class-by-folder images, and their ``descriptions.json`` where words are read; what repeats it.

    Raises DataError where the meta-model reads no words and is to get no image, or the other way round; where it takes
    no unlabelled images and is to get some; where the classes have no groups, or none of enough classes; where a class
    has too few images; and where there is nothing to fine-tune.
    """
    _refuse_fine_tuning(meta_model, n_fine_tuned, shape.n_shot)
    if not shape.n_shot and not meta_model.manifest.accepts_descriptions:
        raise DataError(f"{meta_model.name} reads images alone; give it --shots 1 or more.")
    if shape.n_shot and not meta_model.manifest.accepts_images:
        raise DataError(f"{meta_model.name} reads words alone; evaluate it with --shots 0.")
    if shape.n_unlabeled and not meta_model.manifest.accepts_unlabeled:
        raise DataError(f"{meta_model.name} takes no unlabelled images; leave out --unlabeled.")
    images = read_images(source, meta_model.manifest.preprocess)
    if within_group and len(set(images.groups)) == images.n_classes:
        raise DataError(f"The classes of {source} are not in groups (folders above theirs); leave out --within-group.")
    options = {"images": source, "ways": shape.n_way, "shots": shape.n_shot, "queries": shape.n_query}
    options |= {"unlabeled": shape.n_unlabeled or None, "within-group": within_group}
    options |= {"episodes": n_episodes, "seed": seed, "fine-tuning": n_fine_tuned or None}
    if meta_model.manifest.accepts_descriptions:
        texts = descriptions.read_descriptions(descriptions.beside(source))
        column = _described(
            meta_model,
            images,
            texts,
            shape,
            n_episodes=n_episodes,
            seed=seed,
            n_fine_tuned=n_fine_tuned,
            within_group=within_group,
        )
    else:
        column = evaluate(meta_model, images, shape, n_episodes=n_episodes, seed=seed, within_group=within_group)
    return {**column, "command": command_line("evaluate", [meta_model.folder], options)}


def evaluate_every_image(meta_model: MetaModel, source: Path | None = None, *, seed: int = 0) -> dict[str, Any]:
    """The papers' zero-shot protocol on the test classes of its data set, or on any class-by-folder images.

    Raises DataError where the meta-model reads no words, there are no test classes, or more than it tells apart, and
    where the data set trains on other classes now than this meta-model did, which may have met those it tests.
    """
    manifest = meta_model.manifest
    if not manifest.accepts_descriptions:
        raise DataError(f"{meta_model.name} reads images alone; evaluate it without --every-image.")
    if source is None:
        training = _trained_on(meta_model)["training"]
        dataset = DATASETS[str(training["config"]["dataset"])]
        remedy = f"those that {dataset.name} tests may be among them: put back the lists and images it was trained on"
        refuse_other_images(training, dataset.load("train", size=manifest.preprocess.size), remedy)
        images = dataset.load("test", size=manifest.preprocess.size)
        texts = descriptions.of_dataset(dataset.name)
    else:
        images = read_images(source, manifest.preprocess)
        texts = descriptions.read_descriptions(descriptions.beside(source))
    if images.n_classes > manifest.max_classes:
        found = (
            f"These are {images.n_classes} classes, and {meta_model.name} tells {manifest.max_classes} apart at most"
        )
        raise DataError(f"{found}; give it fewer with --images.")
    figures = described_tasks.every_image(meta_model, images, texts, seed=seed)
    options = {"every-image": True, "images": source, "seed": seed}
    return {**figures, "command": command_line("evaluate", [meta_model.folder], options)}


def _trained_on(meta_model: MetaModel) -> dict[str, Any]:
    """What evaluation.json says; raises DataError where it is of a user's own images, or missing."""
    evaluation = _evaluation(meta_model)
    if evaluation["training"].get("own_images"):
        raise DataError(f"{meta_model.name} was trained on your own images; evaluate it on others with --images.")
    return evaluation


def _evaluation(meta_model: MetaModel) -> dict[str, Any]:
    path = meta_model.folder / "evaluation.json"
    try:
        evaluation: dict[str, Any] = json.loads(path.read_text())
        evaluation["training"]["config"]["dataset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"does not say how it was trained ({error!r})"
        raise DataError(f"{path} {why}; export the meta-model again, or give --images.") from error
    return evaluation


def _comparison(meta_model: MetaModel) -> dict[str, Any] | None:
    path = meta_model.folder / COMPARISON
    try:
        comparison: dict[str, Any] = json.loads(path.read_text())
        card.compared(comparison)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no comparison ({error!r}); write it again, or delete it.") from error
    return comparison


def _described(
    meta_model: MetaModel,
    images: ImageSet,
    texts: Mapping[str, ClassTexts],
    shape: EpisodeShape,
    *,
    n_episodes: int,
    seed: int,
    n_fine_tuned: int,
    within_group: bool = False,
) -> dict[str, Any]:
    """One column of classes that are described; where it has images, fine-tuning on the first episodes beside it."""
    drawn = drawable(images, shape, within_group=within_group)
    column = described_tasks.evaluate(
        meta_model, drawn, texts, shape, n_episodes=n_episodes, seed=seed, within_group=within_group
    )
    column |= {"data_digest": images.digest, "n_classes": images.n_classes}  # of the images given, some drawn or all
    if not n_fine_tuned or not shape.n_shot:
        return column
    subject = described_tasks.Subject(meta_model, drawn, texts, within_group=within_group)
    compared = fine_tuning.compare(subject, shape, n_episodes=min(n_fine_tuned, n_episodes), seed=seed)
    accuracy = {**column["accuracy"], "fine_tuned": compared["accuracy"]["fine_tuned"]}
    return {**column, "accuracy": accuracy, "fine_tuning": compared}


def _refuse_fine_tuning(meta_model: MetaModel, n_fine_tuned: int, n_shot: int = 1) -> None:
    """Before anything is measured; raises DataError."""
    manifest = meta_model.manifest
    if n_fine_tuned and not (manifest.accepts_descriptions and manifest.accepts_images):
        what = "a base, and images to fine-tune it on"
        raise DataError(f"{meta_model.name} lacks {what}, as n3-mobilenet has; leave out --fine-tuning.")
    if n_fine_tuned and not n_shot:
        raise DataError("There are no images to fine-tune on; give --shots 1 or more, or leave out --fine-tuning.")
