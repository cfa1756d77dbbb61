"""A run's checkpoint -> a meta-model folder: graphs checked against PyTorch, then calibrated on validation classes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import export_hypertransformer, export_n3, metamodel
from models.errors import InvalidMetaModel
from models.metamodel import NAME_PATTERN, Manifest, MetaModel
from models.methods.hypertransformer import HyperTransformer
from training import checkpoint, described_tasks, pretrained
from training.columns import COMPARISON
from training.data import DATASETS, descriptions
from training.data.dataset import Dataset
from training.data.folders import DataError, ImageSet
from training.episodes import EpisodeShape, shrink
from training.evaluate import calibrate
from training.recipes import hypertransformer, n3

MAX_IMAGES = 512
MAX_CLASSES = 64


@dataclass(frozen=True)
class Draft:
    """An export before it is calibrated; ``parity``: how far ONNX Runtime is from PyTorch."""

    manifest: Manifest
    files: dict[str, bytes]
    parity: dict[str, float]
    n_parameters: int


def export(run: Path, folder: Path, *, images: Path | None = None, summary: str = "") -> MetaModel:
    """Write the meta-model of ``run/checkpoint.safetensors`` to ``folder``, whole or not at all.

    ``images``: the user's own class folders the run was trained on, where it was. Of a meta-model that is there, the
    comparison.json stays where this run is among those compared; all else is of the former weights. Raises
    CheckpointError, DataError (also where the run was trained on other images, and where the folder holds something
    else than a meta-model), or InvalidMetaModel where the graphs differ from PyTorch.
    """
    _check_name(folder.name)
    _check_folder(folder)
    path = run / "checkpoint.safetensors"
    header = checkpoint.read_header(path)
    _check_run(header, path)
    checkpoint.refuse_other_source(header, images)
    dataset = DATASETS[header["config"]["dataset"]]
    is_n3 = header["method"] == n3.METHOD
    size = header["config"]["model"]["base"]["size"] if is_n3 else None
    train, validation = dataset.split(images, size=size, train_size=header["config"].get("train_size"))
    checkpoint.refuse_other_images(header, train)
    compared = _comparison_of(folder, header)
    draft = (_draft_n3 if is_n3 else _draft_hypertransformer)(path, folder.name, dataset, summary)
    trial = metamodel.write(folder.with_name(f".{folder.name}.draft"), draft.manifest, draft.files)
    try:
        if is_n3:
            calibrated = described_tasks.calibrate(trial, validation, descriptions.of(dataset.name, images))
        else:
            calibrated = calibrate(trial, validation, _calibration_shapes(header["config"], validation))
    finally:
        metamodel.remove(trial)
    training = {"own_images": images is not None, **_training_facts(header, draft, train, validation)}
    facts = {"training": training, "parity": draft.parity, "columns": []}
    beside = {"evaluation.json": (json.dumps(facts, indent=1) + "\n").encode(), **compared}
    manifest = draft.manifest.model_copy(update=calibrated._asdict())
    return metamodel.write(folder, manifest, draft.files, beside=beside)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidMetaModel(f"{name!r} cannot name a meta-model; use small letters, digits and hyphens.")


def _check_folder(folder: Path) -> None:
    """Raise DataError where all that the folder holds would be lost for a meta-model, and it is none."""
    try:
        written = json.loads((folder / "manifest.json").read_bytes())
        is_meta_model = isinstance(written, dict) and {"name", "method", "files"} <= written.keys()
    except (OSError, ValueError):
        is_meta_model = False
    if not is_meta_model and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(
            f"{folder} is there and is no meta-model: an export would delete what it holds; give --to a new folder, "
            "whose name becomes the meta-model's."
        )


def _check_run(header: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where a run is of no method, or its network takes what the service does not give."""
    if header.get("method") not in (n3.METHOD, hypertransformer.METHOD):
        remedy = "`training fit n3`, by a config that names it, makes a meta-model of a base"
        raise checkpoint.CheckpointError(
            f"{path} is of no method that can be exported ({header.get('method')}); {remedy}."
        )
    if header["config"]["model"].get("normalisation") == "query":
        why = "its answers depend on the other queries, and the service gives each image its own"
        raise checkpoint.CheckpointError(f"{path} is for comparison in training alone: {why}; fit another config.")
    embeddings = header["config"].get("embeddings", "contextual")
    if embeddings != "contextual":
        remedy = "`training compare-words` measures it; to export, fit a config of contextual ones"
        raise checkpoint.CheckpointError(
            f"{path} learned from {embeddings} embeddings, which no service makes; {remedy}."
        )


