"""The service beside what else could serve the same file: a raw loop, LitServe, BentoML, MOSEC, Ray Serve.

Same ONNX file, same session options, same images, same machine, by turns in one run. The other servers run from an
environment of their own (``make bench-peers``); without it, the raw loop is what there is to compare with.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.device import providers_on
from models.metamodel import ZOO
from tests.bench import networks
from tests.bench.alone import one_at_a_time
from tests.bench.classifier import Classifier
from tests.bench.measure import N_CONNECTIONS, Bench, Figures, answer_of, load_on, percentile, rate, write_images
from tests.bench.photographs import photograph
from tests.bench.server import Server, free_port, post, process, service
from tests.bench.tasks import Client, make_task

ROOT = Path(__file__).parents[2]
PEERS = {"litserve": "LitServe", "bentoml": "BentoML", "mosec": "MOSEC", "ray": "Ray Serve"}
N_CLASSES = 5


@dataclass(frozen=True)
class Subject:
    """A network to serve: the meta-model and support images that its task is made of, and the images to classify."""

    meta_models: Path
    generator: str
    support: dict[str, bytes]
    images: list[bytes]
    media_type: str


@dataclass(frozen=True)
class Served:
    """A server under test, the path that classifies, and the bodies it takes."""

    server: Server
    path: str
    bodies: Sequence[Path]
    media_type: str


def yardsticks(bench: Bench) -> Figures:
    """Both networks; figures are named by network, then by server. Of one process and one a core, the faster."""
    figures: Figures = {}
    for name, subject in (("resnet18", photographs(bench.folder)), ("small", drawings())):
        figures |= {f"{name}_{figure}": value for figure, value in measure(bench, name, subject).items()}
    return figures


def photographs(folder: Path) -> Subject:
    networks.resnet18(folder / "yardstick-zoo")
    images = [photograph(seed) for seed in range(20)]
    support = {f"class {k}": image for k, image in enumerate(images[:N_CLASSES])}
    return Subject(folder / "yardstick-zoo", networks.NAME, support, images, "image/jpeg")


def drawings() -> Subject:
    task = make_task(0)
    return Subject(ZOO, "omniglot-8", task.support, [png for _, png in task.queries[::5]], "image/png")


def measure(bench: Bench, name: str, subject: Subject) -> Figures:
    folder = bench.folder / f"yardstick-{name}"
    bodies = write_images(folder / "images", subject.images)
    model = folder / "model.onnx"

    @contextmanager
    def serving(n_processes: int) -> Iterator[Served]:
        settings = {"META_MODELS": str(subject.meta_models), "PROCESSES": str(n_processes)}
        with service(folder / "state", **settings) as server:
            yield Served(server, create(server, subject, model), bodies, subject.media_type)

    found = []
    for n in numbers_of_workers(bench):
        with serving(n) as ours:
            found.append({**beside_raw(bench, ours, model), "n_processes": n})
    figures = max(found, key=lambda figures: float(figures["per_s"]))
    with serving(figures["n_processes"]) as ours:
        for peer in PEERS:
            if has_peer(bench, peer):
                found = beside_peer(bench, ours, peer, model)
                figures |= {f"{peer}_{figure}": value for figure, value in found.items()}
    ratios = [figures[f"{peer}_ratio"] for peer in PEERS if f"{peer}_ratio" in figures]
    return figures | ({"best_peer_ratio": min(ratios)} if ratios else {})


def create(server: Server, subject: Subject, model: Path) -> str:
    """Make the task and export its classifier to ``model``; the path that classifies."""
    client = Client(server.port)
    classes = [{"name": n, "images": [base64.b64encode(i).decode()]} for n, i in subject.support.items()]
    body = json.dumps({"classes": classes, "generator": subject.generator}).encode()
    record = json.loads(client.send("POST", "/tasks", body))
    model.write_bytes(client.send("GET", f"/tasks/{record['id']}/model.onnx"))
    return f"/tasks/{record['id']}/predict"


def beside_raw(bench: Bench, ours: Served, model: Path, device: str = "cpu") -> Figures:
    """The raw loop and the service by turns at saturation; then one image at a time."""
    raws, runs = [], []
    command = [sys.executable, "-m", "tests.bench.raw", "--model", str(model), "--device", device]
    given = json.dumps({"bodies": [str(body) for body in ours.bodies]})
    for _ in range(bench.rounds):
        raws.append(answer_of([*command, "--seconds", "1" if bench.quick else "3"], stdin=given))
        runs.append(load(bench, ours))
    client, images = Client(ours.server.port), [body.read_bytes() for body in ours.bodies[:10]]

    def ask(image: bytes) -> None:
        client.send("POST", ours.path, image, ours.media_type)

    return {
        "raw_per_s": statistics.median(raw["images_per_s"] for raw in raws),
        "of_raw": statistics.median(rate(a) / b["images_per_s"] for a, b in zip(runs, raws, strict=True)),
        **summary(runs),
        **one_at_a_time(bench, Classifier(model, providers_on(device)), images, ask),
    }


def beside_peer(bench: Bench, ours: Served, peer: str, model: Path) -> Figures:
    """The service and another server by turns; that one with one worker and with one a core, whichever is faster."""
    found = []
    for n_workers in numbers_of_workers(bench):
        with started(bench, peer, model, ours, n_workers) as theirs:
            mine, them, alone = [], [], []
            load(bench, theirs)  # warms up
            for _ in range(min(bench.rounds, 3)):
                with theirs.server.paused():
                    mine.append(load(bench, ours))
                with ours.server.paused():
                    them.append(load(bench, theirs))
                    alone.append(load(bench, theirs, n_connections=1))
        ratio = statistics.median(rate(a) / max(rate(b), 1e-9) for a, b in zip(mine, them, strict=True))
        p99_ratio = percentile(latencies(mine), 99) / percentile(latencies(them), 99)
        alone_ms = statistics.median(percentile(run["latencies_ms"], 50) for run in alone)
        figures = {"alone_p50_ms": alone_ms, "ratio": ratio, "p99_ratio": p99_ratio, "n_workers": n_workers}
        found.append(summary(them) | figures | {"n_errors": sum(run["n_errors"] for run in [*them, *alone])})
    return max(found, key=lambda figures: float(figures["per_s"]))


def numbers_of_workers(bench: Bench) -> list[int]:
    """What every server is tried with, ours too."""
    return [1] if bench.quick else sorted({1, os.cpu_count() or 1})


def load(bench: Bench, served: Served, n_connections: int = N_CONNECTIONS) -> Figures:
    kind = served.media_type
    return load_on(served.server, [served.path], served.bodies, bench, n_connections=n_connections, media_type=kind)


def summary(runs: Sequence[Figures]) -> Figures:
    return {
        "per_s": statistics.median(rate(run) for run in runs),
        "p50_ms": percentile(latencies(runs), 50),
        "p99_ms": percentile(latencies(runs), 99),
        "n_errors": sum(run["n_errors"] for run in runs),
    }


def latencies(runs: Sequence[Figures]) -> list[float]:
    return [ms for run in runs for ms in run["latencies_ms"]]


def has_peer(bench: Bench, peer: str) -> bool:
    return bench.peers is not None and any(bench.peers.glob(f"lib/python*/site-packages/{peer}/__init__.py"))


@contextmanager
def started(bench: Bench, peer: str, model: Path, ours: Served, n_workers: int) -> Iterator[Served]:
    """Another server around ``model``, once it answers."""
    assert bench.peers is not None
    port, python = free_port(), bench.peers.absolute() / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL": str(model), "WORKERS": str(n_workers)}
    environment |= {"PORT": str(port), "BENTOML_DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}
    module, at = f"tests.bench.peers.{peer}_server", ["--port", str(port)]
    command, path, bodies, kind = [str(python), "-m", module], "/predict", ours.bodies, ours.media_type
    if peer == "mosec":
        command += [*at, "--address", "127.0.0.1", "--timeout", "60000", "--log-level", "warning"]
        path = "/inference"
    if peer == "bentoml":
        command = [str(python), "-m", "bentoml", "serve", f"{module}:Served", *at, "--host", "127.0.0.1"]
    if peer == "litserve":
        bodies, kind = [as_json(body) for body in bodies], "application/json"
    first, log = bodies[0].read_bytes(), bench.folder / f"{peer}.log"

    def answers(port: int) -> bool:
        return post(port, path, first, kind) == 200

    with process(command, port, environment, log=log, is_ready=answers) as server:
        yield Served(server, path, bodies, kind)


def as_json(body: Path) -> Path:
    encoded = body.with_suffix(".json")
    encoded.write_text(json.dumps({"image": base64.b64encode(body.read_bytes()).decode()}))
    return encoded


def table(network: str, name: str, *, of_raw: str, best: str) -> list[tuple[str, str, str, str, str]]:
    """Rows of the bench's table: (what, part, figure, format, target)."""
    rate, ms = "{:,.0f} a second", "{:.1f} ms"
    rows = [
        (f"{name}: a raw loop on all cores", "raw_per_s", rate, ""),
        (f"{name}: the service, 16 connections", "per_s", rate, ""),
        ("in so many processes", "n_processes", "{:d}", ""),
        ("of the raw loop", "of_raw", "{:.0%}", of_raw),
        (f"{name}: the service, p99", "p99_ms", ms, ""),
        (f"{name}: one connection, p50 over the raw call", "overhead_ms", "{:.2f} ms", "under 1.5 ms"),
    ]
    for key, peer in PEERS.items():
        rows += [(f"{name}: {peer}", f"{key}_per_s", rate, ""), (f"{name}: {peer}, p99", f"{key}_p99_ms", ms, "")]
    rows.append((f"{name}: the service against the best of them", "best_peer_ratio", "{:.1f} times", best))
    return [(what, "yardsticks", f"{network}_{figure}", form, target) for what, figure, form, target in rows]


TABLE = (
    *table("resnet18", "ResNet-18", of_raw="90 % or more", best=""),
    *table("small", "small CNN", of_raw="", best="2 times or more"),
)
