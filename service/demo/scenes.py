"""Landscapes painted by this project: small colour pictures for examples, where no photograph is ours to ship.

A scene is a sky, a ground and what stands on it. Kind and number decide everything, so no picture is stored; of
``random`` only ``Random(...).random()`` is used, which Python promises to keep.

    python -m service.demo.scenes sheet.png        a contact sheet: a row for each kind, a column for each picture
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw, ImageFilter

SIZE = 96
"""Side of a picture in pixels."""

Colour = tuple[int, int, int]
Pen = ImageDraw.ImageDraw


def picture(kind: str, number: int) -> bytes:
    """JPEG bytes of one landscape, ``SIZE`` x ``SIZE``; ``kind`` is one of SCENES."""
    rng = Random(f"scene {kind} {number}")
    canvas = Image.new("RGB", (SIZE, SIZE))
    SCENES[kind](ImageDraw.Draw(canvas), rng)
    file = io.BytesIO()
    canvas.filter(ImageFilter.GaussianBlur(0.6)).save(file, format="JPEG", quality=88)
    return file.getvalue()


def contact_sheet(n_pictures: int = 10) -> Image.Image:
    """A row for each kind, a column for each picture."""
    sheet = Image.new("RGB", (n_pictures * SIZE, len(SCENES) * SIZE))
    for row, kind in enumerate(SCENES):
        for number in range(n_pictures):
            sheet.paste(Image.open(io.BytesIO(picture(kind, number))), (number * SIZE, row * SIZE))
    return sheet


def _sea(pen: Pen, rng: Random) -> None:
    horizon = _horizon(rng, 0.45)
    _gradient(pen, 0, horizon, _near(rng, (120, 180, 235)), (215, 232, 245))
    _gradient(pen, horizon, SIZE, _near(rng, (40, 120, 175)), (10, 55, 105))
    for _ in range(40):
        y = horizon + rng.random() ** 1.5 * (SIZE - horizon)
        x, length = rng.random() * SIZE, 3 + (y - horizon) / 4
        pen.line((x, y, x + length, y), fill=_near(rng, (170, 210, 230)))
    _sun(pen, rng, horizon, (255, 246, 200))


def _forest(pen: Pen, rng: Random) -> None:
    horizon = _horizon(rng, 0.4)
    _gradient(pen, 0, horizon, _near(rng, (170, 200, 215)), (205, 220, 215))
    _gradient(pen, horizon, SIZE, (60, 95, 45), (35, 60, 25))
    for rank in range(26):
        foot = horizon + 4 + rank * (SIZE - horizon) / 20
        x, height = rng.random() * SIZE, (0.22 + 0.2 * rng.random()) * SIZE
        green = _near(rng, (20 + rank, 65 + 2 * rank, 30))
        pen.polygon([(x, foot - height), (x - height / 4, foot), (x + height / 4, foot)], fill=green)


def _desert(pen: Pen, rng: Random) -> None:
    horizon = _horizon(rng, 0.5)
    _gradient(pen, 0, SIZE, _near(rng, (110, 170, 225)), (250, 235, 200))
    _sun(pen, rng, horizon, (255, 240, 180))
    for dune in range(4):
        top, shade = horizon + dune * 11, 18 * dune
        x, width = rng.random() * SIZE, (0.9 + 0.6 * rng.random()) * SIZE
        sand = _near(rng, (235 - shade, 190 - shade, 120 - shade))
        pen.rectangle((0, min(top + 9, SIZE), SIZE, SIZE), fill=sand)
        pen.ellipse((x - width, top, x + width, top + 40), fill=sand)


def _city(pen: Pen, rng: Random) -> None:
    ground = _horizon(rng, 0.85)
    _gradient(pen, 0, SIZE, _near(rng, (12, 14, 40)), (60, 45, 80))
    x = -4.0
    while x < SIZE:
        width, height = 9 + 10 * rng.random(), (0.25 + 0.5 * rng.random()) * SIZE
        pen.rectangle((x, ground - height, x + width, ground), fill=_near(rng, (28, 28, 42)))
        for row in range(int(height / 6)):
            for column in range(int(width / 5)):
                if rng.random() < 0.55:
                    left, top = x + 2 + 5 * column, ground - height + 3 + 6 * row
                    pen.rectangle((left, top, left + 1.5, top + 2), fill=_near(rng, (250, 215, 120)))
        x += width + 1 + 3 * rng.random()
    pen.rectangle((0, ground, SIZE, SIZE), fill=(18, 18, 26))


SCENES: dict[str, Callable[[Pen, Random], None]] = {"sea": _sea, "forest": _forest, "desert": _desert, "city": _city}


def _horizon(rng: Random, middle: float) -> float:
    return (middle + 0.16 * (rng.random() - 0.5)) * SIZE


def _gradient(pen: Pen, top: float, bottom: float, first: Colour, last: Colour) -> None:
    for y in range(int(top), int(bottom) + 1):
        t = (y - top) / max(1.0, bottom - top)
        r, g, b = (round(a + (z - a) * t) for a, z in zip(first, last, strict=True))
        pen.line((0, y, SIZE, y), fill=(r, g, b))


def _sun(pen: Pen, rng: Random, horizon: float, colour: Colour) -> None:
    x, y, radius = rng.random() * SIZE, (0.15 + 0.6 * rng.random()) * horizon, 4 + 5 * rng.random()
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _near(rng: Random, colour: Colour) -> Colour:
    """A colour like this one: all of it lighter or darker, and each part a little off."""
    light = 30 * (rng.random() - 0.5)
    r, g, b = (min(255, max(0, round(part + light + 16 * (rng.random() - 0.5)))) for part in colour)
    return (r, g, b)


if __name__ == "__main__":
    contact_sheet().save(sys.argv[1])
