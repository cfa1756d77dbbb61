"""A run's checkpoint -> a meta-model folder: graphs checked against PyTorch, then calibrated on validation classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from models import metamodel
from models.errors import InvalidMetaModel
from models.export import check_parity, export_files, tensor_specs
from models.metamodel import NAME_PATTERN, Domain, Manifest, MetaModel
from models.methods.hypertransformer import HyperTransformer
from models.preprocess import PreprocessSpec
from training.checkpoint import write_text
from training.data import DATASETS
from training.data.folders import DataError, ImageSet
from training.episodes import EpisodeShape, shrink
from training.evaluate import calibrate
from training.recipes.hypertransformer import METHOD, load_model

MAX_IMAGES = 512


def export(run: Path, folder: Path, *, images: Path | None = None, summary: str = "") -> MetaModel:
    """Write the meta-model of ``run/checkpoint.safetensors`` to ``folder``, whole or not at all.

    ``images``: the user's own class folders the run was trained on, where it was. Raises CheckpointError, DataError
    (also where the run was trained on other images), or InvalidMetaModel where the graphs differ from PyTorch.
    """
    _check_name(folder.name)
    model, header = load_model(run / "checkpoint.safetensors")
    dataset = DATASETS[header["config"]["dataset"]]
    train, validation = dataset.split(images)
    _check_data(header, train)
    files = export_files(model)
    manifest = _manifest(model, folder.name, dataset.domain, dataset.spec, summary)
    parity = check_parity(model, files, manifest)
    draft = metamodel.write(folder.with_name(f".{folder.name}.draft"), manifest, files)
    try:
        temperature, threshold = calibrate(draft, validation, _calibration_shapes(header["config"], validation))
    finally:
        metamodel.remove(draft)
    whole = manifest.model_copy(update={"temperature": round(temperature, 4), "abstain_below": round(threshold, 4)})
    exported = metamodel.write(folder, whole, files)
    training = {"own_images": images is not None, **_training_facts(header, model, train, validation)}
    facts = {"training": training, "parity": parity, "columns": []}
    write_text(folder / "evaluation.json", json.dumps(facts, indent=1) + "\n")
    return exported


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidMetaModel(f"{name!r} cannot name a meta-model; use small letters, digits and hyphens.")


def _check_data(header: dict[str, Any], train: ImageSet) -> None:
    """Raise DataError where a run that says what it was trained on was trained on something else."""
    if header.get("train_data_digest", train.digest) != train.digest:
        remedy = "give the images it was trained on with --images (without, if they were the config's own)"
        raise DataError(f"This run was trained on other images; {remedy}.")


def _manifest(model: HyperTransformer, name: str, domain: Domain, spec: PreprocessSpec, summary: str) -> Manifest:
    config = model.config
    written = (
        "every layer"
        if config.n_generated_layers > config.n_conv_layers
        else f"the last {config.n_generated_layers} layers"
    )
    written = "the logits layer" if config.n_generated_layers == 1 else written
    return Manifest(
        name=name,
        method=METHOD,
        summary=summary
        or f"Conv-{config.n_conv_layers} with {config.channels} channels for {domain}; {written} written for the task.",
        domain=domain,
        preprocess=spec,
        max_classes=config.max_classes,
        max_images=MAX_IMAGES,
        accepts_unlabeled=True,
        temperature=1.0,
        abstain_below=0.0,
        tensors=tensor_specs(config),
        files={},
    )


def _calibration_shapes(config: dict[str, Any], validation: ImageSet) -> list[EpisodeShape]:
    """The kinds of task it was trained for, as far as the validation classes go."""
    shapes = [EpisodeShape(**{**shape, "n_query": min(3, shape["n_query"])}) for _, shape in config["shapes"]]
    most = max(2, validation.n_classes - 1)  # a class less than there are: its images are the unknown ones
    fitting = [shrink(replace(shape, n_way=min(shape.n_way, most)), validation) for shape in shapes]
    return list(dict.fromkeys(fitting))


def _training_facts(
    header: dict[str, Any], model: HyperTransformer, train: ImageSet, validation: ImageSet
) -> dict[str, Any]:
    groups = set(validation.groups)
    unseen = groups if groups.isdisjoint(train.groups) else set(validation.class_names)
    return {
        "config": header["config"],
        "steps": header["step"],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_classes": train.n_classes,
        "train_data_digest": train.digest,
        "validation_groups": sorted(unseen),
    }
