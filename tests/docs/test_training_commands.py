"""The training commands that pages show, too long to run here, exist as they stand there; so do the configurations."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT
from training import cli
from training.configs import base, hypertransformer, n3, word_baselines
from training.data import DATASETS, descriptions

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINING = ROOT / "docs" / "training.md"
LINE = re.compile(r"^training .+$", re.MULTILINE)
INLINE = re.compile(r"`(training (?:fit|evaluate|export|report|data|compare-words)[^`|]*)`")
LEFT_OPEN = re.compile(r"\b[A-Z]{4,}\b|\.\.\.|--help|--config$")
BLOCK = re.compile(r"```json\n(.*?)```", re.DOTALL)
CONFIGS: dict[str, Mapping[str, object]] = {
    "base": base.CONFIGS,
    "n3": n3.CONFIGS,
    "word-baselines": word_baselines.CONFIGS,
    "hypertransformer": hypertransformer.CONFIGS,
}


def commands(text: str) -> list[str]:
    """Whole commands, in blocks and in lines of text; those that only name a command leave arguments out."""
    text = text.replace("\\\n", " ")
    inline = [found for found in INLINE.findall(text) if len(found.split()) > 3 and not LEFT_OPEN.search(found)]
    return [*LINE.findall(text), *inline]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_training_commands_of_a_page_are_understood(page: Path) -> None:
    for command in commands(page.read_text()):
        try:
            cli._parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"{page.name}: {command}")


def test_the_page_on_training_shows_every_step() -> None:
    found = commands(TRAINING.read_text())
    fits = ("fit hypertransformer", "fit base", "fit n3", "fit word-baselines")
    for step in (*fits, "export", "evaluate", "compare-words", "report"):
        assert any(command.startswith(f"training {step} ") for command in found), step


def test_every_configuration_for_words_is_explained() -> None:
    """A name stands whole in a table of the page, or by its ending (`-logits`)."""
    text = TRAINING.read_text()
    tables = dict(re.findall(r"^\| `training fit (\S+) --config.*?\n((?:\|.*\n)+)", text, re.MULTILINE))
    named = {method: set(re.findall(r"`([^`\s]+)`", rows)) for method, rows in tables.items()}
    for method in ("base", "n3"):
        ends = tuple(name.removeprefix("*") for name in named[method] if name.startswith("*-"))
        assert all(name in named[method] or name.endswith(ends) for name in CONFIGS[method]), method
    methods = {name for name in named["word-baselines"] if name.startswith("-")}
    assert {f"{of}{method}" for of in word_baselines.OF for method in methods} == set(word_baselines.CONFIGS)
    assert set(word_baselines.OF) <= named["word-baselines"]


def test_the_data_sets_it_names_are_there() -> None:
    assert {"cub", "awa2", "nabirds", "flowers-species", "cub-ps"} <= set(DATASETS)
    rows = re.findall(r"^\| `(\S+)` \| (?:[\d.]+ [GM]B|by hand)", TRAINING.read_text(), re.MULTILINE)
    assert {"cub", "awa2", "nabirds", "flowers-species"} == set(rows)


def test_its_descriptions_are_of_the_form_that_is_read(tmp_path: Path) -> None:
    (block,) = BLOCK.findall(TRAINING.read_text())
    path = tmp_path / descriptions.FILE
    path.write_text(block)
    texts = descriptions.read_descriptions(path)
    assert set(texts) == set(json.loads(block))
    assert texts["red_panda"].name == "red panda"
    assert len(texts["red_panda"].sentences) == 3
