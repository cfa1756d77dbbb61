"""Base networks that were trained elsewhere: read from files, or from torchvision where a network allows it.

What such a network has met is not known to us class by class: a meta-model on top of one says so in its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.nn.bases import Base, BaseSpec, Classifier, fold, unfolded
from training import checkpoint
from training.data.folders import DataError, data_root

BASE = "base"
"""The method of a checkpoint of `training fit base`."""
IMAGENET_MOBILENET = "mobilenet_v2_1.0_224_folded_fp16.npz"


def read_base(source: str, spec: BaseSpec) -> Base:
    """A folded base: "imagenet-mobilenet", "torchvision", or the path of a checkpoint of `training fit base`.

    Raises DataError or CheckpointError where it is not there, or of another architecture.
    """
    _check_statistics(source, spec)
    base = Base(spec)
    if source == "imagenet-mobilenet":
        _copy(base, _mobilenet_arrays())
    elif source == "torchvision":
        base.network.load_state_dict(fold(_torchvision(spec.architecture)).state_dict())
    else:
        base.network.load_state_dict(_trained_here(Path(source), spec).state_dict())
    return base


def origin(source: str) -> dict[str, Any]:
    """What a base that ``read_base`` takes was made of: ``pretrained`` (empty: from random weights), and on what.

    Raises CheckpointError where it is a path and no checkpoint.
    """
    if source in ("imagenet-mobilenet", "torchvision"):
        return {"pretrained": source, "dataset": "imagenet", "train_data_digest": None}
    header = checkpoint.read_header(Path(source))
    config = header["config"]
    return {
        "pretrained": config["pretrained"],
        "dataset": config["dataset"],
        "train_data_digest": header["train_data_digest"],
    }


def classifier_rows() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The ImageNet MobileNetV2's own classification layer, by class index: ``(1000, 1280)`` and ``(1000,)``."""
    with np.load(_mobilenet_path()) as arrays:
        weight, bias = arrays["L52_w"].astype(np.float32), arrays["L52_b"].astype(np.float32)
    return weight.reshape(1001, -1)[1:], bias[1:]  # the first is "background"


def _check_statistics(source: str, spec: BaseSpec) -> None:
    if (source, spec.architecture) == ("torchvision", "googlenet") and spec.pixel_mean != (0.5, 0.5, 0.5):
        raise DataError("Torchvision's GoogLeNet takes pixels of mean and deviation 0.5; give its BaseSpec these.")


def _trained_here(path: Path, spec: BaseSpec) -> nn.Module:
    header = checkpoint.read_header(path)
    if header.get("method") != BASE:
        raise checkpoint.CheckpointError(f"{path} is no base network; `training fit base` makes one.")
    saved, folded = BaseSpec(**header["config"]["base"]), bool(header["config"]["pretrained"])
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
    """Torchvision's ImageNet weights, downloaded once to the hub's folder."""
    from torchvision.models import get_model, get_model_weights

    network, _ = unfolded(architecture)
    pretrained = get_model(architecture, weights=get_model_weights(architecture).DEFAULT).state_dict()
    wanted = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in pretrained.items() if name in wanted})
    return network
