"""Classifiers from words: making one of ten classes that nobody has described before, loading and running it."""

from __future__ import annotations

import json
import re
import time
from random import Random

from models.bundle import decode
from models.metamodel import ZOO, load
from service.sessions import build_session
from service.stores.files import FileBundleStore
from tests.bench.measure import Bench, Figures, percentile
from tests.bench.photographs import photograph
from tests.bench.server import service
from tests.bench.tasks import Client
from tests.bench.yardsticks import ROOT, Served, beside_raw

META_MODEL = "n3-mobilenet"
N_CLASSES, N_WORDS = 10, 60
VOCABULARY = sorted(set(re.findall(r"[a-z]{3,}", (ROOT / "README.md").read_text())))


def words(bench: Bench) -> Figures:
    """`POST /tasks` with ten descriptions of sixty words, every text new; then with all but one of them known."""
    meta_model, rng = load(ZOO / META_MODEL), Random(0)
    with service(bench.folder / "words") as server:
        client = Client(server.port)
        for _ in range(3):
            create(client, texts(rng))
        made = [create(client, texts(rng)) for _ in range(bench.repeats(60))]
        known, again = texts(rng), []
        create(client, known)
        for _ in range(bench.repeats(60)):
            again.append(create(client, [*known[1:], texts(rng)[0]])[1])
        record = made[-1][0]
        (stored,) = {path.parent for path in (bench.folder / "words").rglob(f"{record['id']}.safetensors")}
        store, times_ms = FileBundleStore(stored, 10**9), []
        for _ in range(bench.repeats(30)):
            started = time.perf_counter()
            data = store.get(record["id"])
            assert data is not None
            build_session(meta_model, decode(data), "local", record["id"])
            times_ms.append(1e3 * (time.perf_counter() - started))
        bodies = [bench.folder / f"photograph{n}.jpg" for n in range(20)]
        for n, body in enumerate(bodies):
            body.write_bytes(photograph(n))
        model = bench.folder / "described.onnx"
        model.write_bytes(client.send("GET", f"/tasks/{record['id']}/model.onnx"))
        speed = beside_raw(bench, Served(server, f"/tasks/{record['id']}/predict", bodies, "image/jpeg"), model)
    new_ms = [ms for _, ms in made]
    return {
        "create_p50_ms": percentile(new_ms, 50),
        "create_p95_ms": percentile(new_ms, 95),
        "generate_p50_ms": percentile([task["generate_ms"] for task, _ in made], 50),
        "known_p50_ms": percentile(again, 50),
        "load_p50_ms": percentile(times_ms, 50),
        "load_p95_ms": percentile(times_ms, 95),
        "task_bytes": record["bytes"],
        **speed,
    }


def texts(rng: Random) -> list[str]:
    return [" ".join(rng.choices(VOCABULARY, k=N_WORDS)) for _ in range(N_CLASSES)]


def create(client: Client, descriptions: list[str]) -> tuple[Figures, float]:
    """The task's record, and ms from sending the request to having the answer."""
    classes = [{"name": f"class {k}", "description": text} for k, text in enumerate(descriptions)]
    body = json.dumps({"classes": classes, "generator": META_MODEL}).encode()
    started = time.perf_counter()
    answer = client.send("POST", "/tasks", body)
    return json.loads(answer), 1e3 * (time.perf_counter() - started)


TABLE = (
    ("make a 10-way classifier from ten 60-word texts, p50", "words", "create_p50_ms", "{:.0f} ms", ""),
    ("make a 10-way classifier from ten 60-word texts, p95", "words", "create_p95_ms", "{:.0f} ms", "under 1500 ms"),
    ("of it the generator's, p50", "words", "generate_p50_ms", "{:.0f} ms", ""),
    ("the same with nine of the ten texts known, p50", "words", "known_p50_ms", "{:.0f} ms", ""),
    ("load an adapted MobileNetV2 from the store, p50", "words", "load_p50_ms", "{:.0f} ms", "under 150 ms"),
    ("load an adapted MobileNetV2 from the store, p95", "words", "load_p95_ms", "{:.0f} ms", ""),
    ("size of its bundle", "words", "task_bytes", "{:,} bytes", "under 3,000,000"),
    ("adapted MobileNetV2: a raw loop on all cores", "words", "raw_per_s", "{:,.0f} a second", ""),
    ("adapted MobileNetV2: the service, 16 connections", "words", "per_s", "{:,.0f} a second", ""),
    ("of the raw loop", "words", "of_raw", "{:.0%}", "85 % or more"),
)
