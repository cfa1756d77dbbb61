"""Ten times as many requests as can be served: who is admitted is served as before, the others are told when to come.

    python -m tests.chaos.overload [--seconds S] [--factor N] [--save]

First a few closed-loop clients find the capacity and its latencies; then an open loop sends ``factor`` times that: for
two deadlines while the line fills and is cut short, and then for as long as is measured; then the few clients come
again. Latencies include the load generator's own time, which runs on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

from tests.bench.server import resident_mb
from tests.chaos import figures
from tests.chaos.ledger import query_body, task_body
from tests.chaos.wire import Wire, connect
from tests.e2e.processes import Service, serve
from tests.service import centroids

JSON = "application/json"
N_IMAGES = 250
N_STEADY, N_MANY = 8, 500
DEADLINE_S = 2.0
TASK_SEED = 1


@dataclass
class Phase:
    """What a phase of the load saw. ``latencies_ms``: of the requests that were served."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    retry_after_s: Counter[int] = field(default_factory=Counter)
    answers: set[bytes] = field(default_factory=set)

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True)
class Report:
    """Latencies in ms, memory in MB; ``recovery_ms``: of the first request after the overload."""

    capacity_per_s: float
    offered_per_s: float
    served_per_s: float
    n_refused: int
    other_statuses: dict[int, int]
    p50_ms: float
    p99_ms: float
    filling_p99_ms: float
    overload_p50_ms: float
    overload_p99_ms: float
    after_p50_ms: float
    after_p99_ms: float
    deadline_ms: float
    retry_after_s: dict[int, int]
    recovery_ms: float
    rss_before_mb: float
    rss_after_mb: float
    n_different_answers: int


async def _send(wire: Wire, path: str, body: bytes, phase: Phase) -> None:
    began = perf_counter()
    answer = await wire.post(path, body, JSON)
    phase.statuses[answer.status] += 1
    if answer.status == 200:
        phase.latencies_ms.append(1e3 * (perf_counter() - began))
        phase.answers.add(answer.body)
    if "retry-after" in answer.headers:
        phase.retry_after_s[int(answer.headers["retry-after"])] += 1


async def load(port: int, path: str, body: bytes, *, n_clients: int, seconds: float, per_s: float = 0.0) -> Phase:
    """Clients that send on an answer, or at ``per_s`` all together, each at its own beat."""
    phase, loop = Phase(), asyncio.get_running_loop()
    wires = [await connect(port) for _ in range(n_clients)]
    began = loop.time()

    async def client(i: int, wire: Wire) -> None:
        due = began + (i / per_s if per_s else 0.0)
        while (now := loop.time()) < began + seconds:
            if due > now:
                await asyncio.sleep(min(due - now, seconds))
                continue
            await _send(wire, path, body, phase)
            due = max(due + n_clients / per_s, loop.time() - 1.0) if per_s else 0.0

    await asyncio.gather(*(client(i, wire) for i, wire in enumerate(wires)))
    phase.seconds = loop.time() - began
    for wire in wires:
        await wire.close()
    return phase


async def overload(service: Service, *, seconds: float, factor: float) -> Report:
    port = service.http.base_url.port or 0
    task_id = service.http.post("/tasks", json=task_body(TASK_SEED)).raise_for_status().json()["id"]
    path = f"/tasks/{task_id}/predict"
    body = json.dumps({"images": query_body(TASK_SEED)["images"] * (N_IMAGES // 3)}).encode()
    await load(port, path, body, n_clients=N_STEADY, seconds=seconds / 4)  # the service learns what an image costs
    before = await load(port, path, body, n_clients=N_STEADY, seconds=seconds)
    rss_before_mb = resident_mb(service.process.pid)
    capacity = before.statuses[200] / before.seconds
    filling = await load(port, path, body, n_clients=N_MANY, seconds=2 * DEADLINE_S, per_s=factor * capacity)
    during = await load(port, path, body, n_clients=N_MANY, seconds=seconds, per_s=factor * capacity)
    began = perf_counter()
    first = Phase()
    wire = await connect(port)
    while not first.statuses[200]:
        await _send(wire, path, body, first)
    recovery_ms = 1e3 * (perf_counter() - began)
    await wire.close()
    after = await load(port, path, body, n_clients=N_STEADY, seconds=seconds)
    n_offered = sum(during.statuses.values())
    return Report(
        capacity_per_s=capacity, offered_per_s=n_offered / during.seconds,
        served_per_s=during.statuses[200] / during.seconds, n_refused=during.statuses[429],
        other_statuses={s: n for s, n in (filling.statuses + during.statuses).items() if s not in (200, 429)},
        p50_ms=before.quantile_ms(0.5), p99_ms=before.quantile_ms(0.99), filling_p99_ms=filling.quantile_ms(0.99),
        overload_p50_ms=during.quantile_ms(0.5), overload_p99_ms=during.quantile_ms(0.99),
        after_p50_ms=after.quantile_ms(0.5), after_p99_ms=after.quantile_ms(0.99), deadline_ms=1e3 * DEADLINE_S,
        retry_after_s=dict(sorted(during.retry_after_s.items())), recovery_ms=recovery_ms,
        rss_before_mb=rss_before_mb, rss_after_mb=resident_mb(service.process.pid),
        n_different_answers=len(before.answers | filling.answers | during.answers | after.answers),
    )  # fmt: skip


def run(folder: Path, *, seconds: float, factor: float) -> Report:
    centroids.meta_model(folder / "meta-models")
    settings = {"meta_models": folder / "meta-models", "state_dir": folder / "state", "deadline_s": DEADLINE_S}
    with serve(**settings) as service:
        return asyncio.run(overload(service, seconds=seconds, factor=factor))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="classmith-overload-") as folder:
        report = asdict(run(Path(folder), seconds=args.seconds, factor=args.factor))
    for name, value in report.items():
        print(f"{name:22} {value:.1f}" if isinstance(value, float) else f"{name:22} {value}")
    if args.save:
        figures.keep("overload", report)
    return int(bool(report["other_statuses"]))


if __name__ == "__main__":
    sys.exit(main())
