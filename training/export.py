"""A run's checkpoint -> a meta-model folder: graphs checked against PyTorch, then calibrated on validation classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import metamodel
from models.export import check_parity, export_files, tensor_specs
from models.metamodel import Manifest, MetaModel
from models.methods.hypertransformer import HyperTransformer
from models.preprocess import PreprocessSpec
from training.checkpoint import write_text
from training.data import DATASETS
from training.data.folders import ImageSet
from training.episodes import EpisodeShape
from training.evaluate import calibrate
from training.recipes.hypertransformer import METHOD, load_model

MAX_IMAGES = 512


def export(run: Path, folder: Path, *, images: Path | None = None, summary: str = "") -> MetaModel:
    """Write the meta-model of ``run/checkpoint.safetensors`` to ``folder``, whole or not at all.

    ``images``: the user's own class folders the run was trained on, where it was. Raises CheckpointError, DataError, or
    InvalidMetaModel where the graphs differ from PyTorch.
    """
    model, header = load_model(run / "checkpoint.safetensors")
    dataset = DATASETS[header["config"]["dataset"]]
    train, validation = dataset.split(images)
    files = export_files(model)
    manifest = _manifest(model, folder.name, dataset.domain, dataset.spec, summary)
    parity = check_parity(model, files, manifest)
    draft = metamodel.write(folder.with_name(f".{folder.name}.draft"), manifest, files)
    temperature, threshold = calibrate(draft, validation, _calibration_shapes(header["config"], validation))
    metamodel.remove(draft)
    whole = manifest.model_copy(update={"temperature": round(temperature, 4), "abstain_below": round(threshold, 4)})
    exported = metamodel.write(folder, whole, files)
    facts = {"training": _training_facts(header, model, train, validation), "parity": parity, "columns": []}
    write_text(folder / "evaluation.json", json.dumps(facts, indent=1) + "\n")
    return exported


def _manifest(model: HyperTransformer, name: str, domain: str, spec: PreprocessSpec, summary: str) -> Manifest:
    config = model.config
    written = "every layer" if config.n_generated_layers > config.n_conv_layers else f"the last {config.n_generated_layers} layers"
    written = "the logits layer" if config.n_generated_layers == 1 else written
    return Manifest(
        name=name,
        method=METHOD,
        summary=summary or f"Conv-{config.n_conv_layers} with {config.channels} channels for {domain}; {written} written for the task.",
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
    return [shape for shape in shapes if shape.n_way <= validation.n_classes]


def _training_facts(
    header: dict[str, Any], model: HyperTransformer, train: ImageSet, validation: ImageSet
) -> dict[str, Any]:
    return {
        "config": header["config"],
        "steps": header["step"],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_classes": train.n_classes,
        "train_data_digest": train.digest,
        "validation_groups": sorted(set(validation.groups)),
    }
