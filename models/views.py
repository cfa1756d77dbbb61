"""The ways in which a generator sees each support image: as it is, mirrored, shifted.

A HyperTransformer makes them itself, inside its graph (``mirrored_support``, ``shifted_support``); here they are for
what follows its forward pass, and for controls.
"""

from __future__ import annotations

import numpy as np

from models.task import Pixels


def corners_of(shift: int) -> tuple[tuple[int, int], ...]:
    """Where (top, left) an image shifted by ``shift`` px down, up, right and left begins in itself padded so wide."""
    return (0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift)


def views_of(images: Pixels, *, shift: int, mirrored: bool) -> list[Pixels]:
    """Support images ``(S, H, W, C)`` in each way that a generator sees them.

    As they are, mirrored, then both shifted by ``shift`` px, the edge repeated.
    """
    height, width = images.shape[1:3]
    views = [images, images[:, :, ::-1]] if mirrored else [images]
    if shift:
        padded = [np.pad(view, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge") for view in views]
        at = [(view, *corner) for view in padded for corner in corners_of(shift)]
        views += [view[:, top : top + height, left : left + width] for view, top, left in at]
    return [np.ascontiguousarray(view) for view in views]
