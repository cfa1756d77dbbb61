"""A user's own folders and ZIP files, read as the service reads images; what cannot be read is named."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.preprocess import PreprocessSpec, to_pixels
from service.demo.alphabet import character_name, drawing
from tests.service.centroids import photograph
from tests.training import small
from training.data import DATASETS, omniglot
from training.data.folders import DataError, ImageSet, data_root, join, read_images, with_rotations

SPEC = omniglot.SPEC


def zipped(folder: Path, target: Path, *, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_folders_become_classes_and_pixels(folders: Path, drawings: ImageSet) -> None:
    assert drawings.n_classes == small.N_CHARACTERS
    assert drawings.pixels.shape == (small.N_CHARACTERS * small.N_HANDS, 28, 28, 1)
    assert (np.diff(drawings.labels) >= 0).all()
    assert drawings.class_names == tuple(sorted(drawings.class_names))
    assert set(drawings.groups) == set(small.ALPHABETS)
    assert all(name.startswith(f"{group}/") for name, group in zip(drawings.class_names, drawings.groups, strict=True))
    k = drawings.class_names.index(f"ash/{character_name(3)}")
    np.testing.assert_array_equal(drawings.pixels[drawings.indices[k][2]], to_pixels(drawing(3, 2), SPEC))


def test_a_zip_is_read_as_its_folder(folders: Path, drawings: ImageSet, tmp_path: Path) -> None:
    images = read_images(zipped(folders, tmp_path / "drawings.zip"), SPEC)
    assert images.digest == drawings.digest
    assert (images.class_names, images.groups) == (drawings.class_names, drawings.groups)


def test_without_a_folder_above_each_class_is_its_own_group(tmp_path: Path) -> None:
    for character in range(3):
        write(tmp_path / character_name(character) / "1.png", drawing(character, 0))
    images = read_images(tmp_path, SPEC)
    assert images.groups == images.class_names == tuple(sorted(character_name(k) for k in range(3)))
    nested = read_images(zipped(tmp_path, tmp_path.parent / "nested.zip", prefix="my data/"), SPEC)
    assert nested.groups == nested.class_names
    assert [Path(name).name for name in nested.class_names] == list(images.class_names)


def test_every_format_and_case_of_suffix_is_read_and_other_files_are_left(tmp_path: Path) -> None:
    for name, format in {"a.JPG": "JPEG", "b.jpeg": "JPEG", "c.webp": "WEBP", "d.PNG": "PNG"}.items():
        write(tmp_path / "class" / name, photograph(1, format=format))
    write(tmp_path / "class" / "notes.txt", b"no image")
    write(tmp_path / "README.md", b"no image")
    images = read_images(tmp_path, PreprocessSpec(32, 3, "crop"))
    assert images.pixels.shape == (4, 32, 32, 3)
    assert images.class_names == ("class",)


def test_hidden_files_and_what_macos_adds_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", drawing(0, 0))
    write(tmp_path / "a" / "._1.png", b"resource fork")
    write(tmp_path / "__MACOSX" / "a" / "._1.png", b"resource fork")
    write(tmp_path / ".cache" / "b" / "1.png", drawing(1, 0))
    for source in (tmp_path, zipped(tmp_path, tmp_path.parent / "from-a-mac.zip")):
        assert read_images(source, SPEC).class_names == ("a",)


@pytest.mark.parametrize("data", [drawing(0, 0)[:60], b"GIF89a" + bytes(30), b""])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, data: bytes) -> None:
    write(tmp_path / "b" / "good.png", drawing(0, 1))
    write(tmp_path / "b" / "spoilt.png", data)
    with pytest.raises(DataError, match=r"^b/spoilt\.png: .*(send|convert)"):
        read_images(tmp_path, SPEC)


def test_nothing_to_read_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        read_images(tmp_path / "empty", SPEC)
    for path in (tmp_path / "missing", write(tmp_path / "text.zip", b"no archive")):
        with pytest.raises(DataError, match="neither a folder nor a ZIP"):
            read_images(path, SPEC)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_says_so(folders: Path, tmp_path: Path, compression: int) -> None:
    path = zipped(folders, tmp_path / "drawings.zip", compression=compression)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first = next(info for info in archive.infolist() if info.file_size)
    start = first.header_offset + 30 + len(first.filename)
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged ZIP file.*copy or make it again"):
        read_images(path, SPEC)


@pytest.mark.parametrize(("at", "value"), [(6, 1), (8, 9)], ids=["a password", "another compression"])
def test_a_zip_that_is_not_plain_is_to_be_made_again(tmp_path: Path, at: int, value: int) -> None:
    """Its flags, or its compression, in the local header and (2 bytes on) in the directory."""
    write(tmp_path / "images" / "a" / "1.png", drawing(0, 0))
    path = zipped(tmp_path / "images", tmp_path / "images.zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.infolist()[-1].header_offset + at] = value
        data[data.rindex(b"PK\x01\x02") + 2 + at] = value
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a password, or a compression .*make it again as a plain ZIP"):
        read_images(path, SPEC)


def test_links_to_class_folders_are_followed_and_those_that_lead_back_are_not(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a" / "1.png", drawing(0, 0))
    write(tmp_path / "elsewhere" / "1.png", drawing(1, 0))
    (tmp_path / "images" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "a" / "all").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "images" / "b")
    assert read_images(tmp_path / "images", SPEC).class_names == ("a", "b")


@pytest.mark.parametrize("is_zip", [False, True])
def test_class_folders_without_an_image_that_can_be_read_are_named(tmp_path: Path, is_zip: bool) -> None:
    images = tmp_path / "images"
    for name, file in (("a", "1.png"), ("b", "1.BMP"), ("c", "1.gif"), ("e", "1.tif")):
        write(images / name / file, drawing(0, 0))
    (images / "d").mkdir()
    source = zipped(images, tmp_path / "images.zip") if is_zip else images
    with pytest.raises(DataError, match=r"no image that can be read in 'b', 'c', 'd' and 1 more; convert .* or remove"):
        read_images(source, SPEC)


def test_what_stands_beside_class_folders_and_is_no_class_is_left(tmp_path: Path) -> None:
    write(tmp_path / "group" / "a" / "1.png", drawing(0, 0))
    write(tmp_path / "group" / "a" / "1.bmp", b"beside one that can be read")
    write(tmp_path / "descriptions.json", b"{}")
    write(tmp_path / "logo.gif", b"no class")
    write(tmp_path / "documents" / "notes.txt", b"no image")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".hidden").mkdir()
    for source in (tmp_path, zipped(tmp_path, tmp_path.parent / "beside.zip")):
        assert read_images(source, SPEC).class_names == ("group/a",)


@pytest.mark.parametrize("prefix", ["", "my data/"])
def test_images_outside_of_class_folders_are_refused(tmp_path: Path, prefix: str) -> None:
    write(tmp_path / "a" / "1.png", drawing(0, 0))
    write(tmp_path / "cover.png", drawing(1, 0))
    path = zipped(tmp_path, tmp_path.parent / "loose.zip", prefix=prefix)
    with pytest.raises(DataError, match=rf": {prefix}cover\.png is outside of the class folders; put each .*<class>/"):
        read_images(path, SPEC)
    (tmp_path / "a" / "1.png").unlink()
    (tmp_path / "a").rmdir()
    with pytest.raises(DataError, match=r": cover\.png is outside"):
        read_images(tmp_path, SPEC)


def test_a_link_to_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", drawing(0, 0))
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a/2\.png cannot be read .*copy it again"):
        read_images(tmp_path, SPEC)


def test_the_digest_names_images_labels_and_names(drawings: ImageSet) -> None:
    def changed(**fields: object) -> str:
        return ImageSet(
            **{**{f: getattr(drawings, f) for f in ("pixels", "labels", "class_names", "groups")}, **fields}
        ).digest

    pixels = drawings.pixels.copy()
    pixels[-1, 0, 0, 0] ^= 1
    names = (*drawings.class_names[:-1], "another")
    digests = {
        drawings.digest,
        changed(pixels=pixels),
        changed(labels=drawings.labels[::-1].copy()),
        changed(class_names=names),
    }
    assert len(digests) == 4
    assert changed() == drawings.digest
    written = "\n".join(drawings.class_names).encode() + drawings.labels.tobytes() + drawings.pixels.tobytes()
    assert drawings.digest == hashlib.sha256(written).hexdigest()[:12]
    assert changed(pixels=np.asfortranarray(drawings.pixels)) == drawings.digest


def test_a_digest_holds_no_second_copy_of_the_pixels() -> None:
    images = ImageSet(np.zeros((2, 2000, 500, 3), np.uint8), np.arange(2), ("a", "b"), ("a", "b"))
    tracemalloc.start()
    assert images.digest
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < images.pixels.nbytes / 10


def test_a_part_keeps_classes_whole(drawings: ImageSet) -> None:
    part = drawings.where(lambda _, group: group == "birch")
    assert set(part.groups) == {"birch"}
    assert part.labels.tolist() == np.repeat(np.arange(part.n_classes), small.N_HANDS).tolist()
    for k, name in enumerate(part.class_names):
        there = drawings.indices[drawings.class_names.index(name)]
        np.testing.assert_array_equal(part.pixels[part.indices[k]], drawings.pixels[there])
    with pytest.raises(DataError, match="No class is left"):
        drawings.where(lambda *_: False)


def test_joined_sets_keep_their_classes_apart(drawings: ImageSet) -> None:
    both = join([drawings, drawings])
    assert both.n_classes == 2 * drawings.n_classes
    np.testing.assert_array_equal(both.pixels[both.indices[-1]], drawings.pixels[drawings.indices[-1]])


def test_of_ones_own_images_every_sixth_class_validates(folders: Path) -> None:
    train, validation = DATASETS["omniglot"].split(folders)
    assert (train.n_classes, validation.n_classes) == (11, 3)
    assert not set(train.class_names) & set(validation.class_names)


def test_too_few_classes_to_train_on_say_how_many_there_are(folders: Path, tmp_path: Path) -> None:
    for name in ("birch", "cedar"):
        shutil.copytree(folders / name, tmp_path / name)
    shutil.rmtree(next((tmp_path / "birch").iterdir()))
    shutil.rmtree(next((tmp_path / "birch").iterdir()))
    shutil.rmtree(next((tmp_path / "cedar").iterdir()))
    with pytest.raises(DataError, match=r"7 classes at least.* has 6"):
        DATASETS["omniglot"].split(tmp_path)


def test_data_sets_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("CLASSMITH_DATASETS")
    assert data_root().parts[-2:] == ("shared", "data")


def test_each_turn_of_a_class_is_a_class_of_its_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 1), dtype=np.uint8)
    images = ImageSet(pixels, np.array([0, 0, 1, 1]), ("a/x", "a/y"), ("a", "a"))
    turned = with_rotations(images)
    assert turned.class_names == tuple(f"{name}@{angle}" for angle in (0, 90, 180, 270) for name in images.class_names)
    assert turned.groups == tuple(f"a@{angle}" for angle in (0, 90, 180, 270) for _ in range(2))
    for quarter in range(4):
        for k in range(2):
            found = turned.pixels[turned.indices[2 * quarter + k]]
            np.testing.assert_array_equal(found, np.rot90(images.pixels[images.indices[k]], quarter, axes=(1, 2)))
