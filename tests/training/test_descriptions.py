"""Descriptions in every form they come in, the documents drawn of them, and what is said where they are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.demo.alphabet import drawing
from training.data import descriptions, omniglot
from training.data.descriptions import ClassTexts, document, draw_document, in_order, read_descriptions, without_names
from training.data.folders import DataError, data_root, read_images

GOLDFISH = ClassTexts(
    "goldfish",
    ("a bright orange fish", "a small mouth"),
    ("A goldfish is a small fish.", "Goldfish live in ponds", "It has scales!"),
    ("Carassius auratus",),
)
TEXTS = st.text("ab ,", min_size=1, max_size=8).map(lambda text: f"x{text.strip()}")
CLASSES = st.builds(
    ClassTexts,
    st.just("name"),
    st.lists(TEXTS, max_size=5, unique=True).map(tuple),
    st.lists(TEXTS.map(lambda text: f"{text}."), min_size=1, max_size=5, unique=True).map(tuple),
)


def write(folder: Path, value: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / descriptions.FILE
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_phrases_and_sentences_are_read_clean_and_once(tmp_path: Path) -> None:
    fields = {
        "name": "goldfish",
        "wordnet": "goldfish, Carassius auratus",
        "phrases": ["a small\u200b mouth", " ", "a small mouth"],
        "sentences": ["\nA goldfish is a fish.", " A goldfish  is a fish.", "It is orange."],
    }
    texts = read_descriptions(write(tmp_path, {"n01443537": fields}))
    assert texts["n01443537"] == ClassTexts(
        "goldfish", ("a small mouth",), ("A goldfish is a fish.", "It is orange."), ("Carassius auratus",)
    )


def test_both_lists_of_cupl_are_sentences(tmp_path: Path) -> None:
    fields = {"name": "aquarium fish", "cupl_full": ["A photo of it."], "cupl_base": ["It is wet.", "It swims."]}
    texts = read_descriptions(write(tmp_path, {"aquarium_fish": fields}))
    assert texts["aquarium_fish"] == ClassTexts("aquarium fish", (), ("It is wet.", "It swims.", "A photo of it."))


@pytest.mark.parametrize(
    ("value", "sentences"),
    [
        ("Reddish fur. A ringed tail! Is it a cat? no", ("Reddish fur.", "A ringed tail!", "Is it a cat? no")),
        (["Reddish fur. A ringed tail.", "small ears"], ("Reddish fur.", "A ringed tail.", "small ears")),
        ("about 3.5 kg", ("about 3.5 kg",)),
    ],
)
def test_a_users_texts_are_taken_apart_into_sentences(tmp_path: Path, value: object, sentences: tuple[str]) -> None:
    assert read_descriptions(write(tmp_path, {"red_panda": value})) == {
        "red_panda": ClassTexts("red panda", (), sentences)
    }


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("grizzly+bear", "grizzly bear"),
        ("my data/red_panda", "red panda"),
        ("American Kestrel", "American Kestrel"),
        ("7", "7"),
        ("_", "_"),
    ],
)
def test_a_class_is_called_as_its_folder_says(key: str, name: str) -> None:
    assert descriptions.readable(key) == name


def test_a_folder_of_class_images_with_its_descriptions_is_a_data_set(tmp_path: Path) -> None:
    for k, name in enumerate(("zebra", "horse")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "1.png").write_bytes(drawing(k, 0))
    write(tmp_path / "mine", {"zebra": "Stripes.", "horse": ["A mane."], "fox": "A bushy tail."})
    images = read_images(tmp_path / "mine", omniglot.SPEC)
    texts = in_order(images.class_names, read_descriptions(descriptions.beside(tmp_path / "mine")))
    assert [document(text) for text in texts] == ["horse. A mane.", "zebra. Stripes."]


def test_descriptions_are_in_the_folder_or_next_to_the_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images.zip").touch()
    assert descriptions.beside(tmp_path / "images") == tmp_path / "images" / descriptions.FILE
    assert descriptions.beside(tmp_path / "images.zip") == tmp_path / descriptions.FILE
    next_to = write(tmp_path, {})
    assert descriptions.beside(tmp_path / "images") == next_to
    inside = write(tmp_path / "images", {})
    assert descriptions.beside(tmp_path / "images") == inside


def test_classes_are_found_by_their_whole_name_or_their_folders() -> None:
    texts = {"zebra": GOLDFISH, "fish/horse": ClassTexts("seahorse", (), ("Swims.",))}
    assert [text.name for text in in_order(["fish/horse", "mine/zebra"], texts)] == ["seahorse", "goldfish"]
    with pytest.raises(DataError, match=r"Classes of one name share their texts; write whole names, such as 'a/zebra'"):
        in_order(["a/zebra", "b/zebra"], texts)


def test_a_class_is_found_however_its_accents_are_written() -> None:
    one, two = "cr\u00e8me br\u00fbl\u00e9e", "cre\u0300me bru\u0302le\u0301e"
    assert one != two
    for key, folder in ((one, two), (two, one), (one, f"sweets/{two}"), (f"sweets/{two}", f"sweets/{one}")):
        assert in_order([folder], {key: GOLDFISH}) == (GOLDFISH,)
    with pytest.raises(DataError, match=f"'{two}x'"):
        in_order([f"{two}x"], {one: GOLDFISH})


def test_classes_without_texts_are_named_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"what 'b', 'c', 'd' and 1 more look like; add them to descriptions\.json as"):
        in_order(["a", "b", "c", "d", "e"], {"a": GOLDFISH})


def test_both_splits_of_a_data_set_have_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    write(tmp_path / "cub", {"001.Black_footed_Albatross": "Long wings."})
    assert descriptions.of_dataset("cub-ps") == descriptions.of_dataset("cub")
    with pytest.raises(DataError, match=rf"{tmp_path}/awa2/descriptions\.json is missing; write it: \{{"):
        descriptions.of_dataset("awa2")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a JSON object of classes"),
        ({}, "not a JSON object of classes"),
        ({"a": 3}, "'a': texts is not a list of texts"),
        ({"a": None}, "'a': texts is not a list of texts"),
        ({"a": ["x", 3]}, "'a': texts is not a list of texts"),
        ({"a": {"phrases": "x"}}, "'a': phrases is not a list of texts"),
        ({"a": ""}, "'a': there is no text; say what the class looks like"),
        ({"a": [" \u200b", "\n"]}, "'a': there is no text"),
        ({"a": []}, "'a': there is no text"),
        ({"a": {"name": "a", "text": "x"}}, "'a': there is no text"),
    ],
)
def test_what_is_no_description_is_refused(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(DataError, match=rf"^{path}.*{message}.*\{{"):
        read_descriptions(path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / descriptions.FILE
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_descriptions(path)


def test_the_document_of_a_class_is_its_name_its_phrases_and_its_sentences() -> None:
    assert document(GOLDFISH) == (
        "goldfish. a bright orange fish, a small mouth. "
        "A goldfish is a small fish. Goldfish live in ponds. It has scales!"
    )
    assert document(GOLDFISH, max_sentences=1).endswith("a small mouth. A goldfish is a small fish.")
    assert document(GOLDFISH, max_sentences=0) == "goldfish. a bright orange fish, a small mouth."


def test_a_withheld_name_is_nowhere_in_the_document() -> None:
    found = document(GOLDFISH, named=False)
    assert found.startswith("a bright orange fish, a small mouth. A thing is a small fish. thing live in ponds.")
    assert "goldfish" not in found.lower()


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("The black-footed albatross is big", ["Black footed Albatross"], "The thing is big"),
        ("Goldfishes and GOLDFISH", ["goldfish"], "things and thing"),
        ("Butterflies like a butterfly", ["butterfly"], "things like a thing"),
        ("Boxes in a box", ["box"], "things in a thing"),
        ("a catalogue of bobcats", ["cat"], "a catalogue of bobcats"),
        ("a Carassius auratus, a gold fish", ["goldfish", "Carassius auratus"], "a thing, a gold fish"),
        ("a sea cow, a cow", ["cow", "sea cow"], "a thing, a thing"),
        ("a colt's foot (pink-yellow dahlia?)", ["colt's foot", "pink-yellow dahlia?"], "a thing (thing)"),
    ],
)
def test_names_are_taken_out_whatever_their_case_hyphens_or_plural(text: str, names: list[str], expected: str) -> None:
    assert without_names(text, names) == expected


@given(CLASSES, st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=100)
def test_a_drawn_document_is_some_of_the_texts_and_never_none(
    texts: ClassTexts, seed: int, max_phrases: int, max_sentences: int
) -> None:
    drawn = [
        draw_document(
            texts, np.random.default_rng(seed), p_name=p_name, max_phrases=max_phrases, max_sentences=max_sentences
        )
        for p_name in (0.0, 0.0, 1.0)
    ]
    assert drawn[0] == drawn[1] != ""
    assert drawn[2] == f"name. {drawn[0]}"
    rest = drawn[0]
    for text in sorted((*texts.phrases, *texts.sentences), key=len, reverse=True):
        rest = rest.replace(text, "")
    assert rest != drawn[0]
    assert set(rest) <= set(" ,.")


def test_draws_differ_and_are_bounded() -> None:
    rng = np.random.default_rng(0)
    texts = ClassTexts("name", tuple(f"p{i}p" for i in range(9)), tuple(f"S{i}s." for i in range(9)))
    drawn = [draw_document(texts, rng, max_phrases=2, max_sentences=3) for _ in range(400)]
    n_phrases = {sum(phrase in document for phrase in texts.phrases) for document in drawn}
    n_sentences = {sum(sentence in document for sentence in texts.sentences) for document in drawn}
    assert (n_phrases, n_sentences) == ({0, 1, 2}, {0, 1, 2, 3})
    assert 140 < sum(document.startswith("name. ") for document in drawn) < 260
    assert all(any(sentence in document for document in drawn) for sentence in (*texts.phrases, *texts.sentences))
    assert len(set(drawn)) > 200


def test_a_class_of_phrases_alone_can_be_drawn() -> None:
    texts = ClassTexts("name", ("a tail",), ())
    drawn = {draw_document(texts, np.random.default_rng(seed), p_name=0) for seed in range(20)}
    assert drawn == {"a tail."}


@pytest.mark.parametrize("name", ["tiny-imagenet", "cifar-fs", "imagenet-text"])
def test_the_files_that_are_here_have_texts_for_every_class(name: str) -> None:
    path = data_root() / name / descriptions.FILE
    if not path.exists():
        pytest.skip(f"{path} is not here")
    texts = read_descriptions(path)
    assert len(texts) >= 80
    for text in texts.values():
        assert text.sentences
        assert text.name
        assert not re.search(rf"\b{re.escape(text.name)}\b", document(text, named=False), re.IGNORECASE)
