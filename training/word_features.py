"""What methods that read words and leave the base as it is are given: its features, computed once and kept in a file.

Shapes: N images, G features of the base, M channels of an h x w feature map, K documents, T tokens of one, D embedding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.nn.bases import Base
from training.configs.word_baselines import Config, Pooling
from training.data.folders import DataError, ImageSet
from training.described import raw_features
from training.runtime import Runtime

FEATURES = "features"
"""Folder beside the runs, where these are kept for the next one."""


@dataclass(frozen=True)
class BaseFeatures:
    """Of every image of a set: the base's own features ``(N, G)``, and feature maps ``(N, M, h, w)`` if asked for."""

    raw: NDArray[np.float32]
    maps: NDArray[np.float16] | None


def base_features(config: Config, base: Base, images: ImageSet, folder: Path, runtime: Runtime) -> BaseFeatures:
    """Read from ``folder`` where an earlier run left them there; made, and left there, otherwise.

    Raises DataError where the base has no convolution ``config.maps``.
    """
    maps = config.maps if config.method == "pdcnn-fc-conv" else ""
    path = folder / f"{digest_of(base)}-{images.digest}{maps and '-'}{maps}.npz"
    if not path.exists():
        _save(path, _compute(base, images, maps, runtime))
    with np.load(path) as arrays:
        return BaseFeatures(arrays["raw"], arrays["maps"] if maps else None)


def pooled(documents: Sequence[NDArray[np.floating]], pooling: Pooling) -> NDArray[np.float32]:
    """Token embeddings ``(T, D)`` of each of K documents -> unit vectors ``(K, D)``."""
    tokens = [own.astype(np.float32) for own in documents]
    rows = np.stack([own.max(axis=0) if pooling == "max" else own.mean(axis=0) for own in tokens])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def digest_of(base: Base) -> str:
    """Of its weights."""
    found = hashlib.sha256()
    for tensor in base.state_dict().values():
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:12]


def _compute(base: Base, images: ImageSet, maps: str, runtime: Runtime) -> dict[str, NDArray[np.floating]]:
    if not maps:
        return {"raw": raw_features(base, images.pixels, runtime)}
    if maps not in base.convolutions:
        raise DataError(f"{base.spec.architecture} has no convolution {maps!r} to take feature maps from.")
    kept: list[NDArray[np.float16]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].half().cpu().numpy())

    handle = base.convolutions[maps].register_forward_pre_hook(keep)
    try:
        raw = raw_features(base, images.pixels, runtime)
    finally:
        handle.remove()
    return {"raw": raw, "maps": np.concatenate(kept)}


def _save(path: Path, arrays: dict[str, NDArray[np.floating]]) -> None:
    """Whole or not at all, also where several processes make the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as staging:
        written = Path(staging, path.name)
        np.savez(written, **arrays)  # type: ignore[arg-type]
        written.replace(path)