def _comparison_of(folder: Path, header: dict[str, Any]) -> dict[str, bytes]:
    """The folder's comparison.json by its name, where this run is in it as far as it says; DataError if unreadable."""
    path = folder / COMPARISON
    if not path.is_file():
        return {}
    written = path.read_bytes()
    known = {**header["config"], "steps": header["step"], "train_data_digest": header.get("train_data_digest")}
    try:
        runs = [
            {**run["config"], "steps": run["steps"], "train_data_digest": run["train_data_digest"]}
            for run in json.loads(written)["runs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no comparison ({error!r}); write it again, or delete it.") from error
    return {COMPARISON: written} if any(known | run == known for run in runs) else {}


def _draft_hypertransformer(path: Path, name: str, dataset: Dataset, summary: str) -> Draft:
    model, header = hypertransformer.load_model(path)
    files = export_hypertransformer.export_files(model)
    manifest = Manifest(
        name=name,
        method=hypertransformer.METHOD,
        summary=summary or _summary(model, dataset),
        domain=dataset.domain,
        preprocess=dataset.spec,
        max_classes=model.config.max_classes,
        max_images=MAX_IMAGES,
        accepts_unlabeled=True,
        unlabeled_sharpness=header["config"].get("unlabeled_sharpness"),
        mirrored_support=model.config.mirrored_support,
        shifted_support=model.config.shifted_support,
        temperature=1.0,
        abstain_below=0.0,
        tensors=export_hypertransformer.tensor_specs(model.config),
        files={},
    )
    parity = export_hypertransformer.check_parity(model, files, manifest)
    return Draft(manifest, files, parity, sum(p.numel() for p in model.parameters()))


def _draft_n3(path: Path, name: str, dataset: Dataset, summary: str) -> Draft:
    model, header = n3.load_model(path)
    files = export_n3.export_files(model)
    base, size = model.config.base.architecture, model.config.base.size
    what = "every layer adapted" if model.layers else "the classification layer written"
    shots = header["config"]["shots"]
    manifest = Manifest(
        name=name,
        method=n3.METHOD,
        summary=summary or f"{base} for {dataset.domain} of {size} px; {what} for the task, by words, images or both.",
        domain=dataset.domain,
        preprocess=replace(dataset.spec, size=size),
        max_classes=MAX_CLASSES,
        max_images=MAX_IMAGES,
        accepts_images=max(shots) > 0,
        accepts_descriptions=True,
        accepts_unlabeled=False,
        text_encoder=header["config"]["text_encoder"],
        refinement=header["config"].get("refinement"),
        temperature=1.0,
        abstain_below=0.0,
        tensors=export_n3.tensor_specs(model),
        files={},
    )
    learned = [p for n, p in model.named_parameters() if not n.startswith("target.")]
    return Draft(manifest, files, export_n3.check_parity(model, files, manifest), sum(p.numel() for p in learned))


def _summary(model: HyperTransformer, dataset: Dataset) -> str:
    config = model.config
    written = (
        "every layer"
        if config.n_generated_layers > config.n_conv_layers
        else f"the last {config.n_generated_layers} layers"
    )
    written = "the logits layer" if config.n_generated_layers == 1 else written
    features = f" and {config.feature_dim} features" if config.pooling == "ceil" or not config.pools_last else ""
    return (
        f"Conv-{config.n_conv_layers} with {config.channels} channels{features} for {dataset.domain}; "
        f"{written} written for the task."
    )


def _calibration_shapes(config: dict[str, Any], validation: ImageSet) -> list[EpisodeShape]:
    """The kinds of task it was trained for, as far as the validation classes go."""
    shapes = [EpisodeShape(**{**shape, "n_query": min(3, shape["n_query"])}) for _, shape in config["shapes"]]
    most = max(2, validation.n_classes - 1)  # a class less than there are: its images are the unknown ones
    fitting = [shrink(replace(shape, n_way=min(shape.n_way, most)), validation) for shape in shapes]
    return list(dict.fromkeys(fitting))


def _training_facts(header: dict[str, Any], draft: Draft, train: ImageSet, validation: ImageSet) -> dict[str, Any]:
    groups, config = set(validation.groups), header["config"]
    unseen = groups if groups.isdisjoint(train.groups) else set(validation.class_names)
    return {
        "config": config,
        "steps": header["step"],
        "n_parameters": draft.n_parameters,
        "train_classes": train.n_classes,
        "train_data_digest": train.digest,
        "validation_groups": sorted(unseen),
        **{name: header[name] for name in ("descriptions_digest",) if name in header},
        **({"base": header.get("base_origin") or pretrained.origin(config["base"])} if "base" in config else {}),
    }
