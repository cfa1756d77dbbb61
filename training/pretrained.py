"""Base networks that were trained before: read from files, or from torchvision where a network allows it.

What such a network has met is not known to us class by class: a meta-model on top of one says so in its card.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import metamodel
from models.errors import InvalidMetaModel
from models.export_n3 import NETWORK
from models.nn.bases import Base, BaseSpec, Classifier, fold, unfolded
from training import checkpoint
from training.data.folders import DataError, data_root

BASE = "base"
"""The method of a checkpoint of `training fit base`."""
INSTALLED = metamodel.ZOO.parents[1]
"""What the folders of shipped meta-models are relative to, wherever a command runs."""
IMAGENET_MOBILENET = "mobilenet_v2_1.0_224_folded_fp16.npz"


def read_base(source: str, spec: BaseSpec) -> Base:
    """A folded base: "imagenet-mobilenet", "torchvision", or the path of an exported N3 or of a base's checkpoint.

    An exported N3 is a folder such as models/zoo/n3-mobilenet: its base as it is before any task, in half precision. A
    checkpoint is one of `training fit base`. Raises DataError or CheckpointError where it is not there, or of another
    architecture.
    """
    _check_statistics(source, spec)
    base = Base(spec)
    if source == "imagenet-mobilenet":
        _copy(base, _mobilenet_arrays())
    elif source == "torchvision":
        base.network.load_state_dict(fold(_torchvision(spec.architecture)).state_dict())
    elif not _is_checkpoint(source):
        _copy_exported(base, source)
    else:
        base.network.load_state_dict(_trained_here(Path(source), spec).state_dict())
    return base


def base_of(folder: Path) -> Base:
    """The base of an exported N3 as it is before any task; raises DataError where it has none."""
    return read_base(str(folder), _exported(str(folder))[1])


def origin(source: str) -> dict[str, Any]:
    """What a base that ``read_base`` takes was made of: ``pretrained`` (empty: from random weights), and on what.

    ``own_images``: that those were a user's own, and not of the ``dataset``; an older checkpoint does not say so. An
    exported N3 says it of its own base. Raises DataError or CheckpointError where a path is of neither kind.
    """
    if source in ("imagenet-mobilenet", "torchvision"):
        return {"pretrained": source, "dataset": "imagenet", "train_data_digest": None}
    if not _is_checkpoint(source):
        return _exported(source)[2]
    header = checkpoint.read_header(Path(source))
    config = header["config"]
    return {
        "pretrained": config["pretrained"],
        "dataset": config["dataset"],
        "train_data_digest": header["train_data_digest"],
        **({"own_images": True} if header.get("own_images") else {}),
    }


def classifier_rows() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The ImageNet MobileNetV2's own classification layer, by class index: ``(1000, 1280)`` and ``(1000,)``."""
    with np.load(_mobilenet_path()) as arrays:
        weight, bias = arrays["L52_w"].astype(np.float32), arrays["L52_b"].astype(np.float32)
    return weight.reshape(1001, -1)[1:], bias[1:]  # the first is "background"


def _check_statistics(source: str, spec: BaseSpec) -> None:
    if (source, spec.architecture) == ("torchvision", "googlenet") and spec.pixel_mean != (0.5, 0.5, 0.5):
        raise DataError("Torchvision's GoogLeNet takes pixels of mean and deviation 0.5; give its BaseSpec these.")


def _is_checkpoint(source: str) -> bool:
    return Path(source).suffix == ".safetensors" or Path(source).is_file()


def _copy_exported(base: Base, source: str) -> None:
    meta_model, spec, _ = _exported(source)
    saved, wanted = asdict(spec), asdict(base.spec)
    if other := [name for name in wanted if name != "size" and saved[name] != wanted[name]]:  # it takes any size
        found = f"{source} has a {saved['architecture']}, of another {', '.join(other)} than the config's base"
        raise DataError(f"{found} ({base.spec.architecture}); give the base that the config names.")
    try:
        weights = {name: torch.from_numpy(meta_model.base[NETWORK + name]) for name in base.network.state_dict()}
        base.network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{source} has no weights of a {base.spec.architecture} ({error}); export it again.") from error


