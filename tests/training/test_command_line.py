"""A command that repeats a measurement is one that can be given again, wherever the project lies."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from models import metamodel
from training.command_line import command_line


def test_a_meta_model_that_ships_is_named_from_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metamodel, "ZOO", tmp_path)
    folders = [tmp_path / "cloths", tmp_path.parent / "own zoo" / "cloths"]
    shipped, own = shlex.split(command_line("evaluate", folders, {}))[2:]
    assert (shipped, own) == ("models/zoo/cloths", str(folders[1]))


def test_options_that_were_not_given_are_left_out_and_zero_is_one() -> None:
    options = {"images": None, "within-group": False, "every-image": True, "shots": 0, "seed": 7}
    assert (
        command_line("evaluate", [Path("zoo/x")], options) == "training evaluate zoo/x --every-image --shots 0 --seed 7"
    )
