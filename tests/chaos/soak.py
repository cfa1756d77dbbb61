"""Hundreds of thousands of predictions over hundreds of tasks, with evictions all the time: nothing may grow.

    python -m tests.chaos.soak [--predictions N] [--tasks N] [--save]

Most requests go to a few hot tasks, the others to any, so that networks are evicted and built again. Resident memory,
descriptors and threads of the service are read ten times after warm-up (a fifth of the predictions).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

from tests.bench.server import resident_mb
from tests.chaos import figures
from tests.chaos.ledger import query_body, task_body
from tests.chaos.wire import connect
from tests.e2e.processes import Service, serve
from tests.service import centroids

JSON = "application/json"
N_CLIENTS, N_SAMPLES = 8, 10
HOT_PART, HOT_SHARE = 0.1, 0.7
"""A tenth of the tasks get 70 % of the requests."""
SESSION_BYTES = 800_000
N_IMAGES = 3
MOST_GROWTH = 0.05


@dataclass(frozen=True)
class Sample:
    """The service at one moment; memory in MB."""

    n_predictions: int
    rss_mb: float
    n_files: int
    n_threads: int


@dataclass(frozen=True)
class Report:
    """``growth``: of resident memory, last three samples against the first three after warm-up."""

    n_predictions: int
    n_tasks: int
    seconds: float
    statuses: dict[int, int]
    n_wrong: int
    n_evictions: int
    growth: float
    samples: list[Sample]


def sample(pid: int, n_predictions: int) -> Sample:
    folder = Path(f"/proc/{pid}")
    return Sample(
        n_predictions, resident_mb(pid), len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
    )  # fmt: skip


async def soak(
    service: Service, ids: list[str], n_predictions: int, rng: Random
) -> tuple[list[Sample], Counter[int], int]:
    """(samples after warm-up, answers by status, answers unlike the first of their task)."""
    statuses: Counter[int] = Counter()
    first: dict[int, bytes] = {}
    samples: list[Sample] = []
    n_hot = max(1, round(HOT_PART * len(ids)))
    n_requests, n_wrong, numbers = -(-n_predictions // N_IMAGES), 0, count()
    bodies = [json.dumps(query_body(i)).encode() for i in range(len(ids))]
    due = [n_requests // 5 + i * (n_requests - n_requests // 5) // N_SAMPLES for i in range(1, N_SAMPLES)] + [
        n_requests
    ]

    async def client() -> None:
        nonlocal n_wrong
        wire = await connect(service.http.base_url.port or 0)
        while (number := next(numbers)) < n_requests:
            i = rng.randrange(n_hot if rng.random() < HOT_SHARE else len(ids))
            answer = await wire.post(f"/tasks/{ids[i]}/predict", bodies[i], JSON)
            statuses[answer.status] += 1
            n_wrong += answer.status == 200 and first.setdefault(i, answer.body) != answer.body
            if due and number + 1 >= due[0]:
                due.pop(0)
                samples.append(sample(service.process.pid, (number + 1) * N_IMAGES))
        await wire.close()

    await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return samples, statuses, n_wrong


def run(folder: Path, *, n_predictions: int, n_tasks: int) -> Report:
    centroids.meta_model(folder / "meta-models")
    settings = {"meta_models": folder / "meta-models", "state_dir": folder / "state", "session_bytes": SESSION_BYTES}
    with serve(**settings, min_residency_s=0.05) as service:
        made = [service.http.post("/tasks", json=task_body(seed)).raise_for_status().json() for seed in range(n_tasks)]
        began = perf_counter()
        found = asyncio.run(soak(service, [task["id"] for task in made], n_predictions, Random(0)))
        samples, statuses, n_wrong = found
        seconds = perf_counter() - began
        n_evictions = evictions(service)
    early, late = (median(one.rss_mb for one in part) for part in (samples[:3], samples[-3:]))
    n_done = sum(statuses.values()) * N_IMAGES
    return Report(
        n_done, n_tasks, seconds, dict(statuses), n_wrong, n_evictions, late / early - 1.0, samples
    )  # fmt: skip


def evictions(service: Service) -> int:
    lines = service.http.get("/metrics").text.splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("classmith_cache_evictions_total")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=200_000)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="classmith-soak-") as folder:
        report = run(Path(folder), n_predictions=args.predictions, n_tasks=args.tasks)
    print(
        f"{report.n_predictions:,} predictions over {report.n_tasks} tasks in {report.seconds:.0f} s: {report.statuses}"
    )
    print(f"{report.n_evictions:,} evictions; {report.n_wrong} answers unlike the first of their task")
    print(f"{'predictions':>12} {'RSS MB':>8} {'files':>6} {'threads':>8}")
    for one in report.samples:
        print(f"{one.n_predictions:12,} {one.rss_mb:8.1f} {one.n_files:6} {one.n_threads:8}")
    print(f"growth of resident memory after warm-up: {100 * report.growth:.1f} % (at most {100 * MOST_GROWTH:.0f} %)")
    if args.save:
        figures.keep("soak", asdict(report))
    grown = report.growth > MOST_GROWTH or report.samples[-1].n_threads > report.samples[0].n_threads
    return int(grown or report.n_wrong > 0 or set(report.statuses) != {200})


if __name__ == "__main__":
    sys.exit(main())
