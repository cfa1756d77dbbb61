"""Which meta-model a task gets: one that reads what is given, the preferred one first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import ImpossibleTask, Unavailable
from models.metamodel import ZOO
from service.catalogue import AUTO, PREFERRED, Catalogue, Evidence, nothing_in, read_catalogue
from tests.service import centroids, described


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta-models")
    centroids.meta_model(folder)
    centroids.meta_model(folder, name="photos", domain="photographs")
    described.meta_model(folder)
    described.meta_model(folder, name="words", accepts_images=False)
    return folder


@pytest.fixture
def catalogue(folder: Path) -> Catalogue:
    return read_catalogue(folder)


def evidence(
    *, shown: int = 3, described: int = 0, n_classes: int = 3, near_grey: bool | None = False, unlabeled: int = 0
) -> Evidence:
    return Evidence(n_classes, shown, described, shown, unlabeled, near_grey if shown else None)


KINDS: dict[str, tuple[Evidence, str]] = {
    "drawings": (evidence(near_grey=True), "centroids"),
    "words and drawings": (evidence(near_grey=True, described=3), "centroids"),
    "photographs": (evidence(), "photos"),
    "words": (evidence(shown=0, described=3), "words"),
    "words and photographs": (evidence(described=1), "described"),
}


@pytest.mark.parametrize("kind", PREFERRED)
def test_auto_takes_one_that_reads_all_that_is_given(catalogue: Catalogue, kind: str) -> None:
    given, expected = KINDS[kind]
    assert given.kind == kind
    assert catalogue.choose(AUTO, given).name == expected


def test_the_preferred_one_goes_first(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREFERRED, "photographs", ("not here", "described"))
    monkeypatch.setitem(PREFERRED, "words", ("described",))
    assert catalogue.choose(AUTO, KINDS["photographs"][0]).name == "described"
    assert catalogue.choose(AUTO, KINDS["words"][0]).name == "described"
    assert catalogue.choose(AUTO, KINDS["drawings"][0]).name == "centroids"


@pytest.mark.parametrize("kind", PREFERRED)
def test_of_those_that_ship_each_kind_of_task_gets_the_preferred_one(kind: str) -> None:
    assert read_catalogue(ZOO).choose(AUTO, KINDS[kind][0]).name == PREFERRED[kind][0]


def test_the_first_choices_are_what_auto_takes(catalogue: Catalogue, folder: Path) -> None:
    assert {m.name for m in catalogue.first_choices} == {name for _, name in KINDS.values()}
    assert [m.name for m in Catalogue({"words": catalogue.get("words")}).first_choices] == ["words"]
    assert Catalogue({}).first_choices == []


def test_one_that_cannot_take_the_task_gives_way(catalogue: Catalogue) -> None:
    assert catalogue.choose(AUTO, evidence(shown=2, described=1)).name == "described"
    images = evidence(shown=centroids.MAX_IMAGES, n_classes=centroids.MAX_IMAGES)
    assert catalogue.able(images) == []


@pytest.mark.parametrize("kind", PREFERRED)
def test_unlabelled_images_never_make_auto_take_another_of_those_that_ship(kind: str) -> None:
    shipped, given = read_catalogue(ZOO), replace(KINDS[kind][0], n_unlabeled=600)
    if kind not in ("drawings", "words and drawings"):
        assert shipped.choose(AUTO, given).name == PREFERRED[kind][0]
    assert shipped.choose(AUTO, replace(given, n_unlabeled=4)).name == PREFERRED[kind][0]


def test_of_several_that_are_not_preferred_one_that_uses_unlabelled_images_goes_first(folder: Path) -> None:
    photos = read_catalogue(folder).by_name["photos"]
    without = photos.manifest.model_copy(update={"name": "a", "accepts_unlabeled": False})
    catalogue = Catalogue({"a": replace(photos, manifest=without), "photos": photos})
    assert catalogue.choose(AUTO, evidence()).name == "a"
    assert catalogue.choose(AUTO, evidence(unlabeled=1)).name == "photos"
    assert catalogue.choose(AUTO, evidence(unlabeled=centroids.MAX_IMAGES)).name == "a"
    assert catalogue.choose(AUTO, evidence(described=3, unlabeled=1)).name == "photos"
    assert read_catalogue(folder).choose(AUTO, evidence(described=3, unlabeled=1)).name == "described"


@pytest.mark.parametrize("generator", [AUTO, "photos"])
def test_where_none_is_loaded_that_is_said_and_not_that_another_should_be_chosen(generator: str) -> None:
    with pytest.raises(Unavailable, match="No meta-model is loaded here"):
        Catalogue({}).choose(generator, evidence())


def test_a_folder_without_meta_models_is_told_whole_and_apart_from_a_missing_one(tmp_path: Path) -> None:
    assert nothing_in(tmp_path).startswith(f"No meta-model is loaded: {tmp_path} holds no whole one;")
    assert f"there is no folder {tmp_path / 'typo'};" in nothing_in(tmp_path / "typo")


def test_without_a_reader_of_words_it_is_said_what_is_missing(folder: Path) -> None:
    found = read_catalogue(folder)
    pictures = Catalogue({name: found.by_name[name] for name in ("centroids", "photos")})
    with pytest.raises(ImpossibleTask, match="descriptions alone"):
        pictures.choose(AUTO, KINDS["words"][0])
    assert pictures.choose(AUTO, KINDS["words and photographs"][0]).name == "photos"
    assert pictures.text_encoders == []
    assert found.text_encoders == [described.ENCODER]
