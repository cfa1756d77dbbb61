"""The same image in several classes, and several times in one: what is refused, and what is said of the rest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from service.settings import Settings
from tests.service import centroids, described
from tests.service.live import Live, live, places, problem

ONE, OTHER, THIRD = (centroids.photograph(k, format="PNG") for k in range(3))
ZEBRA, OKAPI = "A horse-like animal with stripes.", "A brown animal with a long blue tongue."


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("meta-models")
    centroids.meta_model(folder, name="photos", domain="photographs")
    described.meta_model(folder)
    with live(Settings(meta_models=folder, state_dir=tmp_path_factory.mktemp("state"))) as service:
        yield service


def again(image: bytes) -> bytes:
    """The same pixels in another file."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "PNG", compress_level=0)
    assert buffer.getvalue() != image
    return buffer.getvalue()


def body(*shown: list[bytes], words: tuple[str, ...] = ("", "", "", "", ""), **more: Any) -> dict[str, Any]:
    """Classes ``a``, ``b``, ... of these images and words."""
    classes = [
        {"name": name, "description": text, "images": [centroids.encoded(image) for image in images]}
        for name, images, text in zip("abcde", shown, words, strict=False)
    ]
    return {"classes": classes, **more}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one image": (body([ONE], [ONE]), "classes[1].images"),
    "other files": (body([ONE], [OTHER], [again(ONE)]), "classes[2].images"),
    "another order, and a repeat": (body([ONE, OTHER], [OTHER, ONE, OTHER]), "classes[1].images"),
    "equal words": (body([ONE], [ONE], words=(ZEBRA, f" {ZEBRA.upper()} ")), "classes[1].images"),
    "words that are not read": (body([ONE], [ONE], words=(ZEBRA, OKAPI), generator="photos"), "classes[1].images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_classes_that_nothing_tells_apart_are_refused(running: Live, case: str) -> None:
    asked, place = REFUSED[case]
    found = problem(running.http.post("/tasks", json=asked), 422)
    assert places(found) == [place]
    other = "c" if "2" in place else "b"
    assert found["detail"].startswith(f"Classes 'a' and '{other}' have the same images; add images")
    assert running.http.get("/tasks").json()["tasks"] == []


SHARED = "'a' and 'b' have images in common, which cannot tell them apart."
NOTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "words tell them apart": (body([ONE], [ONE], words=(ZEBRA, OKAPI)), [SHARED]),
    "one is described": (body([ONE], [ONE], words=("", OKAPI)), [SHARED]),
    "one of several": (body([ONE, THIRD], [again(ONE), OTHER]), [SHARED]),
    "part of the other's": (body([ONE], [ONE, OTHER], [THIRD]), [SHARED]),
    "twice in a class": (
        body([ONE, again(ONE)], [OTHER]), ["The images of 'a' hold repeats, which add nothing new."],
    ),
    "both, in many classes": (
        body(*([ONE, ONE, centroids.photograph(k)] for k in range(5, 10))),
        [
            "'a', 'b', 'c' and 2 more have images in common, which cannot tell them apart.",
            "The images of 'a', 'b', 'c' and 2 more hold repeats, which add nothing new.",
        ],
    ),
    "neither": (body([ONE, OTHER], [THIRD]), []),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTED)
def test_an_image_that_came_before_is_noted(running: Live, case: str) -> None:
    asked, notes = NOTED[case]
    task = running.task(asked)
    assert task["notes"] == notes
    assert running.http.delete(f"/tasks/{task['id']}").status_code == 204
