"""What methods that read words and leave the base as it is are given: its features, computed once and kept in a file.

Shapes: N images, H W C pixels, F projected features, M channels of an h x w feature map, T tokens, D text embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.nn.bases import Base
from models.text import Encoders, TextEncoder
from training.configs.word_baselines import Config, Pooling
from training.data.descriptions import ClassTexts
from training.data.folders import DataError, ImageSet
from training.encoded import encode_texts
from training.runtime import Runtime

FEATURES = "features"
"""Folder beside the runs, where these are kept for the next one."""
BATCH = 128


@dataclass(frozen=True)
class BaseFeatures:
    """Of every image of a set: the base's own features ``(N, G)``, and a feature map ``(N, M, h, w)`` if asked for."""

    raw: NDArray[np.float32]
    maps: NDArray[np.float16] | None


def base_features(
    config: Config, base: Base, images: ImageSet, folder: Path, runtime: Runtime, *, progress: bool = True
) -> BaseFeatures:
    """Read from ``folder`` where an earlier run left them there; made, and left there, otherwise.

    Raises DataError where the base has no module ``config.maps``.
    """
    maps = config.maps if config.method == "pdcnn-fc-conv" else ""
    path = folder / f"{_digest(base)}-{images.digest}{maps and '-'}{maps}.npz"
    if not path.exists():
        _save(path, _compute(base, images, maps, runtime, progress=progress))
    with np.load(path) as arrays:
        return BaseFeatures(arrays["raw"], arrays["maps"] if maps else None)


def pooled(tokens: Sequence[NDArray[np.floating]], pooling: Pooling) -> NDArray[np.float32]:
    """Token embeddings ``(T, D)`` of each of K documents -> unit vectors ``(K, D)``."""
    rows = [
        own.astype(np.float32).max(axis=0) if pooling == "max" else own.mean(axis=0, dtype=np.float32) for own in tokens
    ]
    found = np.stack(rows)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def encode(texts: Sequence[str], encoder: TextEncoder, pooling: Pooling) -> NDArray[np.float32]:
    """Documents -> ``(K, D)``."""
    return pooled([own.tokens for own in encoder.encode(texts)], pooling)


def training_documents(
    config: Config, texts: Sequence[ClassTexts], folder: Path, *, progress: bool = True
) -> NDArray[np.float32]:
    """The documents of each of C classes, drawn and pooled: ``(C, V, D)``; kept in ``folder`` as features are."""
    facts = repr((texts, config.text_encoder, config.n_documents, config.seed))
    path = folder / f"documents-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        encoder = Encoders().get(config.text_encoder)
        encoded = encode_texts(texts, encoder, config.n_documents, seed=config.seed, progress=progress).tokens
        _save(path, {way: np.stack([pooled(own, way) for own in encoded]) for way in get_args(Pooling)})
    with np.load(path) as arrays:
        found: NDArray[np.float32] = arrays[config.pooling]
        return found


@torch.no_grad()
def _compute(
    base: Base, images: ImageSet, maps: str, runtime: Runtime, *, progress: bool
) -> dict[str, NDArray[np.floating]]:
    base = base.to(runtime.device).eval()
    last: dict[str, torch.Tensor] = {}
    if maps:
        try:
            module = base.network.get_submodule(maps)
        except AttributeError as error:
            raise DataError(f"{base.spec.architecture} has no module {maps!r} to take feature maps from.") from error
        module.register_forward_hook(lambda _module, _inputs, output: last.update(map=output))
    raw, kept = [], []
    batches = torch.from_numpy(images.pixels).split(BATCH)
    for pixels in tqdm(batches, disable=not progress, desc="features of the base", mininterval=5.0):
        raw.append(base(pixels.to(runtime.device)).float().cpu().numpy())
        if maps:
            kept.append(last["map"].half().cpu().numpy())
    return {"raw": np.concatenate(raw), **({"maps": np.concatenate(kept)} if maps else {})}


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".partial.npz")
    np.savez(staging, allow_pickle=False, **arrays)
    staging.replace(path)


def _digest(base: Base) -> str:
    """Of its weights."""
    found = hashlib.sha256()
    for tensor in base.state_dict().values():
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:12]
