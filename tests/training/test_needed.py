"""A training by words that lacks a text, an encoder or a base says so before it reads images: none are there at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training import described
from tests.training.test_cli import refusal
from training.checkpoint import CheckpointError
from training.configs import n3, word_baselines
from training.data.folders import DataError
from training.needed import texts_for


@pytest.fixture(params=["n3", "word-baselines"])
def command(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """``fit`` of a config whose base is not there, where the data sets' folder is empty."""
    base = tmp_path / "base.safetensors"
    monkeypatch.setitem(n3.CONFIGS, "tiny", lambda: described.config(base))
    monkeypatch.setitem(word_baselines.CONFIGS, "tiny", lambda: described.peer("linear", base))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    run = str(tmp_path / "run")
    return ("fit", request.param, "--config", "tiny", "--run", run, "--device", "cpu")


def test_what_is_missing_is_told_before_images_are_read(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described.skip_without_encoder()
    texts = tmp_path / "tiny-imagenet" / "descriptions.json"
    assert f"{texts} is missing" in refusal(capsys, *command)
    texts.parent.mkdir()
    texts.write_text(json.dumps({"a": "A red cloth."}))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CLASSMITH_TEXT_ENCODER", str(tmp_path / "encoder"))
        assert "encoder lacks " in refusal(capsys, *command)
    assert "base.safetensors does not exist; run `training fit` first" in refusal(capsys, *command)


def test_a_run_that_goes_on_needs_its_base_no_more(cloths: Path, cloth_run: Path, tmp_path: Path) -> None:
    config = described.config(tmp_path / "gone.safetensors")
    assert texts_for(config, described.SPEC, cloths, cloth_run).keys() == set(described.CLASSES)


def test_what_goes_on_without_a_base_of_its_own_still_needs_it(cloths: Path, tmp_path: Path) -> None:
    described.skip_without_encoder()
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"gone.safetensors does not exist"):
        texts_for(described.peer("linear", tmp_path / "gone.safetensors"), described.SPEC, cloths, tmp_path)


def test_classifier_rows_and_their_texts_are_looked_for(
    cloths: Path, cloth_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described.skip_without_encoder()
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    config = replace(described.config(tmp_path / "base.safetensors"), classifier_rows=True)
    with pytest.raises(DataError, match="imagenet-text"):
        texts_for(config, described.SPEC, cloths, cloth_run)
    (tmp_path / "imagenet-text").mkdir()
    (tmp_path / "imagenet-text" / "descriptions.json").write_text("{}")
    with pytest.raises(DataError, match="mobilenet"):
        texts_for(config, described.SPEC, cloths, cloth_run)
