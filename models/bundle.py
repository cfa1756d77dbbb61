"""A bundle: the written weights of one task and what is needed to use them, as self-checking safetensors bytes.

Weights are kept as float16 (biases as float32) and used as read back from those bytes, freshly written or stored, so
that every path gives the same answers. The header carries a checksum of everything else; pickle is never involved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.errors import CorruptBundle

FORMAT_VERSION = 1
Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class BundleHeader:
    """What a bundle says of itself. ``abstain_below``: top probability under which the answer is "I don't know"."""

    class_names: tuple[str, ...]
    meta_model: str
    meta_model_digest: str
    temperature: float
    abstain_below: float


@dataclass(frozen=True)
class Bundle:
    """The written tensors of one task (float32 in memory) and their header."""

    header: BundleHeader
    tensors: Tensors


def encode(bundle: Bundle) -> bytes:
    """Bundle -> bytes; equal bundles give equal bytes."""
    stored = {name: _narrow(np.asarray(tensor)) for name, tensor in sorted(bundle.tensors.items())}
    header = json.dumps({"format": FORMAT_VERSION, **asdict(bundle.header)}, sort_keys=True, ensure_ascii=False)
    envelope = json.dumps({"header": header, "sha256": _checksum(header, stored)})
    return save(stored, metadata={"classmith": envelope})  # one key: safetensors does not order several


def decode(data: bytes) -> Bundle:
    """Bytes -> bundle with float32 tensors; raises CorruptBundle where a checksum, a shape or the format is wrong."""
    try:
        stored = load(data)
        length = int.from_bytes(data[:8], "little")
        envelope = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["classmith"])
        header, expected = str(envelope["header"]), envelope["sha256"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptBundle(f"These bytes are not a bundle ({error}); it is made again from its recipe.") from error
    if _checksum(header, stored) != expected:
        raise CorruptBundle("A bundle fails its checksum; it is made again from its recipe.")
    fields = json.loads(header)
    if fields.pop("format") != FORMAT_VERSION:
        raise CorruptBundle("A bundle has another format version; it is made again from its recipe.")
    fields["class_names"] = tuple(fields["class_names"])
    return Bundle(BundleHeader(**fields), {name: tensor.astype(np.float32) for name, tensor in stored.items()})


def _narrow(tensor: NDArray[np.generic]) -> NDArray[np.generic]:
    """Weights (two dimensions or more) to float16, biases to float32, in contiguous memory."""
    return np.ascontiguousarray(tensor, dtype=np.float16 if tensor.ndim > 1 else np.float32)


def _checksum(header: str, stored: Tensors) -> str:
    sha = hashlib.sha256(header.encode())
    for name, tensor in sorted(stored.items()):
        sha.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        sha.update(np.ascontiguousarray(tensor).data)
    return sha.hexdigest()
