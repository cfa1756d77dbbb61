"""Random distortions of training images, batched, on any device. Validation and evaluation use none."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHARP = 9 / 7
"""How much larger than the distorted ones drawings must be, to be as sharp then as by scaling (docs/decisions.md)."""
CLASS_RANGES = (0.4, 0.25, 0.25, 0.35, 0.05, 0.05)
IMAGE_RANGES = (0.175, 0.125, 0.125, 0.15, 0.1, 0.1)
CLASS_WARP, IMAGE_WARP, N_WAVES = 0.12, 0.04, 4
"""Largest turn (radians), two scales, shear and two shifts (of half the image): of a class, and of one image."""


def distort_strokes(
    images: Tensor, classes: Tensor, random: torch.Generator, strength: float = 1.0, *, size: int
) -> Tensor:
    """Drawings, zero for paper -> drawings of new characters by new hands.

    ``images`` ``(N, C, H, W)`` on any device, ``classes`` ``(N,)`` a number for each on the CPU, as ``random`` is;
    returns ``(N, C, size, size)``. All images of a class share one strong distortion (mirrors, turns, scales, slants, a
    smooth warp), which makes it a character never drawn before; each image gets a weak one of its own. ``strength``
    scales the weak ones. Sampling blurs: of images ``SHARP`` times as large as ``size``, the distorted ones are as
    sharp as those that are only scaled down.
    """
    n_classes = int(classes.max()) + 1
    own_ranges = tuple(strength * limit for limit in IMAGE_RANGES)
    affine = _affine(n_classes, CLASS_RANGES, random, mirror=True)[classes] @ _affine(len(images), own_ranges, random)
    warp = _waves(n_classes, CLASS_WARP, random)[classes] + _waves(len(images), strength * IMAGE_WARP, random)
    coefficients = torch.cat([affine[:, :2], warp], dim=-1).to(images.device)
    grid = coefficients.flatten(0, 1) @ _basis(size, size).to(images.device)
    grid = grid.view(-1, 2, size, size).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def distort_photographs(images: Tensor, random: torch.Generator, strength: float = 1.0) -> Tensor:
    """Photographs ``(N, C, H, W)`` in 0..1 -> mirrored at random, shifted by up to 1/8, brightness and contrast +-25 %.

    ``strength`` scales the last two.
    """
    n, _, height, width = images.shape
    mirror = torch.rand(n, generator=random).to(images.device) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
    pad = height // 8
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    top, left = (torch.randint(0, 2 * pad + 1, (n,), generator=random).to(images.device) for _ in range(2))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    images = padded[torch.arange(n, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    images = images.permute(0, 3, 1, 2)
    gain, offset = (
        0.25 * strength * (2 * torch.rand(n, 1, 1, 1, generator=random).to(images.device) - 1) for _ in range(2)
    )
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * (1 + gain) + mean * (1 + offset)).clamp(0, 1)


def distort_pixels(pixels: Tensor, random: torch.Generator, strength: float = 1.0) -> Tensor:
    """Photographs' pixels ``(N, H, W, C)`` uint8 -> the same distorted, floats of that range."""
    images = distort_photographs(pixels.movedim(-1, 1).float() / 255, random, strength)
    return images.movedim(1, -1) * 255


def _affine(n: int, ranges: tuple[float, ...], random: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Random affine maps ``(N, 3, 3)`` within ``ranges``: turn (radians), two scales about one, shear, two shifts."""
    turn, wide, high, shear, right, down = ((2 * torch.rand(n, 6, generator=random) - 1) * torch.tensor(ranges)).unbind(
        1
    )
    wide, high = 1 + wide, 1 + high
    if mirror:
        wide = wide * torch.randint(0, 2, (n,), generator=random).mul(2).sub(1)
    cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros(n), torch.ones(n)
    rows = [cos * wide, shear - sin, right, sin * wide, cos * high, down, zero, zero, one]
    return torch.stack(rows, dim=1).view(n, 3, 3)


def _waves(n: int, amplitude: float, random: torch.Generator) -> Tensor:
    """Random coefficients ``(N, 2, 16)`` of a smooth displacement, in units of half the image."""
    return amplitude * (2 * torch.rand(n, 2, N_WAVES**2, generator=random) - 1)


def _basis(height: int, width: int) -> Tensor:
    """``(19, H * W)``: the x, y and 1 of an affine map, then products of low cosine waves, the higher the weaker."""
    y, x = (2 * (torch.arange(size) + 0.5) / size - 1 for size in (height, width))
    plane = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)])
    waves = torch.arange(N_WAVES)[:, None]
    rows, columns = (torch.cos(math.pi * waves * (p + 1) / 2) / (1 + waves) for p in (y, x))
    products = rows[:, None, :, None] * columns[None, :, None, :]
    return torch.cat([plane.flatten(1), products.reshape(N_WAVES**2, -1)])
