"""Tests of how the counts of faults are added up, kept and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.chaos import figures
from tests.chaos.trials import Outcome

ONE = Outcome("cut", 2, 30, 40, 1, 3, 0, 0, 0, 0, 0.25)


def test_a_row_adds_up_the_trials_of_a_fault_and_the_last_all_of_them() -> None:
    rows = figures.counts([ONE, replace(ONE, n_lost=1, recovery_s=1.75), replace(ONE, fault="kill", n_wrong=2)])
    assert [(row["fault"], row["n_trials"]) for row in rows] == [("cut", 2), ("kill", 1), ("all", 3)]
    assert [(row["n_lost"], row["n_wrong"], row["n_answers"]) for row in rows] == [(1, 0, 60), (0, 2, 30), (1, 2, 90)]
    assert (rows[0]["recovery_p50_s"], rows[0]["recovery_max_s"], rows[2]["recovery_p50_s"]) == (1.0, 1.75, 0.25)
    shown = figures.as_text(rows).splitlines()
    assert len({len(line) for line in shown}) == 1
    assert shown[1].split() == ["cut", "2", "4", "60", "1", "0", "0", "2", "6", "1.00", "1.75"]


def test_parts_are_kept_beside_each_other_but_not_beside_those_of_another_machine(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    assert figures.lines(results) == []
    figures.keep("faults", figures.counts([ONE]), results)
    figures.keep("soak", {"growth": 0.0}, results)
    saved = json.loads(results.read_text())
    assert set(saved) == {"hardware", "faults", "soak"}
    results.write_text(json.dumps(saved | {"hardware": {"cpu": "another"}}))
    figures.keep("faults", figures.counts([ONE, ONE]), results)
    saved = json.loads(results.read_text())
    assert set(saved) == {"hardware", "faults"}
    assert [row["n_trials"] for row in saved["faults"]] == [2, 2]
    head, _, cut, *_ = figures.lines(results)
    assert head.count("|") == cut.count("|") == len(figures.COLUMNS) + 1
    assert cut.startswith("| cut | 2 | 4 | 60 | 0 |")
