"""Checkpoints: one safetensors file of tensors with a JSON header, written atomically, resumed from exactly.

A run needs no stored generator state: every episode is a function of (seed, step, rank).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from training.data.folders import DataError, ImageSet

FORMAT_VERSION = 1
GIVE_IMAGES = "give the images it was trained on with --images (without, if they were the config's own)"


class CheckpointError(Exception):
    """A checkpoint that must not be loaded; the message says why and what to do."""


def save(path: Path, model: nn.Module, optimizer: Optimizer | None, header: Mapping[str, Any]) -> None:
    """Write model, optimizer state and a JSON-able header; the file appears whole or not at all.

    Raises CheckpointError where it cannot be written (a full disk); the one before is still there then.
    """
    tensors = {f"model/{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        tensors |= _optimizer_tensors(optimizer)
    metadata = {"header": json.dumps({"format": FORMAT_VERSION, **header})}
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".partial")
    try:
        save_file(tensors, staging, metadata=metadata)
        os.replace(staging, path)
    except (SafetensorError, OSError) as error:
        remedy = "make room there, and run the same command again: it goes on from the last checkpoint"
        raise CheckpointError(f"{path} could not be written ({error}); {remedy}.") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header alone; raises CheckpointError where the file is missing, half written or of another format."""
    return _read(path, header_alone=True)[0]


def load(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Load into the model (and the optimizer) in place; returns the header."""
    header, tensors = _read(path)
    weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} belongs to another architecture; start a new run folder. ({error})") from error
    if optimizer is not None:
        _load_optimizer(optimizer, tensors, path)
    return header


def refuse_other(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a run was begun with other settings; those that it does not know of are left."""
    known, asked = (json.loads(json.dumps(settings)) for settings in (saved, wanted))
    changed = [name for name, value in asked.items() if known.get(name, value) != value]
    if changed:
        raise CheckpointError(
            f"{path} was trained with another {', '.join(changed)}; start a new run folder with --run."
        )


def refuse_other_images(trained: Mapping[str, Any], train: ImageSet, remedy: str = GIVE_IMAGES) -> None:
    """Raise DataError where what says by which images it was trained (a header, a card's facts) names others."""
    if trained.get("train_data_digest", train.digest) != train.digest:
        raise DataError(f"This run was trained on other images; {remedy}.")


def refuse_other_source(trained: Mapping[str, Any], images: Path | None) -> None:
    """Raise DataError, before an image is read, where own ``images`` are missing, or given to what learned from others.

    ``trained``: as of ``refuse_other_images``, which is to see what an older one, that does not say, was trained on.
    """
    own = trained.get("own_images", images is not None)
    if own and images is None:
        raise DataError("This was trained on your own images; give them with --images.")
    if images is not None and not own:
        raise DataError("This was trained on the images of its config's data set; leave out --images.")


def refuse_other_classes(trained: Mapping[str, Any], unseen: ImageSet) -> None:
    """Raise DataError where these are not the classes that were held out of a training, by its card's facts.

    They are named by their groups, where these were held out whole. Older facts name none.
    """
    held_out = trained.get("validation_groups")
    if held_out is not None and sorted(held_out) not in (sorted(set(unseen.groups)), sorted(unseen.class_names)):
        raise DataError(
            "The classes that validate in the data set as it is now are not those that were held out of this training: "
            "it may have met some of them. Put back the data set it was trained on, or give unseen classes with "
            "--images."
        )


def finite_loss(loss: Tensor, norm: Tensor, step: int, path: Path) -> float:
    """The loss of a step that may be taken, read from its device at once with the gradient's norm.

    Raises CheckpointError where either is not finite: the weights would be lost, and ``path``, once written over, too.
    """
    value, length = torch.stack([loss.detach().float(), norm.float()]).tolist()
    if math.isfinite(value) and math.isfinite(length):
        return float(value)
    kept = f"the checkpoint of step {read_header(path)['step']} is kept" if path.exists() else "none is kept"
    remedy = "fit again with another --seed and --run, or with a lower learning_rate in training/configs"
    raise CheckpointError(
        f"Training diverged at step {step} (loss {value:.3g}, its gradient's norm {length:.3g}); {kept}: {remedy}."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it appears whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The same of any file."""
    staging = path.with_name(f".{path.name}.partial")
    staging.write_bytes(data)
    os.replace(staging, path)


def _read(path: Path, *, header_alone: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = dict(json.loads(file.metadata()["header"]))
            tensors = {name: file.get_tensor(name) for name in ([] if header_alone else file.keys())}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; run `training fit` first.") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({error}); delete it and resume from another."
        ) from error
    if header.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {header.get('format')}, not {FORMAT_VERSION}; fit again.")
    return header, tensors


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer/{i}/{key}": value.contiguous() for i, entry in state.items() for key, value in entry.items()}


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    if not state:
        raise CheckpointError(f"{path} holds no optimizer state, so a run cannot go on from it; fit again.")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
