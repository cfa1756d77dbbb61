"""Every image that opens becomes the pixels it shows; what is hostile, broken or too large is refused, cheaply."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from models.errors import BrokenImage, ClassmithError, TooLarge, UnsupportedMedia
from models.preprocess import PreprocessSpec, claimed_pixels, decode, to_pixels
from service.demo.alphabet import drawing
from tests.service.centroids import photograph

GREY = PreprocessSpec(28, 1, "pad")
DRAWING = PreprocessSpec(28, 1, "pad", invert_dark=True)
COLOUR = PreprocessSpec(32, 3, "crop")
FORMATS = ("PNG", "JPEG", "WEBP")
RED, WHITE = (255, 0, 0), (255, 255, 255)
ORIENTATION, TOP_LEFT_TO_RIGHT = (
    0x0112,
    {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)},
)
"""EXIF orientation -> (row, column) of the quarter where the stored top left quarter is seen."""


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def corner(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White, the top left quarter red."""
    image = Image.new("RGB", size, "white")
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image


def quarters(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters, ``(2, 2, C)``."""
    step = pixels.shape[0] // 4
    return pixels[step :: 2 * step, step :: 2 * step][:2, :2]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + end


def riff(kind: bytes, body: bytes, *rest: bytes) -> bytes:
    chunks = b"".join([kind + struct.pack("<I", len(body)) + body, *rest])
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def webp(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is far larger than the one small frame in it."""
    frame = bytes(6) + 2 * struct.pack("<I", 7)[:3] + bytes(4) + encoded(Image.new("RGB", (8, 8)), "WEBP")[12:]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    animation = b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return riff(b"VP8X", b"\x02\0\0\0" + size, animation)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header says otherwise."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


# --- what an image shows


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("spec", [GREY, DRAWING, COLOUR, PreprocessSpec(84, 3, "crop"), PreprocessSpec(32, 3, "pad")])
def test_every_format_becomes_pixels_of_the_spec(format: str, spec: PreprocessSpec) -> None:
    pixels = to_pixels(encoded(corner((90, 60)), format), spec)
    assert pixels.shape == (spec.size, spec.size, spec.channels)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("format", FORMATS)
def test_colours_and_places_are_kept(format: str) -> None:
    options = {"quality": 95} if format != "PNG" else {}
    seen = quarters(to_pixels(encoded(corner(), format, **options), COLOUR)).astype(int)
    expected = np.array([[RED, WHITE], [WHITE, WHITE]])
    assert np.abs(seen - expected).max() < 12


@pytest.mark.parametrize("orientation", TOP_LEFT_TO_RIGHT)
@pytest.mark.parametrize("format", FORMATS)
def test_exif_orientation_is_followed(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(corner(), format, exif=exif)
    is_red = quarters(to_pixels(data, COLOUR))[..., 1] < 128
    row, column = TOP_LEFT_TO_RIGHT[orientation]
    expected = np.zeros((2, 2), bool)
    expected[row, column] = True
    np.testing.assert_array_equal(is_red, expected)


def test_orientation_turns_the_sides_before_the_image_is_fitted() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = decode(encoded(corner((80, 40)), "JPEG", exif=exif), COLOUR)
    assert image.size == (40, 80)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of the corrupt EXIF
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage!",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ],
    ids=["garbage", "empty", "too many tags", "far offset", "orientation 99"],
)
def test_corrupt_exif_does_not_spoil_an_image(exif: bytes) -> None:
    data = encoded(corner(), "JPEG")
    with_exif = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    np.testing.assert_array_equal(to_pixels(with_exif, COLOUR), to_pixels(data, COLOUR))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    image = Image.fromarray(np.broadcast_to(ramp, (64, 64)).copy())
    assert image.mode == "I;16"
    row = to_pixels(encoded(image), GREY)[14, :, 0].astype(int)
    assert (np.diff(row) > 0).all()
    assert row[0] < 8
    assert row[-1] > 247
    in_colour = to_pixels(encoded(image), COLOUR)
    assert (in_colour[..., 0] == in_colour[..., 2]).all()


def test_transparency_is_over_white() -> None:
    """In its four forms: an alpha channel (colour, grey), a palette with alphas, and one colour that is transparent."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 32))
    keyed = Image.new("RGB", (64, 64), "black")
    keyed.paste(RED, (0, 0, 32, 32))
    forms = {
        "RGBA": encoded(image),
        "palette": encoded(image.quantize(16)),
        "colour key": encoded(keyed, transparency=(0, 0, 0)),
        "WebP": encoded(image, "WEBP", lossless=True),
    }
    for name, data in forms.items():
        seen = quarters(to_pixels(data, COLOUR)).astype(int)
        assert np.abs(seen - np.array([[RED, WHITE], [WHITE, WHITE]])).max() < 8, name
    grey = Image.new("LA", (64, 64), (0, 0))
    grey.paste((90, 255), (0, 0, 32, 32))
    np.testing.assert_allclose(quarters(to_pixels(encoded(grey), GREY))[..., 0], [[90, 255], [255, 255]], atol=2)


def test_a_palette_with_a_transparent_entry_is_over_white() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(0, (0, 0, 32, 32))
    data = encoded(image, transparency=b"\xff\x00")
    np.testing.assert_allclose(quarters(to_pixels(data, COLOUR)).astype(int), [[RED, WHITE], [WHITE, WHITE]], atol=2)


def test_cmyk_jpegs_show_their_colours() -> None:
    seen = quarters(to_pixels(encoded(corner().convert("CMYK"), "JPEG", quality=95), COLOUR)).astype(int)
    assert np.abs(seen - np.array([[RED, WHITE], [WHITE, WHITE]])).max() < 12
    in_grey = quarters(to_pixels(encoded(corner().convert("CMYK"), "JPEG", quality=95), GREY))
    assert abs(int(in_grey[0, 0, 0]) - 76) < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_gives_the_same_drawing(mode: str) -> None:
    """Black on white, saved in each mode."""
    drawn = Image.open(io.BytesIO(drawing(3, 1)))
    image = (
        Image.fromarray(np.asarray(drawn.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else drawn.convert(mode)
    )
    np.testing.assert_array_equal(to_pixels(encoded(image), DRAWING), to_pixels(drawing(3, 1), DRAWING))


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    others = [Image.new("RGB", (64, 64), colour) for colour in ("black", "blue")]
    data = encoded(corner(), format, save_all=True, append_images=others, lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(to_pixels(data, COLOUR), to_pixels(encoded(corner()), COLOUR))


def test_of_a_phones_many_pictured_jpeg_the_first_is_taken() -> None:
    """MPO: a JPEG with further JPEGs behind it, as some phones write."""
    data = encoded(corner(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")], quality=95)
    assert (quarters(to_pixels(data, COLOUR))[..., 2] > 128).tolist() == [[False, True], [True, True]]


def test_padding_keeps_the_whole_image_and_cropping_its_middle() -> None:
    wide = Image.new("L", (90, 30), 100)
    wide.paste(0, (30, 0, 60, 30))
    padded = to_pixels(encoded(wide), PreprocessSpec(30, 1, "pad"))[..., 0]
    assert padded[0, 15] == 255
    assert padded[15, 15] == 0
    assert padded[15, 2] == 100
    assert (to_pixels(encoded(wide), PreprocessSpec(30, 1, "crop")) == 0).all()


def test_light_strokes_on_dark_are_inverted_and_only_where_asked_for() -> None:
    dark_on_light = Image.open(io.BytesIO(drawing(1, 2))).convert("L")
    light_on_dark = ImageOps.invert(dark_on_light)
    as_drawn = to_pixels(encoded(dark_on_light), DRAWING)
    np.testing.assert_allclose(to_pixels(encoded(light_on_dark), DRAWING).astype(int), as_drawn, atol=1)
    assert to_pixels(encoded(light_on_dark), GREY).mean() < 128
    wide = ImageOps.invert(Image.new("L", (90, 30), "white"))
    assert (to_pixels(encoded(wide), DRAWING) == 255).all()  # the padding takes the ground's shade first


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(FORMATS), st.sampled_from([GREY, DRAWING, COLOUR]))
@settings(max_examples=60)
def test_any_proportions_fit(width: int, height: int, format: str, spec: PreprocessSpec) -> None:
    pixels = to_pixels(encoded(Image.new("RGB", (width, height), RED), format), spec)
    assert pixels.shape == (spec.size, spec.size, spec.channels)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
@pytest.mark.parametrize("spec", [DRAWING, COLOUR])
def test_a_line_of_pixels_fits(size: tuple[int, int], spec: PreprocessSpec) -> None:
    assert to_pixels(encoded(Image.new("RGB", size, RED)), spec).shape == (spec.size, spec.size, spec.channels)


@pytest.mark.parametrize("size", [(200, 3), (3, 200), (4000, 1), (55, 1)])
def test_of_a_very_thin_drawing_something_is_left(size: tuple[int, int]) -> None:
    """It would be scaled to no pixels, and padded to a blank page."""
    assert (to_pixels(encoded(Image.new("L", size, 0)), GREY) < 128).any()


def test_large_jpegs_are_reduced_while_decoding_but_not_below_twice_the_size() -> None:
    large = encoded(Image.new("RGB", (1024, 768), RED), "JPEG")
    reduced = decode(large, COLOUR)
    assert 64 <= min(reduced.size) < 768
    smooth = to_pixels(photograph(3, size=640), COLOUR).astype(int)
    plain = np.asarray(Image.open(io.BytesIO(photograph(3, size=640))).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(smooth - plain).mean() < 2


def test_the_version_names_everything_that_changes_pixels() -> None:
    specs = [
        GREY,
        DRAWING,
        COLOUR,
        PreprocessSpec(32, 3, "pad"),
        PreprocessSpec(32, 1, "crop"),
        PreprocessSpec(64, 3, "crop"),
    ]
    assert len({spec.version for spec in specs}) == len(specs)


# --- what is refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(40),
        b"BM" + bytes(60),
        b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF0000WAVE",
    ],
)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="convert it"):
        to_pixels(data, COLOUR)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_formats_that_pillow_could_open_are_refused(format: str) -> None:
    with pytest.raises(UnsupportedMedia):
        to_pixels(encoded(corner((32, 32)), format), COLOUR)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_broken_at_every_length(format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    data = encoded(noise, format)
    with pytest.raises(BrokenImage, match="send a complete"):
        to_pixels(data[: max(12, int(share * len(data)))], COLOUR)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of corrupt metadata
@given(st.sampled_from(FORMATS), st.data())
@settings(max_examples=150)
def test_corrupt_bytes_give_pixels_or_an_error_of_ours(format: str, data: st.DataObject) -> None:
    image = bytearray(encoded(corner((24, 24)), format))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ClassmithError):
        assert to_pixels(bytes(image), COLOUR, max_pixels=10_000).shape == (32, 32, 3)


@pytest.mark.parametrize("make", [png, webp, jpeg])
@pytest.mark.parametrize("size", [(6000, 6000), (16000, 16000)])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of bombs itself
def test_a_bomb_is_refused_by_its_header(make: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    data = make(*size)
    assert len(data) < 1000
    with pytest.raises(TooLarge, match="scale it down"):
        to_pixels(data, COLOUR)


def test_the_limit_is_inclusive_and_in_the_message() -> None:
    data = encoded(corner((40, 50)))
    assert to_pixels(data, COLOUR, max_pixels=2000).shape == (32, 32, 3)
    with pytest.raises(TooLarge, match=r"40 x 50 pixels, over the limit of 0\.001999 megapixels"):
        to_pixels(data, COLOUR, max_pixels=1999)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [0, 2**31 - 1])
def test_impossible_sizes_are_refused(width: int) -> None:
    with pytest.raises(ClassmithError):
        to_pixels(png(width, 5), COLOUR)


def test_bombs_cost_no_memory() -> None:
    """In a process of its own, whose peak grows by less than a hundredth of what the images claim.

    (``ru_maxrss`` would not do: Linux starts it from the parent's.)
    """
    program = (
        "import pathlib, re, warnings; warnings.simplefilter('ignore')\n"
        "from models.errors import ClassmithError\n"
        "from tests.models import test_preprocess as t\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
        "t.to_pixels(t.encoded(t.corner(), 'WEBP'), t.COLOUR); before = peak()\n"
        "for make in (t.png, t.webp, t.jpeg):\n"
        "    for side in (6000, 16000):\n"
        "        try: t.to_pixels(make(side, side), t.COLOUR)\n"
        "        except ClassmithError: pass\n"
        "        else: raise SystemExit('not refused')\n"
        "print(peak() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown_kib = int(result.stdout)
    assert grown_kib < 16000**2 * 3 / 1024 / 100


def test_texts_that_unpack_to_much_are_refused() -> None:
    """A PNG's compressed text is a bomb of its own."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 50_000_000, zip=True)
    data = encoded(corner(), pnginfo=info)
    assert len(data) < 100_000
    with pytest.raises(BrokenImage):
        to_pixels(data, COLOUR)


@pytest.mark.parametrize("format", FORMATS)
def test_a_polyglot_is_only_its_image(format: str) -> None:
    """A page and an archive behind the image change nothing; before it, it is no image at all."""
    data = encoded(corner(), format)
    page = b"<script>alert(1)</script>PK\x05\x06" + bytes(18)
    np.testing.assert_array_equal(to_pixels(data + page, COLOUR), to_pixels(data, COLOUR))
    with pytest.raises(UnsupportedMedia):
        to_pixels(page + data, COLOUR)


def test_a_format_is_told_by_its_bytes_not_by_its_first_words() -> None:
    """A GIF's header in a JPEG's comment, and a PNG's magic before a JPEG."""
    data = encoded(corner(), "JPEG")
    comment = b"GIF89a" + encoded(corner(), "GIF")[6:200]
    hidden = data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]
    np.testing.assert_array_equal(to_pixels(hidden, COLOUR), to_pixels(data, COLOUR))
    with pytest.raises(BrokenImage):
        to_pixels(b"\x89PNG\r\n\x1a\n" + data, COLOUR)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_claimed_by_the_header(format: str) -> None:
    data = encoded(Image.new("RGB", (70, 30)), format)
    assert claimed_pixels(data) == 2100
    assert claimed_pixels(data[:60]) in (0, 2100)  # where the header itself is cut, decoding says so
    assert claimed_pixels(data[:20]) == 0
    assert claimed_pixels(b"") == 0


def test_a_png_may_claim_what_pillow_would_not_open() -> None:
    assert claimed_pixels(png(2**31 - 1, 2**31 - 1)) == (2**31 - 1) ** 2
