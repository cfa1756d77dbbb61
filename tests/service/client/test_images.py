"""Images in every form people have them become the files that are sent; what is none is refused in plain words."""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import UnusableInput
from service.client.bodies import batches, folder_classes, one, task_body
from service.client.calls import save
from service.client.images import class_folders, encoded, expanded, fit_to_send

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """zebra/1.png, zebra/2.JPG, zebra/notes.txt, horse/1.png, unlabeled/1.png, empty/, and a name with brackets."""
    for name in ("zebra/1.png", "zebra/2.JPG", "zebra/notes.txt", "horse/1.png", "unlabeled/1.png", "[odd] 1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_paths_patterns_and_folders_become_files_in_order(folder: Path) -> None:
    zebra = [folder / "zebra" / "1.png", folder / "zebra" / "2.JPG"]
    assert expanded(folder / "zebra") == zebra
    assert expanded(str(folder / "zebra")) == zebra
    assert expanded(f"{folder}/zebra/*.*g") == zebra[:1]
    assert expanded(f"{folder}/**/1.png") == [folder / name / "1.png" for name in ("horse", "unlabeled", "zebra")]
    assert expanded([str(zebra[1]), b"bytes", zebra[0]]) == [zebra[1], b"bytes", zebra[0]]
    assert expanded(folder / "[odd] 1.png") == [folder / "[odd] 1.png"]
    assert [encoded(image) for image in expanded(zebra)] == [b"zebra/1.png", b"zebra/2.JPG"]


def test_a_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert expanded("~/zebra/1.png") == [folder / "zebra" / "1.png"]


def test_what_only_looks_like_a_home_folder_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "~draft 1.png").write_bytes(b"")
    assert expanded("~draft 1.png") == [Path("~draft 1.png")]
    for ask in (expanded, partial(folder_classes, descriptions=None), partial(save, b"")):
        with pytest.raises(UnusableInput, match="~nobody"):
            ask("~nobody here/1.png")


@pytest.mark.parametrize("shown", [GREY, GREY[..., None], COLOUR, np.asfortranarray(COLOUR), COLOUR[:, ::-1]])
def test_an_array_is_sent_without_loss(shown: np.ndarray) -> None:
    (image,) = expanded(shown)
    np.testing.assert_array_equal(pixels(encoded(image)), shown.squeeze())


def test_an_array_may_be_a_batch() -> None:
    for batch in (np.stack([COLOUR] * 4), np.stack([GREY] * 4)):
        found = expanded(batch)
        assert [image.shape for image in found if isinstance(image, np.ndarray)] == [batch.shape[1:]] * 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_pillow_image_of_any_mode_is_sent(mode: str) -> None:
    image = Image.new(mode, (4, 3)) if mode == "I;16" else Image.fromarray(COLOUR).convert(mode)
    assert pixels(encoded(image)).shape[:2] == (image.height, image.width)


DEEP = np.arange(0, 65536, 65536 // 12, dtype=np.uint16)[:12].reshape(3, 4)


def sixteen_bits(mode: str) -> Image.Image:
    """As Pillow opens a PNG or TIFF of 16 bits; "I": a PNG in some of its versions."""
    if mode == "I":
        image = Image.fromarray(DEEP.astype(np.int32))
        image.format = "PNG"
        return image
    return Image.frombytes(mode, (4, 3), DEEP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_of_16_bits_the_upper_8_are_sent(mode: str) -> None:
    (image,) = expanded(sixteen_bits(mode))
    np.testing.assert_array_equal(pixels(encoded(image)), DEEP >> 8)


def test_a_large_image_of_16_bits_is_scaled_down_as_one_of_8(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 1200 * 1600).reshape(1200, 1600).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "16.png")
    sent = pixels(fit_to_send((tmp_path / "16.png").read_bytes(), 1000))
    assert sent.shape == (768, 1024)
    expected = Image.fromarray((deep >> 8).astype(np.uint8)).resize((1024, 768), Image.Resampling.BOX)
    np.testing.assert_allclose(sent.astype(int), np.asarray(expected).astype(int), atol=3)


def test_a_file_that_pillow_opened_and_cannot_read_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    (image,) = expanded(Image.open(io.BytesIO(buffer.getvalue()[:2000])))
    with pytest.raises(UnusableInput, match="cannot be read"):
        encoded(image)


def test_a_pillow_image_is_sent_upright_like_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "JPEG", exif=exif)
    with Image.open(buffer) as opened:
        assert pixels(encoded(opened)).shape == (7, 5, 3)


