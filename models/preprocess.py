"""Encoded image bytes -> the uint8 pixels a network takes: the one copy, for training and for the service.

Headers are checked before any pixel is decoded, so that a small file cannot claim a large memory. Only JPEG, PNG and
WebP are opened, and of an animation only the first frame. Scaling to floats happens inside the exported graphs.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import BrokenImage, ClassmithError, TooLarge, UnsupportedMedia

PREPROCESS_VERSION = 1
FORMATS = ("JPEG", "PNG", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
PNG_HEADER = MAGIC[1] + b"\0\0\0\rIHDR"
BROKEN_HEADER = "The image's header is corrupt; send a complete JPEG, PNG or WebP file."
DEFAULT_MAX_PIXELS = 25_000_000
WHITE = 255
MAX_SCANS, MAX_SEGMENTS = 64, 1_000
"""Of a JPEG; a progressive one has about ten scans, a large one with its metadata 150 segments. Each scan can cost a
pass over all pixels and take 11 bytes: hours, in a small file. Pillow's time goes with the square of Exif segments."""
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # no stuffing, no filling, no restart
START, START_OF_SCAN, END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
FIRST_WITH_LENGTH = b"\xff\xc0"
"""Markers before it have none: libjpeg goes past them to the next one."""


@dataclass(frozen=True)
class PreprocessSpec:
    """How a meta-model wants its images.

    ``fit``: "pad" keeps the whole image on a white square (drawings), "crop" takes the central square (photographs).
    ``invert_dark``: light strokes on a dark ground are inverted, so that ink is always dark.
    """

    size: int
    channels: Literal[1, 3]
    fit: Literal["pad", "crop"] = "pad"
    invert_dark: bool = False

    @property
    def version(self) -> str:
        """Part of every task id: a change of preprocessing makes new tasks."""
        return (
            f"{PREPROCESS_VERSION}/{self.size}x{self.channels}/{self.fit}/{'invert' if self.invert_dark else 'as-is'}"
        )


def to_pixels(data: bytes, spec: PreprocessSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Encoded image -> ``(size, size, channels)`` uint8.

    Raises UnsupportedMedia (not JPEG, PNG or WebP), TooLarge (more than ``max_pixels``, by the header) or BrokenImage.
    """
    return fit_pixels(decode(data, spec, max_pixels=max_pixels), spec)


def claimed_pixels(data: bytes) -> int:
    """Width times height by an image's header; 0 where it cannot be read, which decoding says better."""
    try:  # reading a PNG's size is many times faster than opening it
        width, height = _png_size(data) if data.startswith(PNG_HEADER) else _open(data).size
    except ClassmithError:
        return 0
    return width * height


def decode(data: bytes, spec: PreprocessSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Encoded image -> upright "L" or "RGB" image, possibly reduced (never below twice ``spec.size``)."""
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"The image is {width} x {height} pixels, over the limit of {max_pixels / 1e6:g} megapixels; "
            "scale it down before sending it."
        )
    mode = "L" if spec.channels == 1 else "RGB"
    try:
        image.draft(mode, (2 * spec.size, 2 * spec.size))  # JPEG: decode at 1/2, 1/4 or 1/8 where that is enough
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _flatten(image, mode)
    except Exception as error:  # decoders raise many kinds; a broken file must never be a crash
        raise BrokenImage("The image is truncated or corrupt; send a complete JPEG, PNG or WebP file.") from error


def fit_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """An upright image of the right mode -> ``(size, size, channels)`` uint8, by antialiased bilinear scaling."""
    size = (spec.size, spec.size)
    if image.width == image.height:
        fitted = image.resize(size, Image.Resampling.BILINEAR)
    elif spec.fit == "crop":
        fitted = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    else:
        color = _background(image, spec)
        scale = spec.size / max(image.size)
        if round(min(image.size) * scale) == 0:  # a line, of which padding would leave nothing
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        fitted = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=color)
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(spec.size, spec.size, spec.channels)
    return np.asarray(WHITE - pixels, dtype=np.uint8) if spec.invert_dark and pixels.mean() < WHITE / 2 else pixels


def to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits (Pillow would clip it to white); any other image as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _open(data: bytes) -> Image.Image:
    if data.startswith(START):
        _check_segments(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(MAGIC) or data[:4] + data[8:12] == b"RIFFWEBP":
            raise BrokenImage(BROKEN_HEADER) from error
        raise UnsupportedMedia("This is not a JPEG, PNG or WebP image; convert it to one of these.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("The image has far too many pixels; scale it down before sending it.") from error
    except Exception as error:  # as in decode
        raise BrokenImage(BROKEN_HEADER) from error
    if data.startswith(PNG_HEADER) and image.size != _png_size(data):  # Pillow goes by the last of several headers
        raise BrokenImage(BROKEN_HEADER)
    return image


def _png_size(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _check_segments(data: bytes) -> None:
    """Raise TooLarge where a JPEG has too many; what follows its end (a phone's video) is none of it."""
    n_scans, n_segments, place = 0, 0, 0
    while (found := MARKER.search(data, place)) and found[0] != END_OF_IMAGE:
        n_scans += found[0] == START_OF_SCAN
        n_segments += 1
        if n_scans > MAX_SCANS or n_segments > MAX_SEGMENTS:
            what = f"{MAX_SCANS} scans" if n_scans > MAX_SCANS else f"{MAX_SEGMENTS} segments"
            raise TooLarge(f"The JPEG has more than {what}; save it again before sending it.")
        place = found.end()
        if found[0] >= FIRST_WITH_LENGTH and found[0] != START:
            place += int.from_bytes(data[place : place + 2])


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """To "L" or "RGB": transparency over white, 16-bit grey scaled."""
    image = to_8_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


def _background(image: Image.Image, spec: PreprocessSpec) -> int | tuple[int, int, int]:
    """White, or black where a dark image is about to be inverted."""
    dark = spec.invert_dark and np.asarray(image).mean() < WHITE / 2
    shade = 0 if dark else WHITE
    return shade if spec.channels == 1 else (shade, shade, shade)
