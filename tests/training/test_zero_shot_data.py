"""The four zero-shot data sets, in small made-up archives of their published layouts, whole and broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import Flowers102

from models.preprocess import PreprocessSpec, to_pixels
from tests.service.centroids import photograph
from training.cli import main
from training.data import DATASETS, awa2, cub, flowers_species, nabirds, zero_shot
from training.data.folders import DataError

SMALL = PreprocessSpec(size=8, channels=3, fit="crop")
BIRDS = tuple(f"{i:03d}.Bird_{letter}" for i, letter in enumerate("ABCDEF", 1))
ANIMALS = ("antelope", "fox", "giant+panda", "grizzly+bear", "horse")
PLUMAGES = {
    "0": "Birds", "1": "Falcons", "2": "American Kestrel", "3": "American Kestrel (Adult male)",
    "4": "American Kestrel (Female, immature)", "5": "Ducks", "6": "Mallard (Breeding male)", "7": "Merlin",
    "8": "Gadwall",
}  # fmt: skip
PARENTS = {"1": "0", "2": "1", "3": "2", "4": "2", "5": "0", "6": "5", "7": "1", "8": "5"}
SHOWN = ("3", "4", "6", "7", "8")


def write(path: Path, lines: Mapping[str, str] | tuple[str, ...] | list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{key} {value}" for key, value in lines.items()] if isinstance(lines, Mapping) else lines
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photograph(seed, size=16))


def write_split(folder: Path, train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]) -> None:
    for name, classes in zip(zero_shot.LISTS.values(), (train, validation, test), strict=True):
        write(folder / name, classes)


def write_cub(root: Path) -> Path:
    folder = root / "cub" / "CUB_200_2011"
    paths = {str(2 * i + j + 1): f"{name}/{name}_{j}.jpg" for i, name in enumerate(BIRDS) for j in range(2)}
    write(folder / "classes.txt", {str(i): name for i, name in enumerate(BIRDS, 1)})
    write(folder / "images.txt", paths)
    for number, path in paths.items():
        write_image(folder / "images" / path, int(number))
    write_split(root / "cub" / "splits" / "standard", BIRDS[:3], BIRDS[3:4], BIRDS[4:])
    write_split(root / "cub" / "splits" / "proposed", BIRDS[3:], BIRDS[2:3], BIRDS[:2])
    return folder


def write_awa2(root: Path) -> Path:
    folder = root / "awa2" / "Animals_with_Attributes2"
    write(folder / "classes.txt", [f"{i:8d}\t{name}" for i, name in enumerate(ANIMALS, 1)])
    for i, name in enumerate(ANIMALS):
        for j in range(2):
            write_image(folder / "JPEGImages" / name / f"{name}_{j}.jpg", 2 * i + j)
    write_split(root / "awa2" / "splits" / "standard", ANIMALS[:2], ANIMALS[2:4], ANIMALS[4:])
    return folder


def write_nabirds(root: Path) -> Path:
    folder = root / "nabirds" / "nabirds"
    write(folder / "classes.txt", PLUMAGES)
    write(folder / "hierarchy.txt", PARENTS)
    images = {f"{category}a-{i}": f"{int(category):04d}/{category}a{i}.jpg" for category in SHOWN for i in range(2)}
    write(folder / "images.txt", images)
    write(folder / "image_class_labels.txt", {image: image.split("a-")[0] for image in images})
    for i, path in enumerate(images.values()):
        write_image(folder / "images" / path, i)
    write_split(root / "nabirds" / "splits" / "standard", ("American Kestrel", "Mallard"), ("Merlin",), ("Gadwall",))
    return folder


def write_flowers(root: Path) -> Path:
    """One flower each of the 102 classes, as torchvision unpacks them."""
    folder = root / "flowers-species" / "flowers-102"
    for i in range(1, 103):
        write_image(folder / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 103)[None]})
    return folder


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    return tmp_path


def test_cub_is_read_by_its_lists(root: Path) -> None:
    folder = write_cub(root)
    train, validation, test, everything = (cub.load(part, SMALL) for part in ("train", "validation", "test", "all"))
    assert train.class_names == train.groups == BIRDS[:3]
    assert (validation.class_names, test.class_names, everything.class_names) == (BIRDS[3:4], BIRDS[4:], BIRDS)
    assert everything.labels.tolist() == np.repeat(np.arange(6), 2).tolist()
    image = folder / "images" / BIRDS[5] / f"{BIRDS[5]}_1.jpg"
    np.testing.assert_array_equal(test.pixels[3], to_pixels(image.read_bytes(), SMALL))


def test_the_proposed_split_is_another_data_set_of_the_same_images(root: Path) -> None:
    write_cub(root)
    train, validation = DATASETS["cub-ps"].split()
    assert (train.class_names, validation.class_names) == (BIRDS[3:], BIRDS[2:3])
    assert train.pixels.shape == (6, 224, 224, 3)
    assert DATASETS["cub"].load("test").class_names == BIRDS[4:]


def test_only_the_images_that_are_asked_for_are_decoded(root: Path) -> None:
    folder = write_cub(root)
    (folder / "images" / BIRDS[5] / f"{BIRDS[5]}_1.jpg").write_bytes(b"no image")
    assert cub.load("train", SMALL).n_classes == 3
    with pytest.raises(DataError, match=rf"{BIRDS[5]}_1\.jpg: .*convert"):
        cub.load("test", SMALL)


def test_an_archive_unpacked_without_its_own_folder_is_found(root: Path) -> None:
    folder = write_cub(root)
    for path in list(folder.iterdir()):
        path.rename(folder.parent / path.name)
    assert cub.source() == root / "cub"
    assert cub.load("all", SMALL).class_names == BIRDS


def test_awa2_is_read_by_its_folders(root: Path) -> None:
    folder = write_awa2(root)
    (folder / "JPEGImages" / "fox" / "notes.txt").write_text("no image")
    assert awa2.load("all", SMALL).class_names == ANIMALS
    assert awa2.load("train", SMALL).class_names == ANIMALS[:2]
    assert awa2.load("test", SMALL).labels.tolist() == [0, 0]


def test_of_xians_thirteen_validation_animals_ten_validate() -> None:
    names = [f"animal {i:02d}" for i in range(50)]
    split = awa2.with_fewer_validating(
        {"train": frozenset(names[:27]), "validation": frozenset(names[27:40]), "test": frozenset(names[40:])}
    )
    assert {part: len(classes) for part, classes in split.items()} == {"train": 30, "validation": 10, "test": 10}
    assert split["validation"] == set(names[27:37])
    assert split["test"] == set(names[40:])


def test_nabirds_plumages_are_one_species_grouped_by_what_is_above(root: Path) -> None:
    write_nabirds(root)
    birds = nabirds.load("all", SMALL)
    assert birds.class_names == ("American Kestrel", "Gadwall", "Mallard", "Merlin")
    assert birds.groups == ("Falcons", "Ducks", "Ducks", "Falcons")
    assert [len(images) for images in birds.indices] == [4, 2, 2, 2]
    assert nabirds.load("train", SMALL).class_names == ("American Kestrel", "Mallard")
    assert nabirds.load("test", SMALL).class_names == ("Gadwall",)


def test_flowers_species_are_55_of_the_102_in_our_own_split(root: Path) -> None:
    write_flowers(root)
    assert set(flowers_species.SPECIES) < set(Flowers102.classes)
    parts = {part: flowers_species.load(part, SMALL) for part in ("train", "validation", "test", "all")}
    assert {part: images.n_classes for part, images in parts.items()} == {
        "train": 35, "validation": 10, "test": 10, "all": 55,
    }  # fmt: skip
    assert parts["all"].class_names == tuple(sorted(flowers_species.SPECIES))
    proposed = flowers_species.load("test", SMALL, split="proposed").class_names
    assert len(proposed) == 10
    assert not flowers_species.IN_IMAGENET & set(proposed)


def test_flowers_are_called_as_their_labels_say(root: Path) -> None:
    folder = write_flowers(root)
    test = flowers_species.load("all", SMALL)
    number = Flowers102.classes.index("sunflower") + 1
    image = (folder / "jpg" / f"image_{number:05d}.jpg").read_bytes()
    found = test.pixels[test.indices[test.class_names.index("sunflower")]]
    np.testing.assert_array_equal(found, to_pixels(image, SMALL)[None])


def test_lists_of_ones_own_come_before_our_split(root: Path) -> None:
    write_flowers(root)
    write_split(root / "flowers-species" / "splits" / "standard", ("rose", "azalea"), ("petunia",), ("magnolia",))
    assert flowers_species.load("all", SMALL).class_names == ("azalea", "magnolia", "petunia", "rose")
    (root / "flowers-species" / "splits" / "standard" / "valclasses1.txt").unlink()
    with pytest.raises(DataError, match=r"valclasses1\.txt is missing; write all of .* or remove the folder"):
        flowers_species.load("train", SMALL)


def test_our_own_split_has_the_papers_counts_and_hangs_on_names_alone() -> None:
    names = [f"species {i}" for i in range(404)]
    split = zero_shot.own_split(names, n_validation=40, n_test=40)
    assert {part: len(classes) for part, classes in split.items()} == {"train": 324, "validation": 40, "test": 40}
    assert frozenset().union(*split.values()) == set(names)
    assert zero_shot.own_split(names[::-1], n_validation=40, n_test=40) == split
    spared = sorted(split["test"])[0]
    other = zero_shot.own_split(names, n_validation=40, n_test=40, never_tested={spared})
    assert len(other["test"] - split["test"]) == 1
    assert spared not in other["test"]


def test_without_lists_half_an_archive_of_nabirds_is_no_data_set(root: Path) -> None:
    write_nabirds(root)
    for path in (root / "nabirds" / "splits" / "standard").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"trainclasses1\.txt is missing; none is published: write"):
        nabirds.load("train", SMALL)
    (root / "nabirds" / "splits" / "standard").rmdir()
    with pytest.raises(DataError, match=r"4 classes were found.*unpack the whole archive"):
        nabirds.load("train", SMALL)
    with pytest.raises(DataError, match=r"splits/proposed/trainclasses1\.txt is missing; none is published"):
        nabirds.load("train", SMALL, split="proposed")


@pytest.mark.parametrize(("split", "archive"), [("standard", "standard_split.zip"), ("proposed", "xlsa17.zip")])
def test_a_missing_list_says_where_it_comes_from_and_where_it_goes(
    root: Path, split: zero_shot.SplitName, archive: str
) -> None:
    write_cub(root)
    folder = root / "cub" / "splits" / split
    (folder / "testclasses.txt").unlink()
    with pytest.raises(DataError, match=rf"testclasses\.txt is missing; copy .*/CUB/ of .*{archive} to {folder}/"):
        cub.load("train", SMALL, split=split)


def test_a_list_that_names_an_unknown_class_says_which_is_close(root: Path) -> None:
    write_awa2(root)
    path = write(root / "awa2" / "splits" / "standard" / "valclasses1.txt", ("giant+panda", "grizzly bear"))
    with pytest.raises(DataError, match=rf"{path} names 'grizzly bear', .*is 'grizzly bear' 'grizzly\+bear'\?"):
        awa2.load("train", SMALL)
    write(path, ("zzz",))
    with pytest.raises(
        DataError, match=r"names 'zzz', .*classes are called 'antelope', 'fox', 'giant\+panda' and 2 more"
    ):
        awa2.load("train", SMALL)


def test_lists_that_share_a_class_are_refused(root: Path) -> None:
    write_cub(root)
    write(root / "cub" / "splits" / "standard" / "testclasses.txt", BIRDS[2:])
    with pytest.raises(DataError, match=r"trainclasses1\.txt and .*testclasses\.txt share '003\.Bird_C'; leave each"):
        cub.load("test", SMALL)


def test_an_empty_list_and_one_that_is_no_text_are_refused(root: Path) -> None:
    write_cub(root)
    path = root / "cub" / "splits" / "standard" / "valclasses1.txt"
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"valclasses1\.txt is empty; copy Xian"):
        cub.load("train", SMALL)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"valclasses1\.txt cannot be read as text"):
        cub.load("train", SMALL)


def test_an_unknown_part_is_refused(root: Path) -> None:
    write_cub(root)
    with pytest.raises(DataError, match=r"no part 'trian'; ask for train, validation, test or all"):
        cub.load("trian", SMALL)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "cub": write_cub,
    "awa2": write_awa2,
    "nabirds": write_nabirds,
    "flowers-species": write_flowers,
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cub", "classes.txt"),
        ("cub", "images.txt"),
        ("awa2", "classes.txt"),
        ("nabirds", "classes.txt"),
        ("nabirds", "images.txt"),
        ("nabirds", "image_class_labels.txt"),
        ("nabirds", "hierarchy.txt"),
        ("flowers-species", "imagelabels.mat"),
    ],
)
def test_a_missing_file_of_the_archive_is_named_with_the_remedy(root: Path, name: str, path: str) -> None:
    missing = WRITERS[name](root) / path
    missing.unlink()
    with pytest.raises(DataError, match=rf"{missing} is missing; (unpack the whole archive|run `training data)"):
        DATASETS[name].load("train")


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_that_is_not_here_says_how_to_get_it(root: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"(training data {name}|fill in the form at https).*CLASSMITH_DATASETS"):
        DATASETS[name].load("train")


def test_images_and_classes_that_do_not_go_together_are_refused(root: Path) -> None:
    folder = write_cub(root)
    write(folder / "classes.txt", {"1": BIRDS[0]})
    with pytest.raises(DataError, match=rf"has no class '{BIRDS[1]}'"):
        cub.load("all", SMALL)
    write(folder / "classes.txt", {str(i): name for i, name in enumerate((*BIRDS, "007.Bird_G"), 1)})
    with pytest.raises(DataError, match=r"names '007\.Bird_G', without an image; unpack"):
        cub.load("all", SMALL)


def test_an_image_that_is_listed_and_not_there_is_named(root: Path) -> None:
    path = write_cub(root) / "images" / BIRDS[0] / f"{BIRDS[0]}_0.jpg"
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} cannot be read .*; unpack"):
        cub.load("train", SMALL)


@pytest.mark.parametrize(
    ("path", "lines", "message"),
    [
        ("image_class_labels.txt", {"3a-0": "3"}, r"images\.txt speaks of 3a-1, which image_class_labels\.txt lacks"),
        ("classes.txt", {"0": "Birds"}, r"image_class_labels\.txt speaks of 3, which classes\.txt lacks"),
        ("hierarchy.txt", {"99": "0"}, r"hierarchy\.txt speaks of 99, which classes\.txt lacks"),
        ("hierarchy.txt", {"3": "4", "4": "3"}, r"category [34] above itself"),
    ],
)
def test_files_of_nabirds_that_contradict_each_other_are_refused(
    root: Path, path: str, lines: dict[str, str], message: str
) -> None:
    write(write_nabirds(root) / path, lines)
    with pytest.raises(DataError, match=message):
        nabirds.load("all", SMALL)


@pytest.mark.parametrize("labels", [np.array([[0, 1]]), np.array([[103]]), np.array([["a"]])])
def test_labels_that_are_not_of_102_flowers_are_refused(root: Path, labels: np.ndarray) -> None:
    path = write_flowers(root) / "imagelabels.mat"
    savemat(path, {"labels": labels})
    with pytest.raises(DataError, match=r"imagelabels\.mat is not the labels of 102 flowers .*run `training data"):
        flowers_species.load("train", SMALL)
    path.write_bytes(b"no matrices")
    with pytest.raises(DataError, match=r"imagelabels\.mat is not the labels of 102 flowers"):
        flowers_species.load("train", SMALL)


def test_nabirds_has_to_be_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "nabirds"]) == 2
    assert (
        f"fill in the form at {nabirds.FORM}, and unpack nabirds.tar.gz in {root / 'nabirds'}"
        in capsys.readouterr().err
    )
