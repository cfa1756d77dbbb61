"""Omniglot's split keeps whole alphabets apart. Laid out with invented drawings."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import pytest

from models.preprocess import to_pixels
from service.demo.alphabet import drawing
from training.data import DATASETS, cifar_fs, omniglot
from training.data.folders import DataError, ImageSet

N_ALPHABETS = 7


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data root with 7 alphabets of two characters by two hands, laid out as Omniglot is."""
    for character in range(2 * N_ALPHABETS):
        folder = tmp_path / "omniglot" / "images_background" / f"alphabet{character // 2}" / f"character{character % 2}"
        folder.mkdir(parents=True)
        for hand in range(2):
            (folder / f"{hand}.png").write_bytes(drawing(character, hand))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("root")
def test_whole_alphabets_are_kept_out_of_training() -> None:
    train, validation, everything = (omniglot.load(part) for part in ("train", "validation", "all"))
    assert set(validation.groups) == {"alphabet0", "alphabet6"}
    assert set(train.groups) == {f"alphabet{k}" for k in range(1, 6)}
    assert everything.n_classes == 2 * N_ALPHABETS
    assert validation.n_classes == 4
    assert train.n_classes == 10


def test_a_zip_comes_before_a_folder_and_none_says_how_to_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert omniglot.source().name == "images_background"
    with zipfile.ZipFile(root / "omniglot" / "images_background.zip", "w") as archive:
        archive.writestr("images_background/a/b/1.png", drawing(0, 0))
    assert omniglot.source().name == "images_background.zip"
    monkeypatch.setenv("CLASSMITH_DATASETS", str(root / "nowhere"))
    with pytest.raises(DataError, match=r"training data omniglot.*CLASSMITH_DATASETS"):
        omniglot.load("train")
    with pytest.raises(DataError, match=r"training data cifar-fs"):
        cifar_fs.load("train")


@pytest.mark.usefixtures("root")
def test_the_data_set_is_split_by_name() -> None:
    train, validation = DATASETS["omniglot"].split()
    assert isinstance(train, ImageSet)
    assert (train.digest, validation.digest) == (omniglot.load("train").digest, omniglot.load("validation").digest)


@pytest.mark.parametrize("own", [False, True], ids=["the data set's", "one's own"])
def test_training_images_can_be_larger_than_those_that_validate(root: Path, own: bool) -> None:
    images = root / "omniglot" / "images_background" if own else None
    train, validation = DATASETS["omniglot"].split(images, train_size=36)
    usual, same = DATASETS["omniglot"].split(images)
    assert train.pixels.shape[1:] == (36, 36, 1)
    assert validation.digest == same.digest
    assert (train.class_names, train.labels.tolist()) == (usual.class_names, usual.labels.tolist())


def test_the_real_set_has_the_layout_that_is_counted_on() -> None:
    """Names only, and a few of its images: decoding all of them takes a while."""
    try:
        source = omniglot.source()
    except DataError as missing:
        pytest.skip(str(missing))
    if source.is_dir():
        names = [path.relative_to(source.parent).as_posix() for path in source.rglob("*.png")]
        read = (source.parent / names[0]).read_bytes
    else:
        archive = zipfile.ZipFile(source)
        names = [name for name in archive.namelist() if name.endswith(".png")]
        read = lambda: archive.read(names[0])  # noqa: E731
    characters = {PurePosixPath(name).parent for name in names}
    assert len(names) == 964 * 20
    assert len(characters) == 964
    assert len({character.parent for character in characters}) == 30
    pixels = to_pixels(read(), omniglot.SPEC)
    assert pixels.shape == (28, 28, 1)
    assert pixels.mean() > 128
