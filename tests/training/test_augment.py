"""Distortions: repeatable, of the right kind for the data, shared by a class where they make a new character."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from training import augment


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strokes(n: int = 6) -> Tensor:
    """Zero for paper: an L in the middle, the same n times."""
    images = torch.zeros(n, 1, 28, 28)
    images[:, :, 8:20, 10:12] = 1
    images[:, :, 18:20, 10:19] = 1
    return images


def test_the_same_seed_distorts_alike_and_another_differently() -> None:
    classes = torch.arange(6)
    one, same, other = (augment.distort_strokes(strokes(), classes, random(seed), size=28) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.1
    photographs = torch.rand(4, 3, 32, 32, generator=random())
    one, same, other = (augment.distort_photographs(photographs, random(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.1


def test_images_of_a_class_share_the_strong_distortion() -> None:
    """Without the weak ones, equal drawings of a class stay equal, and those of two classes do not."""
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    distorted = augment.distort_strokes(strokes(), classes, random(), strength=0.0, size=28)
    for k in range(3):
        torch.testing.assert_close(distorted[2 * k], distorted[2 * k + 1])
    assert (distorted[0] - distorted[2]).abs().max() > 0.3
    weak = augment.distort_strokes(strokes(), classes, random(), strength=1.0, size=28)
    within, between = (weak[0] - weak[1]).abs().mean(), (weak[0] - weak[2]).abs().mean()
    assert 0 < within < between


def test_drawings_stay_drawings() -> None:
    distorted = augment.distort_strokes(strokes(200), torch.arange(200), random(), size=28)
    assert distorted.shape == (200, 1, 28, 28)
    assert distorted.min() >= 0
    assert distorted.max() <= 1 + 1e-6
    ink = distorted.sum((1, 2, 3)) / strokes(1).sum()
    assert 0.5 < float(ink.median()) < 1.5
    assert float((ink > 0.2).float().mean()) > 0.97


def test_distorted_drawings_are_as_sharp_as_scaled_ones() -> None:
    """By the share of an image's variance that is left in its second differences; without ``SHARP`` a third is lost."""
    sharp = round(28 * augment.SHARP)
    random_lines, scaled, from_sharp, from_scaled = np.random.default_rng(0), [], [], []
    for _ in range(300):
        large = Image.new("L", (105, 105))
        ends = [tuple(random_lines.integers(20, 85, 2).tolist()) for _ in range(4)]
        ImageDraw.Draw(large).line(ends, fill=255, width=3)
        sizes = [np.asarray(large.resize((n, n), Image.Resampling.BILINEAR), np.float32) / 255 for n in (28, sharp)]
        scaled.append(sizes[0])
        from_scaled.append(sizes[0])
        from_sharp.append(sizes[1])
    plain = _sharpness(torch.tensor(np.array(scaled))[:, None])
    one, other = (
        _sharpness(augment.distort_strokes(torch.tensor(np.array(s))[:, None], torch.arange(300), random(), size=28))
        for s in (from_sharp, from_scaled)
    )
    assert abs(one / plain - 1) < 0.12
    assert other / plain < 0.8


def _sharpness(images: Tensor) -> float:
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(torch.nn.functional.conv2d(images, laplacian).var() / images.var())


def test_classes_are_mirrored_half_of_the_time() -> None:
    """An L keeps its foot on the right, or has it on the left."""
    distorted = augment.distort_strokes(strokes(400), torch.arange(400), random(), size=28)
    columns = torch.arange(28.0)
    centre = (distorted.sum((1, 2)) @ columns) / distorted.sum((1, 2, 3)).clamp(min=1e-3)
    upper = (distorted[:, :, :14].sum((1, 2)) @ columns) / distorted[:, :, :14].sum((1, 2, 3)).clamp(min=1e-3)
    on_the_right = float((centre > upper).float().mean())
    assert 0.35 < on_the_right < 0.65


def test_photographs_stay_photographs() -> None:
    images = torch.rand(300, 3, 32, 32, generator=random(1))
    distorted = augment.distort_photographs(images, random())
    assert distorted.shape == images.shape
    assert distorted.min() >= 0
    assert distorted.max() <= 1


def test_photographs_are_only_mirrored_and_shifted_where_strength_is_zero() -> None:
    """One bright pixel: it moves by up to an eighth, on one side or the other, and keeps its brightness."""
    images = torch.zeros(400, 3, 32, 32)
    images[:, :, 16, 8] = 1
    distorted = augment.distort_photographs(images, random(), strength=0.0)
    assert torch.equal(distorted.sum((2, 3)), torch.ones(400, 3))
    rows, columns = (distorted[:, 0].sum(axis).argmax(-1) for axis in (2, 1))
    assert set(rows.tolist()) == set(range(12, 21))
    assert set(columns.tolist()) == set(range(4, 13)) | set(range(19, 28))
    mirrored = float((columns > 16).float().mean())
    assert 0.35 < mirrored < 0.65


def test_what_is_drawn_on_the_cpu_goes_where_the_images_are() -> None:
    """On no device that computes, but on one that, as a GPU does, refuses tensors of another."""
    strange = strokes().to("meta")
    assert augment.distort_strokes(strange, torch.arange(6), random(), size=28).is_meta
    assert augment.distort_photographs(torch.rand(4, 3, 32, 32, device="meta"), random()).is_meta
