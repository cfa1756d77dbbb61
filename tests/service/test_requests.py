"""What "auto" makes of a whole request: what it leaves out, what it takes images for, and what it says of that."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.catalogue import PREFERRED
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids, described
from tests.service.live import Live, live, places, problem

LEFT_OUT = "described cannot use unlabelled images, so they were left out"
COLOURLESS = "The images have no colour, so they were taken for drawings"
WORDS = ("Black and white stripes.", "A long blue tongue.", "A very long neck.", "A thick grey skin.")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One for drawings; for photographs one that is preferred, and one that takes unlabelled images."""
    folder = tmp_path_factory.mktemp("meta-models")
    centroids.meta_model(folder)
    centroids.meta_model(folder, name="small", domain="photographs")
    described.meta_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("photographs", "words"):
            patch.setitem(PREFERRED, kind, ("described",))
        with live(Settings(meta_models=folder, state_dir=tmp_path_factory.mktemp("state"))) as service:
            yield service


def photographs(first: int, n: int = 4) -> dict[str, bytes]:
    return {f"class {k}": centroids.photograph(first + k) for k in range(n)}


def in_words(**more: Any) -> dict[str, Any]:
    return {"classes": [{"name": f"class {k}", "description": text} for k, text in enumerate(WORDS)], **more}


def colourless(image: bytes, *, side: int = 64, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("L").resize((side, side)).save(buffer, format)
    return buffer.getvalue()


# --- unlabelled images


def test_the_better_network_is_kept_and_unlabelled_images_are_left_out_and_said_to_be(running: Live) -> None:
    body, extra = centroids.task_json(photographs(0)), [centroids.encoded(centroids.photograph(9))]
    task = running.task({**body, "unlabeled": extra})
    assert (task["meta_model"], task["n_unlabeled"]) == ("described", 0)
    assert task["notes"] == [f"{LEFT_OUT}; choose generator small to use them."]
    assert running.task(body)["id"] == task["id"]


def test_who_names_a_generator_gets_what_it_takes_or_a_refusal(running: Live) -> None:
    body = centroids.task_json(photographs(10), unlabeled=[centroids.encoded(centroids.photograph(9))])
    task = running.task({**body, "generator": "small"})
    assert (task["meta_model"], task["n_unlabeled"], task["notes"]) == ("small", 1, [])
    refused = running.http.post("/tasks", json={**body, "generator": "described"})
    assert places(problem(refused, 422)) == ["unlabeled"]


def test_drawings_use_them_as_before(running: Live) -> None:
    task = running.task(centroids.task_json(unlabeled=[centroids.encoded(drawing(0, 5))]))
    assert (task["meta_model"], task["n_unlabeled"], task["notes"]) == ("centroids", 1, [])


@pytest.mark.parametrize("extra", [centroids.photograph(9), drawing(0, 5)], ids=["photograph", "drawing"])
def test_beside_words_alone_they_are_left_out_too_and_nothing_else_is_advised(running: Live, extra: bytes) -> None:
    task = running.task(in_words(unlabeled=[centroids.encoded(extra)]))
    assert (task["meta_model"], task["n_unlabeled"]) == ("described", 0)
    assert task["notes"] == [f"{LEFT_OUT}."]
    assert running.http.delete(f"/tasks/{task['id']}").status_code == 204


def test_what_the_classes_show_decides_whatever_the_unlabelled_ones_look_like(running: Live) -> None:
    extra = [centroids.encoded(drawing(k, 5)) for k in range(20)]
    assert running.task(centroids.task_json(photographs(20), unlabeled=extra))["meta_model"] == "described"


# --- photographs without colour


def test_photographs_without_colour_are_told_that_they_were_taken_for_drawings(running: Live) -> None:
    body = centroids.task_json({name: colourless(image) for name, image in photographs(30).items()})
    task = running.task(body)
    assert task["meta_model"] == "centroids"
    assert task["notes"] == [f"{COLOURLESS}; if they are photographs, choose generator described."]
    assert running.task({**body, "generator": "centroids"})["id"] == task["id"]
    assert running.task({**body, "generator": "described"})["notes"] == []


def unchanged(image: bytes) -> bytes:
    return image


def on_grey_paper(image: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("L").point(lambda shade: 40 + shade * 0.6).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def white_on_black(image: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("L").point(lambda shade: 255 - shade).save(buffer, "WEBP")
    return buffer.getvalue()


def tiny(image: bytes) -> bytes:
    return colourless(image, side=8)


@pytest.mark.parametrize("taken", [unchanged, on_grey_paper, white_on_black, tiny])
def test_drawings_are_told_nothing(running: Live, taken: Callable[[bytes], bytes]) -> None:
    body = centroids.task_json({name: taken(image) for name, image in centroids.characters(4, hand=3).items()})
    task = running.task(body)
    assert (task["meta_model"], task["notes"]) == ("centroids", [])


def test_nothing_is_advised_where_nothing_else_takes_the_task(tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "zoo")
    with live(Settings(meta_models=tmp_path / "zoo", state_dir=tmp_path / "state")) as alone:
        shown = {name: colourless(image) for name, image in photographs(40).items()}
        assert alone.task(centroids.task_json(shown))["notes"] == []
