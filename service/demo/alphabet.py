"""An alphabet invented for this project, drawn in several hands: the demo's images where no data is at hand.

A character is a stroke program: one to four strokes (bars, arcs, hooks, waves, loops) that start on earlier ones, as in
handwriting. A hand is a way of writing: slant, proportions, roundness, weight and unsteadiness. Each drawing runs the
program in one hand, with its own slips of the pen. Everything follows from the numbers of the character and the hand,
so no drawing is stored; of ``random`` only ``Random(...).random()`` is used, which Python promises to keep. The tests
take their images from here too.

    python -m service.demo.alphabet sheet.png      a contact sheet: a row for each character, a column for each hand
"""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random

from PIL import Image, ImageDraw

N_CHARACTERS = 24
N_HANDS = 20
SIZE = 105
"""Side of a drawing in pixels, as in Omniglot."""

Point = tuple[float, float]
Stroke = tuple[Point, ...]
"""Control points in a unit square, y downwards; the pen passes through each of them."""

_SYLLABLES = ("ka", "lo", "mi", "ren", "su", "tor", "vee", "zan", "ush", "ode", "pil", "gar")
_OVERSAMPLING = 3
_STEPS = 12
_LEAST_INK = 0.9
_EXTENT = 0.66


@dataclass(frozen=True)
class Hand:
    """A way of writing. Angles in radians, lengths in unit squares; ``weight``: width of the pen."""

    slant: float
    turn: float
    width: float
    height: float
    weight: float
    bend: float
    unsteadiness: float


def character_name(character: int) -> str:
    """A pronounceable name, different for each character."""
    first, second = divmod(character, len(_SYLLABLES))
    return _SYLLABLES[second] + _SYLLABLES[(second * 5 + first * 7 + 1) % len(_SYLLABLES)]


def drawing(character: int, hand: int, *, size: int = SIZE) -> bytes:
    """PNG bytes of one character in one hand: black ink on white, ``size`` x ``size``, one bit a pixel."""
    canvas = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), "white")
    style = _hand(hand)
    rng = Random(f"drawing {character} {hand}")
    shift = (_spread(rng, 0.05), _spread(rng, 0.05))
    scale = 1 + _spread(rng, 0.12)
    for stroke in stroke_program(character):
        slipped = _slip(stroke, style, rng)
        path = [_place(point, style, scale, shift) for point in _smooth(slipped, style.bend)]
        _ink(canvas, path, style.weight)
    image = canvas.reduce(_OVERSAMPLING).point(lambda shade: 255 if shade > 150 else 0).convert("1")
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def alphabet(n_characters: int = N_CHARACTERS, n_hands: int = N_HANDS) -> dict[str, list[bytes]]:
    """Name of each character -> PNG bytes, one for each hand."""
    return {
        character_name(character): [drawing(character, hand) for hand in range(n_hands)]
        for character in range(n_characters)
    }


@lru_cache(maxsize=256)
def stroke_program(character: int) -> tuple[Stroke, ...]:
    """The strokes of a character, before any hand writes it: never too little ink to tell it from a slip of the pen."""
    rng = Random(f"character {character}")
    while True:
        strokes: list[Stroke] = []
        for _ in range(1 + _below(rng, 3) + (rng.random() < 0.35)):
            strokes.append(_stroke(_start(strokes, rng), rng, short=len(strokes) > 1))
        if sum(_length(stroke) for stroke in strokes) > _LEAST_INK:
            return _centred(strokes)


def contact_sheet(n_characters: int = N_CHARACTERS, n_hands: int = N_HANDS) -> Image.Image:
    """All drawings in one picture: a row for each character, a column for each hand."""
    cell = SIZE + 2
    sheet = Image.new("L", (n_hands * cell, n_characters * cell), 200)
    for row, images in enumerate(alphabet(n_characters, n_hands).values()):
        for column, png in enumerate(images):
            sheet.paste(Image.open(io.BytesIO(png)).convert("L"), (column * cell, row * cell))
    return sheet


def _length(stroke: Stroke) -> float:
    return sum(math.dist(a, b) for a, b in pairwise(stroke))


def _centred(strokes: list[Stroke]) -> tuple[Stroke, ...]:
    """The strokes in the middle of the square, the longer side of their box ``_EXTENT`` long."""
    xs, ys = [x for s in strokes for x, _ in s], [y for s in strokes for _, y in s]
    (left, right), (top, bottom) = (min(xs), max(xs)), (min(ys), max(ys))
    scale = _EXTENT / max(right - left, bottom - top)
    return tuple(
        tuple((0.5 + (x - (left + right) / 2) * scale, 0.5 + (y - (top + bottom) / 2) * scale) for x, y in stroke)
        for stroke in strokes
    )


