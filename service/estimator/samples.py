"""What scikit-learn's users call X -> one encoded image a sample.

Arrays are ``(N, H, W)`` or ``(N, H, W, C)``, or ``(N, H*W)`` rows. uint8 is taken as it is; other numbers are scaled so
that the range seen in ``fit`` becomes 0 .. 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client.errors import UnusableInput
from service.client.images import encoded, expanded

WHITE = 255.0
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Scale:
    """The numbers that stand for black and for white."""

    low: float
    high: float

    def pixels(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Values -> 0 .. 255; beyond the range seen in ``fit`` they are clipped."""
        if values.dtype == np.uint8:
            return values
        unit = (values.astype(np.float64) - self.low) / ((self.high - self.low) or 1.0)
        return np.asarray(np.rint(WHITE * np.clip(unit, 0.0, 1.0)), dtype=np.uint8)


def scale_of(values: NDArray[Any]) -> Scale:
    """The range of some values."""
    return Scale(float(values.min()), float(values.max()))


def is_list_of_images(X: Any) -> bool:
    """Paths, files' bytes, Pillow images, or arrays that need not have one size; else it is an array of numbers."""
    if isinstance(X, np.ndarray) and (X.dtype != object and X.dtype.kind not in "US"):
        return False
    column = _column(X)
    if column is None:
        return False
    first = column[0]
    return isinstance(first, str | PathLike | bytes) or hasattr(first, "getbands") or _are_of_many_sizes(column)


def n_dimensions(X: Any) -> int:
    """Of an array, or of lists of numbers."""
    found: int = np.ndim(X) if isinstance(X, list | tuple) else len(getattr(X, "shape", ()))
    return found


def from_list(X: Any) -> list[bytes]:
    """Each image's file; raises ValueError, which names the sample at fault."""
    column = _column(X)
    assert column is not None
    return [_file(image, i) for i, image in enumerate(column)]


def from_array(X: NDArray[Any], scale: Scale, image_shape: Sequence[int] | None) -> list[bytes]:
    """Each sample as a PNG; raises ValueError where the shape is no image's."""
    values = X if X.ndim > 2 else X.reshape(len(X), *_shape(X.shape[1], image_shape))
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] not in CHANNELS):
        raise ValueError(f"X has the shape {X.shape}; it should be (N, H, W), (N, H, W, C), or rows (N, H*W).")
    return [encoded(pixels) for pixels in scale.pixels(values)]


def _file(image: Any, number: int) -> bytes:
    try:
        found = expanded(image)
        if len(found) == 1:
            return encoded(found[0])
    except UnusableInput as error:
        raise UnusableInput(f"Sample {number}: {error}") from error
    raise ValueError(f"Sample {number} is {len(found)} images; every sample is one image.")


def _column(X: Any) -> Sequence[Any] | None:
    """X as a sequence of samples, where it is one: a list, a Series, an object array, a frame of one column."""
    if isinstance(X, list | tuple):
        return X or None
    if not hasattr(X, "shape") or not hasattr(X, "__array__"):
        return None
    array = np.asarray(X)
    is_column = array.dtype.kind in "OUS" and array.size and (array.ndim == 1 or array.shape[1:] == (1,))
    return list(array.ravel()) if is_column else None


def _are_of_many_sizes(column: Sequence[Any]) -> bool:
    shapes = {image.shape if isinstance(image, np.ndarray) and image.ndim > 1 else None for image in column}
    return len(shapes) > 1 and None not in shapes


def _shape(n_values: int, image_shape: Sequence[int] | None) -> Sequence[int]:
    if image_shape is not None:
        return tuple(image_shape)
    side = isqrt(n_values)
    if side * side != n_values:
        raise ValueError(
            f"Rows of {n_values} features are no square images; say what they are with image_shape=(H, W) or (H, W, C)."
        )
    return side, side
