"""The counts of faults, overload and long runs: added up, kept beside this file, and shown as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.bench.measure import Figures, hardware
from tests.chaos.trials import Outcome

RESULTS = Path(__file__).with_name("results.json")
COLUMNS = {
    "fault": "fault",
    "n_trials": "trials",
    "n_acknowledged": "tasks",
    "n_answers": "answers",
    "n_lost": "lost",
    "n_wrong": "wrong",
    "n_reported_lost": "named as lost",
    "n_server_errors": "5xx",
    "n_refused": "refused",
    "recovery_p50_s": "recovery p50, s",
    "recovery_max_s": "max, s",
}
SUMS = ("n_acknowledged", "n_answers", "n_lost", "n_wrong", "n_reported_lost", "n_server_errors", "n_refused")


def counts(outcomes: Sequence[Outcome]) -> list[Figures]:
    """A row for each fault, and one for all."""
    names = dict.fromkeys(one.fault for one in outcomes)
    return [*(_row(name, [one for one in outcomes if one.fault == name]) for name in names), _row("all", outcomes)]


def _row(fault: str, these: Sequence[Outcome]) -> Figures:
    times_s = [one.recovery_s for one in these]
    sums = {name: sum(getattr(one, name) for one in these) for name in SUMS}
    recovery = {"recovery_p50_s": round(median(times_s), 2), "recovery_max_s": round(max(times_s), 2)}
    return {"fault": fault, "n_trials": len(these), **sums, **recovery}


def as_text(rows: Sequence[Figures]) -> str:
    """The counts as lines of equal width, for a terminal."""
    cells = [list(COLUMNS.values()), *([_cell(row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([f"{line[0]:{widths[0]}}", *map(str.rjust, line[1:], widths[1:])] for line in cells)
    return "\n".join("  ".join(line) for line in lines)


def keep(part: str, found: object, results: Path = RESULTS) -> None:
    """Save one part beside the others, as far as these are of the same machine."""
    saved: Figures = json.loads(results.read_text()) if results.is_file() else {}
    here = hardware()
    others = saved if saved.get("hardware") == here else {}
    results.write_text(json.dumps({**others, "hardware": here, part: found}, indent=1) + "\n")


def lines(results: Path = RESULTS) -> list[str]:
    """The kept figures in Markdown: a table of faults, and a sentence for each of the others."""
    saved: Figures = json.loads(results.read_text()) if results.is_file() else {}
    found: list[str] = []
    if rows := saved.get("faults"):
        found += [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
        found += [f"| {' | '.join(_cell(row[name]) for name in COLUMNS)} |" for row in rows]
        found.append("")
    if seen := saved.get("overload"):
        found.append(_overload(seen))
    if seen := saved.get("soak"):
        found.append(_soak(seen))
    return found


def _overload(seen: Figures) -> str:
    return (
        f"- `python -m tests.chaos.overload`: capacity {seen['capacity_per_s']:.0f} requests a second; "
        f"offered {seen['offered_per_s']:.0f}: {seen['served_per_s']:.0f} served a second, p99 "
        f"{seen['overload_p99_ms']:,.0f} ms (before {seen['p99_ms']:,.0f}, while the line filled "
        f"{seen['filling_p99_ms']:,.0f}, after {seen['after_p99_ms']:,.0f}; deadline {seen['deadline_ms']:,.0f}), "
        f"{seen['n_refused']:,} got 429, "
        f"{sum(seen['other_statuses'].values())} anything else; memory "
        f"{seen['rss_before_mb']:.0f} MB before, {seen['rss_after_mb']:.0f} after; the first request afterwards "
        f"{seen['recovery_ms']:.0f} ms."
    )


def _soak(seen: Figures) -> str:
    first, last = seen["samples"][0], seen["samples"][-1]
    return (
        f"- `python -m tests.chaos.soak`: {seen['n_predictions']:,} predictions over {seen['n_tasks']} tasks in "
        f"{seen['seconds']:.0f} s, {seen['n_evictions']:,} networks evicted, {seen['n_wrong']} wrong; after warm-up "
        f"{first['rss_mb']:.0f} MB to {last['rss_mb']:.0f} MB ({100 * seen['growth']:+.1f} %), {first['n_files']} to "
        f"{last['n_files']} descriptors, {first['n_threads']} to {last['n_threads']} threads."
    )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
