"""What an image's header claims is what is decoded, so that limits by the header are limits of the work."""

from __future__ import annotations

import pytest
from PIL import Image

from models.errors import BrokenImage
from models.preprocess import PreprocessSpec, claimed_pixels, decode
from tests.models.test_preprocess import chunk, encoded, png, webp

PHOTO = PreprocessSpec(1000, 3, "crop")
"""So large that a JPEG is not reduced while it is decoded."""
SEVERAL_HEADERS = {
    "larger": (1, 1, 500, 500),
    "smaller": (500, 500, 1, 1),
    "turned": (1, 500, 500, 1),
}


def with_second_header(first: bytes, second: bytes) -> bytes:
    """A PNG with the header of another one behind its own."""
    return first[:33] + chunk(b"IHDR", second[16:29]) + first[33:]


@pytest.mark.parametrize("case", SEVERAL_HEADERS)
@pytest.mark.parametrize("between", [b"", chunk(b"tEXt", b"a\0IDAT")])
def test_a_png_with_a_second_size_is_refused(case: str, between: bytes) -> None:
    """Pillow goes by the last header before the pixels: a small claim, and much work."""
    *claimed, width, height = SEVERAL_HEADERS[case]
    rows = bytes((width * 3 + 1) * height)
    data = with_second_header(png(*claimed, data=rows, extra=between), png(width, height))
    assert claimed_pixels(data) == claimed[0] * claimed[1]
    with pytest.raises(BrokenImage):
        decode(data, PHOTO)


def test_a_png_whose_size_is_not_where_it_should_be_is_opened_to_read_it() -> None:
    small, large = png(1, 1), png(500, 500, data=bytes(1501 * 500))
    longer = large[:8] + chunk(b"IHDR", large[16:29] + b"\0") + large[33:]
    behind_a_text = small[:8] + chunk(b"tEXt", b"a\0b") + with_second_header(small, large)[8:58] + large[33:]
    for data in (longer, behind_a_text):
        assert claimed_pixels(data) == 250_000 == _decoded(data)


def _decoded(data: bytes) -> int:
    width, height = decode(data, PHOTO).size
    return width * height


FRAMES = [Image.new("RGB", (90, 40), shade) for shade in ("red", "blue", "white")]
SOUND = {
    "PNG": encoded(FRAMES[0]),
    "PNG of a palette": encoded(FRAMES[0].convert("P")),
    "animated PNG": encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]),
    "animated PNG with another first image": encoded(
        FRAMES[0], save_all=True, append_images=FRAMES[1:], default_image=True
    ),
    "JPEG": encoded(FRAMES[0], "JPEG"),
    "progressive JPEG": encoded(FRAMES[0], "JPEG", progressive=True),
    "JPEG of several pictures": encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
    "WebP": encoded(FRAMES[0], "WEBP"),
    "lossless WebP": encoded(FRAMES[0], "WEBP", lossless=True),
    "animated WebP": encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "WebP of a canvas larger than its frame": webp(300, 200),
}


@pytest.mark.parametrize("case", SOUND)
def test_what_is_claimed_is_what_is_decoded(case: str) -> None:
    assert claimed_pixels(SOUND[case]) == _decoded(SOUND[case]) > 0
