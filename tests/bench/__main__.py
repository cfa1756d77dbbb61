"""`make bench`: the service's speed, as ratios measured side by side in one run, with the hardware they were taken on.

    python -m tests.bench [--quick] [--only create,predict,...] [--meta-model omniglot-8] [--save]

Prints a table, then JSON; --save also writes the JSON to tests/bench/results.json, from which the README's table is
made (python -m tests.bench.readme); parts that --only leaves out stay there, where they are of the same machine.
Nothing here passes or fails: the targets stand beside the figures.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from models.metamodel import ZOO, MetaModel, load
from tests.bench.gpu import TABLE as TABLE_OF_GPU
from tests.bench.gpu import gpu
from tests.bench.measure import (
    N_CONNECTIONS,
    Bench,
    Figures,
    answer_of,
    hardware,
    load_on,
    load_times_ms,
    percentile,
    processor_time,
    rate,
    write_images,
)
from tests.bench.mixed import many_tasks
from tests.bench.server import baseline, resident_mb, service
from tests.bench.tasks import N_CLASSES, Client, Task, make_task
from tests.bench.words import TABLE as TABLE_OF_WORDS
from tests.bench.words import words
from tests.bench.yardsticks import TABLE as TABLE_OF_YARDSTICKS
from tests.bench.yardsticks import yardsticks

RESULTS = Path(__file__).with_name("results.json")
SETTLE_S = 2.0


def create(bench: Bench) -> Figures:
    """`POST /tasks`, 20 classes with one PNG each, every task new."""
    with service(bench.folder / "create") as server:
        client = Client(server.port)
        for seed in range(5):
            client.create(make_task(seed), bench.meta_model.name)
        made = [client.create(make_task(100 + n), bench.meta_model.name) for n in range(bench.repeats(200))]
    http_ms, inside_ms = [ms for _, ms in made], [record["generate_ms"] for record, _ in made]
    return {
        "create_p50_ms": percentile(http_ms, 50),
        "create_p95_ms": percentile(http_ms, 95),
        "generate_p50_ms": percentile(inside_ms, 50),
        "task_bytes": made[0][0]["bytes"],
        "n_tasks": len(made),
    }


def speed_up(bench: Bench) -> Figures:
    """Creating over HTTP against fitting the same network, to the same accuracy on the same support set."""
    if not find_spec("torch"):
        return {"skipped": "needs the training extra (torch)"}
    fits, creations = [], []
    with service(bench.folder / "speed-up") as server:
        client = Client(server.port)
        for seed in range(5):
            client.create(make_task(seed), bench.meta_model.name)
        for seed in range(1000, 1000 + (1 if bench.quick else 5)):
            task, client = make_task(seed), Client(server.port)  # a new connection: a fit outlives one that idles
            record, create_ms = client.create(task, bench.meta_model.name)
            fitted = fit(bench, task, client.accuracy(record["id"], list(task.support.items())))
            if fitted["default"]:
                fits.append(fitted)
                creations.append(create_ms)
    if not fits:
        return {"skipped": "gradient descent did not reach the generated network's accuracy"}
    figures: Figures = {"create_ms": statistics.median(creations), "n_tasks": len(fits)}
    for kind in ("default", "tuned"):
        times_ms = [fitted[kind]["ms"] for fitted in fits]
        figures[f"{kind}_fit_ms"] = statistics.median(times_ms)
        figures[f"{kind}_learning_rate"] = statistics.median(fitted[kind]["learning_rate"] for fitted in fits)
        figures[f"{kind}_speed_up"] = statistics.median(a / b for a, b in zip(times_ms, creations, strict=True))
    return figures


def fit(bench: Bench, task: Task, accuracy: float) -> Figures:
    support = bench.folder / "support.json"
    support.write_text(json.dumps({name: base64.b64encode(png).decode() for name, png in task.support.items()}))
    command = [sys.executable, "-m", "tests.bench.gradient_descent", "--meta-model", str(bench.meta_model.folder)]
    command += ["--support", str(support), "--accuracy", str(accuracy - 1e-6)]
    return answer_of(command)


def cold_load(bench: Bench) -> Figures:
    """From the store to a session that runs: in this process, and as a prediction over HTTP that finds none."""
    with service(bench.folder / "cold", SESSION_BYTES="1", MIN_RESIDENCY_S="0") as server:
        client = Client(server.port)
        tasks = [make_task(seed) for seed in range(2)]
        records = [client.create(task, bench.meta_model.name)[0] for task in tasks]
        cold_ms, hot_ms = [], []
        for _ in range(bench.repeats(100)):  # only the newest session fits, so turns make every first one cold
            for record, task in zip(records, tasks, strict=True):
                cold_ms.append(client.predict(record["id"], task.queries[0][1])[1])
                hot_ms.append(client.predict(record["id"], task.queries[1][1])[1])
    times_ms = load_times_ms(bench, bench.folder / "cold", records[0]["id"], 100)
    return {
        "load_p50_ms": percentile(times_ms, 50),
        "load_p95_ms": percentile(times_ms, 95),
        "cold_predict_p50_ms": percentile(cold_ms, 50),
        "hot_predict_p50_ms": percentile(hot_ms, 50),
    }


def predict(bench: Bench) -> Figures:
    """One PNG a request on 16 connections: the service and the barest endpoint by turns, one process each."""
    task = make_task(0)
    bodies = write_images(bench.folder / "queries", (png for _, png in task.queries[::5]))
    ours, theirs = [], []
    with service(bench.folder / "predict") as server:
        client = Client(server.port)
        record, _ = client.create(task, bench.meta_model.name)
        model = bench.folder / "model.onnx"
        model.write_bytes(client.send("GET", f"/tasks/{record['id']}/model.onnx"))
        with baseline(model) as bare:
            for round_ in range(2 if bench.quick else 7):
                mine = load_on(server, [f"/tasks/{record['id']}/predict"], bodies, bench)
                bares = load_on(bare, ["/predict"], bodies, bench)
                if round_:  # the first warms up
                    ours.append(mine)
                    theirs.append(bares)
        loaded_mb = resident_mb(server.pid)
    latencies = [ms for run in ours for ms in run["latencies_ms"]]
    return {
        "requests_per_s": statistics.median(rate(run) for run in ours),
        "bare_requests_per_s": statistics.median(rate(run) for run in theirs),
        "ratio": statistics.median(rate(a) / rate(b) for a, b in zip(ours, theirs, strict=True)),
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "p99_over_p50": percentile(latencies, 99) / percentile(latencies, 50),
        "bare_p50_ms": percentile([ms for run in theirs for ms in run["latencies_ms"]], 50),
        "bare_p99_ms": percentile([ms for run in theirs for ms in run["latencies_ms"]], 99),
        "n_connections": N_CONNECTIONS,
        "n_errors": sum(run["n_errors"] for run in ours + theirs),
        "loaded_mb": loaded_mb,
    }


def start(bench: Bench) -> Figures:
    """From starting the process to ready, with every meta-model of the zoo; then the memory it holds idle."""
    ready_ms, idle_mb = [], []
    for n in range(bench.repeats(30) // 3):
        with service(bench.folder / f"start{n}") as server:
            ready_ms.append(server.ready_ms)
            time.sleep(SETTLE_S)  # it reads its meta-models after it is ready
            idle_mb.append(resident_mb(server.pid))
    return {"ready_p50_ms": percentile(ready_ms, 50), "ready_max_ms": max(ready_ms), "idle_mb": max(idle_mb)}


def imports(bench: Bench) -> Figures:
    """What `import service.app` brings in."""
    code = """import json, sys, time
