"""Many tasks by turns against one: what it costs that every request is for another classifier."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.metamodel import ZOO, load
from tests.bench.measure import Bench, Figures, load_on, percentile, rate, write_images
from tests.bench.server import Server, resident_mb, service
from tests.bench.tasks import Client, make_task

N_TASKS = 1000
META_MODELS = {"networks": "omniglot-8", "heads": "omniglot-64"}
"""One whose tasks write every layer, and one whose tasks write the logits layer on shared convolutions."""


def many_tasks(bench: Bench) -> Figures:
    """A thousand tasks by turns, and one of them alone, in rounds: each kind of task that shares a network."""
    figures: Figures = {"n_tasks": 50 if bench.quick else N_TASKS}
    for kind, name in META_MODELS.items():
        of_kind = replace(bench, meta_model=load(ZOO / name))
        figures |= {f"{kind}_{figure}": value for figure, value in measure(of_kind, figures["n_tasks"]).items()}
    return figures


def measure(bench: Bench, n_tasks: int) -> Figures:
    folder = bench.folder / f"many-{bench.meta_model.name}"
    bodies = write_images(folder / "drawings", (png for _, png in make_task(0).queries[::5]))
    with service(folder / "state") as server:
        client = Client(server.port)
        made = [client.create(make_task(seed), bench.meta_model.name)[0] for seed in range(n_tasks)]
        paths = [f"/tasks/{record['id']}/predict" for record in made]
        load_on(server, paths, bodies, bench)  # every task is in memory
        one, many = rounds(server, paths, bodies, bench)
        loaded_mb = resident_mb(server.pid)
    latencies = [ms for run in many for ms in run["latencies_ms"]]
    return {
        "one_per_s": statistics.median(rate(run) for run in one),
        "many_per_s": statistics.median(rate(run) for run in many),
        "ratio": statistics.median(rate(a) / rate(b) for a, b in zip(many, one, strict=True)),
        "many_p50_ms": percentile(latencies, 50),
        "many_p99_ms": percentile(latencies, 99),
        "n_errors": sum(run["n_errors"] for run in one + many),
        "loaded_mb": loaded_mb,
    }


def rounds(
    server: Server, paths: Sequence[str], bodies: Sequence[Path], bench: Bench
) -> tuple[list[Figures], list[Figures]]:
    """Loads on the first task alone, and on all of them, by turns; the first of each warms up."""
    one, many = [], []
    for _ in range(2 if bench.quick else 6):
        one.append(load_on(server, paths[:1], bodies, bench))
        many.append(load_on(server, paths, bodies, bench))
    return one[1:], many[1:]