def _exported(source: str) -> tuple[metamodel.MetaModel, BaseSpec, dict[str, Any]]:
    """An N3 meta-model, verified, and what its evaluation.json says of its base: what it is, and its ``origin``."""
    remedy = "give the folder of an exported N3, such as models/zoo/n3-mobilenet, or a base's checkpoint.safetensors"
    folder = next((path for path in (Path(source), INSTALLED / source) if path.is_dir()), None)
    if folder is None:
        raise DataError(f"There is no base {source}; {remedy}.")
    try:
        meta_model = metamodel.load(folder)
        if meta_model.manifest.method != "n3":
            raise DataError(f"{source} is of {meta_model.manifest.method}, which has no base; {remedy}.")
        training = json.loads((folder / "evaluation.json").read_text())["training"]
        return meta_model, BaseSpec.from_json(training["config"]["model"]["base"]), dict(training["base"])
    except InvalidMetaModel as error:
        raise DataError(f"{error.message} Or {remedy}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{source} lacks an evaluation.json that tells of its base ({error}); copy it whole."
        ) from error


def _trained_here(path: Path, spec: BaseSpec) -> nn.Module:
    header = checkpoint.read_header(path)
    if header.get("method") != BASE:
        raise checkpoint.CheckpointError(f"{path} is no base network; `training fit base` makes one.")
    saved, folded = BaseSpec.from_json(header["config"]["base"]), bool(header["config"]["pretrained"])
    if saved.architecture != spec.architecture:
        raise checkpoint.CheckpointError(
            f"{path} is a {saved.architecture}, no {spec.architecture}; give the base that the config names."
        )
    model = Classifier(spec, int(header["n_classes"]), folded=folded)
    checkpoint.load(path, model)
    if folded:
        return model.network
    plain, _ = unfolded(spec.architecture)  # of the same names, its padding the ordinary one, which folds
    plain.load_state_dict(model.network.state_dict())
    return fold(plain)


def _mobilenet_path() -> Path:
    path = data_root() / "weights" / IMAGENET_MOBILENET
    if not path.is_file():
        raise DataError(f"No {IMAGENET_MOBILENET} below {data_root()}/weights; set CLASSMITH_DATASETS.")
    return path


def _mobilenet_arrays() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weights ``(O, I, h, w)`` and biases of the 52 convolutions, from the image on."""
    with np.load(_mobilenet_path()) as arrays:
        pairs = [(arrays[f"L{n:02}_w"], arrays[f"L{n:02}_b"]) for n in range(52)]
    return [
        (w.transpose(3, 0, 1, 2) if w.shape[0] == 1 else w.transpose(0, 3, 1, 2), b) for w, b in pairs
    ]  # depthwise ones are stored (1, h, w, O), others (O, h, w, I)


@torch.no_grad()
def _copy(base: Base, arrays: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
    for convolution, (weight, bias) in zip(base.convolutions.values(), arrays, strict=True):
        assert convolution.bias is not None
        convolution.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
        convolution.bias.copy_(torch.from_numpy(bias.astype(np.float32)))


def _torchvision(architecture: str) -> nn.Module:
    """Torchvision's ImageNet weights, downloaded once to the hub's folder; raises DataError where that fails."""
    from torchvision.models import get_model, get_model_weights

    network, _ = unfolded(architecture)
    weights = get_model_weights(architecture).DEFAULT
    try:
        pretrained = get_model(architecture, weights=weights).state_dict()
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: a file cut short
        what = f"Torchvision's weights of {architecture} could not be fetched or read ({error})"
        remedy = f"download {weights.url} yourself into {torch.hub.get_dir()}/checkpoints"
        raise DataError(f"{what}; {remedy}, or try again where a network allows it.") from error
    wanted = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in pretrained.items() if name in wanted})
    return network