@pytest.mark.parametrize(("images", "words"), [
    ("nowhere.png", "There is no file nowhere.png"),
    ("nowhere/*.png", "No file matches"),
    ("x" * 5000, "There is no file"),
    ("empty", "has no JPEG, PNG or WebP"),
    (GREY.astype(np.float32), "astype"),
    (np.zeros((2, 3, 4, 5), np.uint8), "shape"),
    (np.zeros(3, np.uint8), "shape"),
    (np.zeros((0, 5), np.uint8), "shape"),
    (Image.new("I", (4, 3)), "mode 'I'"),
    (Image.new("F", (4, 3)), "mode 'F'"),
    (3, "A int is not an image"),
    ([None], "A NoneType is not an image"),
    ({"a": 1}, "A dict is not an image"),
])  # fmt: skip
def test_what_is_no_image_is_refused(images: object, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UnusableInput, match=words):
        expanded(images)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_is_said(folder: Path) -> None:
    (folder / "zebra" / "1.png").chmod(0)
    with pytest.raises(UnusableInput, match="cannot be read"):
        encoded(folder / "zebra" / "1.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_an_unreadable_folder_is_said(folder: Path) -> None:
    (folder / "zebra").chmod(0)
    for ask in (expanded, class_folders):
        with pytest.raises(UnusableInput, match="cannot be read"):
            ask(folder / "zebra")
    (folder / "zebra").chmod(0o700)


def test_a_folder_of_class_folders(folder: Path) -> None:
    classes, unlabeled = folder_classes(folder, {"horse": "no stripes", "okapi": "striped legs"})
    assert classes == {
        "horse": {"description": "no stripes", "images": [folder / "horse" / "1.png"]},
        "zebra": {"description": "", "images": [folder / "zebra" / "1.png", folder / "zebra" / "2.JPG"]},
        "okapi": "striped legs",
    }
    assert unlabeled == [folder / "unlabeled" / "1.png"]
    for wrong in (folder / "nowhere", folder / "empty"):
        with pytest.raises(UnusableInput):
            folder_classes(wrong, None)


def test_hidden_files_and_folders_are_no_images_and_no_classes(folder: Path) -> None:
    for name in (".ipynb_checkpoints/1.png", "zebra/._1.png", "horse/.hidden/2.png", ".DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    classes, _ = folder_classes(folder, None)
    assert {name: len(found["images"]) for name, found in classes.items()} == {"horse": 1, "zebra": 2}  # type: ignore[call-overload,index]
    assert [path.name for path in expanded(folder / "zebra")] == ["1.png", "2.JPG"]
    assert expanded(folder / "zebra" / "._1.png") == [folder / "zebra" / "._1.png"]  # as it was named


def test_a_class_is_words_or_images_or_both() -> None:
    body = task_body(
        {"a": "words", "b": b"1", "c": [b"1", b"2"], "d": {"description": "words", "images": b"1"}}, None, "m"
    )
    found = [(c["name"], c["description"], len(c["images"])) for c in body["classes"]]
    assert found == [("a", "words", 0), ("b", "", 1), ("c", "", 2), ("d", "words", 1)]


@pytest.mark.parametrize(("classes", "words"), [
    ({"zebra": "zebra/*.jpg"}, "looks like a file, and a string is a description"),
    ({"zebra": {"image": b"1"}}, r"not \['image'\]"),
    ({"zebra": {"description": 3}}, "A description is a string"),
    ({"zebra": ["nowhere.png"]}, "Class 'zebra': There is no file"),
    ({3: "three"}, "name is a string"),
    ({os.fsdecode(b"caf\xe9"): b"1"}, r"Class 'caf\\udce9': .* not Unicode"),
    ({"zebra": os.fsdecode(b"ray\xe9")}, "not Unicode"),
    (["zebra"], "Classes are a mapping"),
])  # fmt: skip
def test_a_class_that_cannot_be_is_refused_by_name(classes: object, words: str) -> None:
    with pytest.raises(UnusableInput, match=words):
        task_body(classes, None, "auto")  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "format"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")])
def test_a_photograph_as_cameras_make_them_is_scaled_down_to_be_sent(mode: str, format: str) -> None:
    noise = RNG.integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format, exif=exif)
    data = buffer.getvalue()
    sent = fit_to_send(data, 500_000)
    assert len(sent) < len(data)
    with Image.open(io.BytesIO(sent)) as scaled:
        assert scaled.size == (768, 1024)  # upright
        assert ("A" in scaled.getbands()) == (mode == "RGBA")
    assert fit_to_send(data, None) == fit_to_send(data, len(data)) == data
    assert fit_to_send(sent, 10) == sent  # small enough a side


@pytest.mark.parametrize("side", [1024, 2047, 2048, 4096])
def test_a_jpeg_that_decoding_alone_makes_small_is_scaled_down_too(side: int) -> None:
    """Reading one at a half or a quarter leaves just 1,024 pixels of 2,048 or 4,096."""
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (256, 256), dtype=np.uint8)).resize((side, side)).save(buffer, "JPEG")
    data = buffer.getvalue()
    sent = fit_to_send(data, 1_000)
    with Image.open(io.BytesIO(sent)) as scaled:
        assert scaled.size == (1024, 1024)
    assert (sent == data) == (side == 1024)


@pytest.mark.parametrize("data", [b"no image", b"\x89PNG\r\n\x1a\n cut off"])
def test_what_cannot_be_scaled_is_sent_as_it_is(data: bytes) -> None:
    assert fit_to_send(data, 3) == data


def test_many_images_are_sent_by_the_hundred_and_large_ones_by_their_bytes() -> None:
    assert [len(batch) for batch in batches([b"x"] * 205)] == [100, 100, 5]
    large = bytes(7_000_000)  # not an image: sent as it is
    assert [len(batch) for batch in batches([large] * 5)] == [2, 2, 1]
    assert list(batches([])) == []
    with pytest.raises(UnusableInput, match="one image"):
        one([b"1", b"2"])