def _start(strokes: list[Stroke], rng: Random) -> Point:
    """Where the next stroke begins: on an earlier one (mostly), or anywhere on a 4 x 4 lattice."""
    if strokes and rng.random() < 0.75:
        stroke = strokes[_below(rng, len(strokes))]
        return stroke[_below(rng, len(stroke))]
    return (0.15 + 0.23 * _below(rng, 4), 0.1 + 0.23 * _below(rng, 4))


def _stroke(start: Point, rng: Random, *, short: bool) -> Stroke:
    """A bar, arc, hook, wave or loop from ``start``, led back into the square where it would leave it."""
    length = (0.2 if short else 0.4) + 0.35 * rng.random()
    towards = math.atan2(0.5 - start[1], 0.5 - start[0])
    heading = towards + _spread(rng, 1.2)
    turn = (0.0, 1.5, 2.8, 0.9, 5.6)[_below(rng, 5)] * (1 if rng.random() < 0.5 else -1)
    wavy = rng.random() < 0.2
    n_steps = 1 if turn == 0 else 6
    points = [start]
    for step in range(n_steps):
        bend = turn * (1 if not wavy or step < n_steps // 2 else -1)
        heading += bend / n_steps
        x, y = points[-1]
        reach = length * (1 + 0.25 * abs(turn)) / n_steps
        points.append((_inside(x + reach * math.cos(heading)), _inside(y + reach * math.sin(heading))))
    return tuple(points)


@lru_cache(maxsize=256)
def _hand(hand: int) -> Hand:
    rng = Random(f"hand {hand}")
    return Hand(
        slant=_spread(rng, 0.35),
        turn=_spread(rng, 0.2),
        width=0.72 + 0.33 * rng.random(),
        height=0.72 + 0.33 * rng.random(),
        weight=0.018 + 0.022 * rng.random(),
        bend=0.6 + 0.6 * rng.random(),
        unsteadiness=0.016 + 0.022 * rng.random(),
    )


def _slip(stroke: Stroke, hand: Hand, rng: Random) -> Stroke:
    """The stroke as the pen really went: moved and stretched as a whole, and unsteady at each control point."""
    dx, dy = _spread(rng, 3 * hand.unsteadiness), _spread(rng, 3 * hand.unsteadiness)
    stretch_x, stretch_y = 1 + _spread(rng, 0.25), 1 + _spread(rng, 0.25)
    x0, y0 = stroke[0]
    return tuple(
        (
            x0 + (x - x0) * stretch_x + dx + _spread(rng, hand.unsteadiness),
            y0 + (y - y0) * stretch_y + dy + _spread(rng, hand.unsteadiness),
        )
        for x, y in stroke
    )


def _smooth(stroke: Stroke, bend: float) -> list[Point]:
    """Points of the cardinal spline through the control points; ``bend`` 1 is Catmull-Rom, 0 straight segments."""
    padded = (stroke[0], *stroke, stroke[-1])
    path: list[Point] = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for step in range(_STEPS + 1):
            path.append(_hermite(p0, p1, p2, p3, step / _STEPS, bend / 2))
    return path


def _hermite(p0: Point, p1: Point, p2: Point, p3: Point, t: float, tension: float) -> Point:
    a, b, c, d = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, 3 * t**2 - 2 * t**3, t**3 - t**2
    x, y = (a * p1[i] + b * tension * (p2[i] - p0[i]) + c * p2[i] + d * tension * (p3[i] - p1[i]) for i in range(2))
    return (x, y)


def _place(point: Point, hand: Hand, scale: float, shift: Point) -> Point:
    """Slant, proportions, turn and place of a hand, around the middle of the square."""
    x, y = point[0] - 0.5, point[1] - 0.5
    x, y = (x - hand.slant * y) * hand.width * scale, y * hand.height * scale
    cos, sin = math.cos(hand.turn), math.sin(hand.turn)
    return (0.5 + x * cos - y * sin + shift[0], 0.5 + x * sin + y * cos + shift[1])


def _ink(canvas: Image.Image, path: list[Point], weight: float) -> None:
    """Draw a path with a round pen."""
    pen, side = ImageDraw.Draw(canvas), canvas.width
    radius = weight * side / 2
    pixels = [(x * side, y * side) for x, y in path]
    pen.line(pixels, fill="black", width=round(2 * radius), joint="curve")
    for x, y in (pixels[0], pixels[-1]):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="black")


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)


def _spread(rng: Random, reach: float) -> float:
    """A bell-shaped number within ``reach`` of zero."""
    return reach * (rng.random() + rng.random() + rng.random() - 1.5) / 1.5


def _inside(value: float) -> float:
    return min(0.95, max(0.05, value))


if __name__ == "__main__":
    contact_sheet().save(sys.argv[1])
