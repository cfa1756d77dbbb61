"""PyTorch modules -> ONNX graphs, and how far these are from PyTorch: what the export of every method is made of."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from models.errors import InvalidMetaModel
from models.graph import FEATURES, INPUT, LOGITS, externalise, without_provenance

MAX_RELATIVE_ERROR = 1e-3


def export_graph(module: nn.Module, args: tuple[Tensor, ...], **kwargs: object) -> bytes:
    """The graph of ``module``, with its weights in it; keywords as ``torch.onnx.export`` takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(module, args, dynamo=True, verbose=False, **kwargs)  # type: ignore[arg-type]
    if program is None:
        raise InvalidMetaModel("torch.onnx.export gave no program; install onnxscript.")
    data: bytes = without_provenance(program.model_proto).SerializeToString()
    return data


def export_skeleton(target: nn.Module, image: tuple[int, int]) -> bytes:
    """A target network, pixels in, logits and features out, all its parameters external.

    ``image``: size and channels of its images. Raises InvalidMetaModel where the exporter renames a parameter.
    """
    size, channels = image
    target = _with_noise(target)
    data = export_graph(
        target,
        (torch.zeros((3, size, size, channels), dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=[LOGITS, FEATURES],
        dynamic_shapes=({0: Dim("n_images", min=1, max=65536)},),
    )
    model = onnx.load_model_from_string(data)
    names = {name for name, _ in target.named_parameters()}
    missing = names - {tensor.name for tensor in model.graph.initializer}
    if missing:
        raise InvalidMetaModel(
            f"The exporter renamed or folded {sorted(missing)}; pin a version of torch that keeps them."
        )
    skeleton: bytes = externalise(model, names).SerializeToString()
    return skeleton


@torch.no_grad()
def _with_noise(target: nn.Module) -> nn.Module:
    """A copy whose weights, which a skeleton does not keep, are unlike: the exporter merges equal ones, drops zeros."""
    noisy, random = copy.deepcopy(target).eval(), torch.Generator().manual_seed(0)
    for parameter in noisy.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    return noisy


def check_errors(errors: dict[str, float]) -> dict[str, float]:
    """The errors as they are; raises InvalidMetaModel where one is above MAX_RELATIVE_ERROR."""
    if max(errors.values()) > MAX_RELATIVE_ERROR:
        raise InvalidMetaModel(f"The exported graphs differ from PyTorch: {errors}; do not ship this export.")
    return errors


def to_array(tensor: Tensor) -> NDArray[np.float32]:
    """As ONNX Runtime takes and gives it."""
    return tensor.detach().numpy()


def relative_error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Largest difference over the largest magnitude; infinite where a value is no number, which no limit lets pass."""
    error = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-12))
    return error if math.isfinite(error) else math.inf
