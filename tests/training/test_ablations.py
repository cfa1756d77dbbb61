"""N3 stands beside its ablations and peers by the figures of files alone; what is absent is said to be."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from models.metamodel import Manifest, MetaModel
from models.methods.n3 import N3Config
from models.nn.bases import BaseSpec
from tests.models import small_n3
from training import ablations, plots
from training.configs.n3 import CONFIGS, Config
from training.data.folders import DataError
from training.page import Note, Plot, Section, Table
from training.subjects import Column, Subject

COLUMN: dict[str, Any] = {
    "given": "words",
    "shape": {"n_way": 10, "n_shot": 0, "n_query": 10, "n_unlabeled": 0, "unbalanced": False},
    "classes_from": "anywhere",
    "n_episodes": 1000,
    "seed": 0,
    "data_digest": "0123456789ab",
    "descriptions_digest": "ba9876543210",
}
BASE = {
    "pretrained": "",
    "dataset": "tiny-imagenet",
    "train_data_digest": "aaa",
    "architecture": "resnet18",
    "size": 64,
}
PEERS: dict[str, Any] = {
    "base": BASE,
    "train_data_digest": "aaa",
    "columns": [
        {
            **COLUMN,
            "by_seed": {
                "linear": {"0": {"mean": 42.8, "ci95": 0.5}},
                "pdcnn_fc": {"0": {"mean": 30.0, "ci95": 0.5}, "1": {"mean": 34.0, "ci95": 0.4}},
            },
        }
    ],
}


def subject(name: str, config: Config, accuracy: float, **changes: Any) -> Subject:
    """A meta-model that was measured in one column; ``changes`` are the column's."""
    facts = {**COLUMN, "accuracy": {"generated": {"mean": accuracy, "ci95": 0.7}}, **changes}
    evaluation = {"training": {"config": json.loads(json.dumps(asdict(config)))}}
    return Subject(
        MetaModel(Path(name), _manifest().model_copy(update={"name": name}), name),
        evaluation,
        (Column(facts, "tiny-imagenet"),),
    )


@cache
def _manifest() -> Manifest:
    return small_n3.manifest(small_n3.model())


def config(name: str = "tiny", **changes: Any) -> Config:
    return replace(CONFIGS[name](), **changes)


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(PEERS))
    return path


def parts(section: Section | None) -> tuple[Table, Plot, list[str]]:
    assert section is not None
    table, plot, *notes = section.parts
    assert isinstance(table, Table)
    assert isinstance(plot, Plot)
    return table, plot, [note.text for note in notes if isinstance(note, Note)]


def test_rows_are_the_figures_of_the_files(peers: Path) -> None:
    table, plot, _ = parts(ablations.section([subject("one", config(), 48.25)], [peers]))
    assert table.head == ["accuracy, %", "10-way, words alone, 1000 episodes"]
    assert table.rows == [
        ["N3, every layer (resnet18, 64 px)", "48.25 ± 0.70"],
        ["linear map, text to class mean (ridge) (resnet18, 64 px)", "42.80 ± 0.50"],
        ["PDCNN-fc (resnet18, 64 px)", "32.00 ± 2.83 (2 seeds)"],
    ]
    assert "1000 episodes, seed 0, data digest 0123456789ab, descriptions digest ba9876543210" in table.caption
    assert all(f"{row[0]} {row[1]}" in plot.alt for row in table.rows)
    assert plot.svg.startswith(b"<?xml")


def test_another_figure_gives_another_table(peers: Path) -> None:
    changed = copy.deepcopy(PEERS)
    changed["columns"][0]["by_seed"]["linear"]["0"]["mean"] = 12.34
    peers.write_text(json.dumps(changed))
    table, _, _ = parts(ablations.section([], [peers]))
    assert table.rows[0][1] == "12.34 ± 0.50"


def test_seeds_are_one_row_and_the_same_seed_twice_is_not(peers: Path) -> None:
    seeds = [subject(f"seed-{seed}", config(seed=seed), 40.0 + seed) for seed in range(3)]
    table, _, _ = parts(ablations.section(seeds, []))
    assert table.rows == [["N3, every layer (resnet18, 64 px)", "41.00 ± 1.00 (3 seeds)"]]
    twice = [subject("short", config(n_steps=10), 40.0), subject("long", config(), 44.0)]
    table, _, _ = parts(ablations.section(twice, []))
    assert table.rows == [
        ["N3, every layer (resnet18, 64 px) [short]", "40.00 ± 0.70"],
        ["N3, every layer (resnet18, 64 px) [long]", "44.00 ± 0.70"],
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"data_digest": "other"},
        {"descriptions_digest": "other"},
        {"n_episodes": 50},
        {"seed": 1},
        {"shape": {**COLUMN["shape"], "n_way": 40}},
    ],
)
def test_other_tasks_are_another_column(changes: dict[str, Any], peers: Path) -> None:
    table, _, _ = parts(ablations.section([subject("one", config(), 48.25, **changes)], [peers]))
    assert [row[1:] for row in table.rows] == [
        ["48.25 ± 0.70", ""],
        ["", "42.80 ± 0.50"],
        ["", "32.00 ± 2.83 (2 seeds)"],
    ]


