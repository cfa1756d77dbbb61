"""What a generator that reads descriptions is fed: token embeddings and image features of each class, padded, masked.

Shapes: K classes, T tokens and N images of the class that has most (at least 1), D and F the widths of an embedding and
of a feature. A mask is 1 where there is something and 0 where there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.task import ClassSpec, Pixels, class_text

Rows = NDArray[np.float32]


def text_of(spec: ClassSpec) -> str:
    """The text that stands for a class, or nothing: a name alone is a text only where there is no image either."""
    return class_text(spec.name, spec.description) if spec.description or not spec.images else ""


def token_feeds(
    classes: Sequence[ClassSpec], encode: Callable[[list[str]], Sequence[Rows]], dim: int
) -> dict[str, Rows]:
    """``tokens`` (K, T, D) and ``token_mask`` (K, T); ``encode``: each text's ``(T, D)``, called only for texts."""
    texts = [text for c in classes if (text := text_of(c))]
    encoded = iter(encode(texts) if texts else ())
    tokens, mask = padded([next(encoded) if text_of(c) else np.zeros((0, dim), np.float32) for c in classes], dim)
    return {"tokens": tokens, "token_mask": mask}


def feature_feeds(classes: Sequence[ClassSpec], extract: Callable[[Pixels], Rows], dim: int) -> dict[str, Rows]:
    """``features`` (K, N, F) and ``feature_mask`` (K, N); ``extract``: the features (S, F) of pixels (S, H, W, C).

    The images of a class come sorted by their bytes, so that listing them in another order changes nothing.
    """
    images = [image for c in classes for image in sorted(c.images, key=lambda pixels: pixels.tobytes())]
    found = extract(np.stack(images)) if images else np.zeros((0, dim), np.float32)
    ends = np.cumsum([len(c.images) for c in classes])
    rows = [found[end - len(c.images) : end] for c, end in zip(classes, ends, strict=True)]
    features, mask = padded(rows, dim)
    return {"features": features, "feature_mask": mask}


def padded(rows: Sequence[NDArray[np.floating]], dim: int) -> tuple[Rows, Rows]:
    """Rows ``(n, dim)`` of each class -> ``(K, most, dim)`` with zeros behind, and the mask ``(K, most)``."""
    most = max(1, *(len(own) for own in rows))
    values, mask = np.zeros((len(rows), most, dim), np.float32), np.zeros((len(rows), most), np.float32)
    for k, own in enumerate(rows):
        values[k, : len(own)], mask[k, : len(own)] = own, 1
    return values, mask
