"""A small `make chaos`: one trial of each fault that needs no rights; nothing is lost, and no answer is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import figures, overload, soak
from tests.chaos.__main__ import EMBEDDED, SHARED, run

FAULTS = [*EMBEDDED, *SHARED]
LAZY_THREADS = 8
"""Pools start their threads when they are needed, not at once; a leak would be one for each of hundreds of tasks."""


@pytest.mark.timeout(1_200)
def test_each_fault_once(tmp_path: Path) -> None:
    outcomes = list(run(tmp_path, n_trials=len(FAULTS), seed=11, only=FAULTS))
    assert sorted(one.fault for one in outcomes) == sorted(FAULTS)
    assert [one.complaints for one in outcomes if one.n_lost or one.n_wrong] == [], figures.as_text(
        figures.counts(outcomes)
    )
    assert all(one.n_acknowledged for one in outcomes)
    assert all(one.n_reported_lost == 0 for one in outcomes if "page" not in one.fault)


@pytest.mark.timeout(600)
def test_ten_times_the_capacity_is_refused_in_part_and_nothing_breaks(tmp_path: Path) -> None:
    report = overload.run(tmp_path, seconds=2.0, factor=10.0)
    assert report.other_statuses == {}
    assert report.n_refused > 0
    assert report.served_per_s > 0
    assert min(report.retry_after_s) >= 1
    assert sum(report.retry_after_s.values()) == report.n_refused  # each was told when to come again
    assert report.n_different_answers == 1
    assert report.rss_after_mb < report.rss_before_mb + 300


@pytest.mark.timeout(600)
def test_a_short_soak_leaks_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    report = soak.run(tmp_path, n_predictions=6_000, n_tasks=150)
    assert set(report.statuses) == {200}
    assert report.n_wrong == 0
    assert report.n_evictions > 0
    assert report.samples[-1].n_threads <= report.samples[0].n_threads + LAZY_THREADS
    assert report.samples[-1].n_files <= report.samples[0].n_files + soak.N_CLIENTS
    assert report.growth < 5 * soak.MOST_GROWTH  # so short a run says little of memory
