"""A shipped meta-model's networks in 8-bit integers, where the operator asks for them and the processor has them."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import pytest

from models import quantised
from models.metamodel import ZOO, load
from service.settings import Settings
from tests.bench.photographs import photograph
from tests.service.live import live

META_MODEL, JPEG = "n3-mobilenet", {"Content-Type": "image/jpeg"}
SHOWN = {f"class {k}": photograph(k) for k in range(4)}
TASK = {
    "generator": META_MODEL,
    "classes": [{"name": name, "images": [base64.b64encode(image).decode()]} for name, image in SHOWN.items()],
}


def answers(state_dir: Path, *, int8: bool) -> list[dict[str, float]]:
    """The probabilities of each class, for each image that it was made of."""
    with live(Settings(state_dir=state_dir, int8=int8)) as service:
        path = f"/tasks/{service.task(TASK)['id']}/predict"
        found = [
            service.http.post(path, content=image, headers=JPEG).raise_for_status().json() for image in SHOWN.values()
        ]
    return [one["predictions"][0]["probabilities"] for one in found]


@pytest.mark.skipif(not quantised.is_worthwhile(), reason="this processor has no instructions for 8-bit integers")
def test_answers_are_nearly_those_in_floats_and_not_the_same(tmp_path: Path) -> None:
    floats, integers = (answers(tmp_path, int8=int8) for int8 in (False, True))
    for expected, found, name in zip(floats, integers, SHOWN, strict=True):
        assert max(expected, key=expected.__getitem__) == max(found, key=found.__getitem__) == name
        assert found == pytest.approx(expected, abs=0.15)
    assert floats != integers


def test_without_the_instructions_it_is_said_and_done_in_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    floats = answers(tmp_path, int8=False)
    monkeypatch.setattr(quantised, "CPU_INFO", tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        assert answers(tmp_path, int8=True) == floats
    assert "CLASSMITH_INT8 is left aside" in caplog.text


@pytest.mark.parametrize("name", [META_MODEL, "n3-resnet18"])
def test_what_is_shipped_for_it_is_whole(name: str) -> None:
    read = quantised.read(load(ZOO / name))
    assert read is not None
    assert all(abs(column["accuracy"]["difference"]["mean"]) < 1 for column in read[1].columns)