def test_older_files_do_not_say_with_which_descriptions(peers: Path) -> None:
    older = {name: value for name, value in PEERS["columns"][0].items() if name != "descriptions_digest"}
    peers.write_text(json.dumps({**PEERS, "columns": [older]}))
    table, _, _ = parts(ablations.section([subject("one", config(), 48.25, descriptions_digest=None)], [peers]))
    assert [row[1] for row in table.rows] == ["48.25 ± 0.70", "42.80 ± 0.50", "32.00 ± 2.83 (2 seeds)"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny", "every layer"),
        ("tiny-logits", "classification layer alone"),
        ("cifar-fs-last-stage", "layer4 adapted"),
        ("cifar-fs-static", "every layer, static embeddings"),
        ("cifar-fs-sentence", "every layer, sentence embeddings"),
        ("cifar-fs-gamma-0.9", "every layer, gamma 0.9, mu from 0.1"),
    ],
)
def test_an_ablation_is_called_by_what_differs(name: str, said: str) -> None:
    assert ablations.kind(asdict(config(name))) == said


def test_bases_tell_rows_apart() -> None:
    leaky = config(model=N3Config(BaseSpec("mobilenet_v2", 128)))
    table, _, _ = parts(ablations.section([subject("a", config(), 40.0), subject("b", leaky, 70.0)], []))
    assert [row[0] for row in table.rows] == [
        "N3, every layer (resnet18, 64 px)",
        "N3, every layer (mobilenet_v2, 128 px)",
    ]


def test_what_is_not_measured_is_said(peers: Path) -> None:
    def missing(*subjects: Subject, peers: tuple[Path, ...] = ()) -> set[str]:
        _, _, notes = parts(ablations.section(subjects, list(peers)))
        return {note.partition(":")[0] for note in notes if "not measured" in note}

    everything = {what for what, _, _ in ablations.COMPARISONS}
    assert missing(subject("one", config(), 48.0)) == everything
    assert missing(peers=(peers,)) == {what for what in everything if not what.startswith("Peers")}
    names = ("cifar-fs", "cifar-fs-logits", "cifar-fs-gamma-0.99", "cifar-fs-static")
    assert missing(*(subject(name, config(name), 48.0) for name in names), peers=(peers,)) == set()


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, "an unseen class is unseen"),
        ({"pretrained": "torchvision"}, "met ImageNet"),
        ({"train_data_digest": "b"}, "not known"),
    ],
)
def test_what_the_base_of_the_peers_has_met_is_said(changes: dict[str, str], claim: str, peers: Path) -> None:
    peers.write_text(json.dumps({**PEERS, "base": {**BASE, **changes}}))
    _, _, notes = parts(ablations.section([], [peers]))
    assert claim in notes[0]


def test_an_n3_that_is_not_evaluated_leaves_notes_alone() -> None:
    section = ablations.section([replace(subject("one", config(), 0.0), columns=())], [])
    assert section is not None
    assert all(isinstance(part, Note) for part in section.parts)


def test_without_n3_and_peers_there_is_no_section(exported: MetaModel) -> None:
    assert ablations.section([Subject(exported, {}, ())], []) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({**PEERS, "columns": [{}]})])
def test_a_file_that_holds_no_peers_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(text)
    for path in (tmp_path / "broken.json", tmp_path / "none.json"):
        with pytest.raises(DataError, match=f"{path.name} holds no peers .* `training compare-words` writes some"):
            ablations.section([], [path])


def test_bars_are_as_long_as_the_figures() -> None:
    figure = plots.bars({"one": [("a", 42.5, 0.5), ("b", 30.0, float("nan"))], "two": [("a", 12.0, 1.0)]})
    upper, lower = figure.axes
    assert [bar.get_width() for bar in upper.patches] == [42.5, 30.0]
    assert [bar.get_width() for bar in lower.patches] == [12.0]
    assert [text.get_text().strip() for text in upper.texts] == ["a", "b"]
    (errors,) = upper.containers[0].lines[2]
    assert errors.get_segments()[0][:, 0].tolist() == [42.0, 43.0]