started = time.perf_counter()
import service.app
elapsed_ms = 1e3 * (time.perf_counter() - started)
print(json.dumps({"import_ms": elapsed_ms, "n_modules": len(sys.modules), "torch": "torch" in sys.modules}))"""
    return answer_of([sys.executable, "-c", code])


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "create": create,
    "speed_up": speed_up,
    "cold_load": cold_load,
    "predict": predict,
    "many_tasks": many_tasks,
    "words": words,
    "yardsticks": yardsticks,
    "gpu": gpu,
    "start": start,
    "imports": imports,
}

TABLE = (
    ("make a 20-way 1-shot classifier over HTTP, p50", "create", "create_p50_ms", "{:.1f} ms", ""),
    ("make a 20-way 1-shot classifier over HTTP, p95", "create", "create_p95_ms", "{:.1f} ms", "under 50 ms"),
    ("of it the generator's, p50", "create", "generate_p50_ms", "{:.1f} ms", ""),
    ("size of its bundle", "create", "task_bytes", "{:,} bytes", ""),
    ("fitting the same network by gradient descent (Adam)", "speed_up", "default_fit_ms", "{:.0f} ms", ""),
    ("making it is faster, over HTTP", "speed_up", "default_speed_up", "{:.0f} times", "50 times or more"),
    ("fitting it at the best of four learning rates", "speed_up", "tuned_fit_ms", "{:.0f} ms", ""),
    ("making it is faster than that, over HTTP", "speed_up", "tuned_speed_up", "{:.0f} times", ""),
    ("cold load from the store, p50", "cold_load", "load_p50_ms", "{:.1f} ms", "under 10 ms"),
    ("a prediction that has to load first, over HTTP, p50", "cold_load", "cold_predict_p50_ms", "{:.1f} ms", ""),
    ("a prediction that need not, one connection, p50", "cold_load", "hot_predict_p50_ms", "{:.1f} ms", ""),
    ("predictions, one PNG a request, 16 connections", "predict", "requests_per_s", "{:,.0f} a second", ""),
    ("the barest FastAPI endpoint, by turns", "predict", "bare_requests_per_s", "{:,.0f} a second", ""),
    ("service against barest endpoint", "predict", "ratio", "{:.0%}", "60 % or more"),
    ("latency there, p50", "predict", "p50_ms", "{:.1f} ms", ""),
    ("latency there, p99", "predict", "p99_ms", "{:.1f} ms", ""),
    ("p99 over p50", "predict", "p99_over_p50", "{:.1f} times", "under 10 times"),
    ("1,000 tasks by turns, every layer written", "many_tasks", "networks_many_per_s", "{:,.0f} a second", ""),
    ("against one of them alone", "many_tasks", "networks_ratio", "{:.0%}", "70 % or more"),
    ("1,000 tasks by turns, logits layer written", "many_tasks", "heads_many_per_s", "{:,.0f} a second", ""),
    ("against one of them alone", "many_tasks", "heads_ratio", "{:.0%}", "70 % or more"),
    *TABLE_OF_WORDS,
    *TABLE_OF_YARDSTICKS,
    *TABLE_OF_GPU,
    ("service start to ready, p50", "start", "ready_p50_ms", "{:.0f} ms", "under 3000 ms"),
    ("memory of the idle service", "start", "idle_mb", "{:.0f} MB", "under 250 MB"),
    ("memory after the load", "predict", "loaded_mb", "{:.0f} MB", ""),
    ("torch in `import service.app`", "imports", "torch", "{}", "False"),
)
"""(what, part, figure, format, target)."""


def rows(results: Figures) -> list[tuple[str, str, str]]:
    """(what, figure, target) of every figure that was taken."""
    return [
        (what, form.format(results[part][figure]), target)
        for what, part, figure, form, target in TABLE
        if figure in results.get(part, {})
    ]


def run(names: Sequence[str], meta_model: MetaModel, *, quick: bool, peers: Path | None = None) -> Figures:
    results: Figures = {
        "command": "make bench",
        "meta_model": meta_model.name,
        "n_classes": N_CLASSES,
        "quick": quick,
        "hardware": hardware(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            before = processor_time()
            figures = PARTS[name](Bench(Path(folder), meta_model, quick, peers))
            results[name] = figures | {"meta_model_digest": meta_model.digest}
            if before and (after := processor_time()):
                worked, stolen = (now - then for now, then in zip(after, before, strict=True))
                results[name]["stolen"] = round(stolen / max(worked + stolen, 1e-9), 3)
    return results


def kept(results: Figures) -> Figures:
    """The saved parts that were not measured anew, if they are of this machine; each says with which export it was."""
    saved: Figures = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    same = all(saved.get(name) == results[name] for name in ("hardware", "meta_model", "quick"))
    return saved if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--meta-model", default="omniglot-8")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--peers", type=Path, help="virtual environment of the other servers (make bench-peers)")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; choose of {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes under test are stopped too
    results = run(names, load(ZOO / args.meta_model), quick=args.quick, peers=args.peers)
    width = max(len(what) for what, _, _ in rows(results))
    for what, figure, target in rows(results):
        print(f"{what:{width}}  {figure:>16}  {target}".rstrip())
    for name in PARTS:
        if "skipped" in results.get(name, {}):
            print(f"{name}: skipped, {results[name]['skipped']}")
    print(json.dumps(results, indent=1))
    if args.save:
        RESULTS.write_text(json.dumps(kept(results) | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
