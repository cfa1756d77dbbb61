"""Classifiers from words: making one of ten classes that nobody has described before, loading and running it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from random import Random

from models import quantised
from models.metamodel import ZOO, load
from tests.bench.measure import Bench, Figures, load_times_ms, percentile, write_images
from tests.bench.photographs import photograph
from tests.bench.server import service
from tests.bench.tasks import Client
from tests.bench.yardsticks import ROOT, Served, beside_raw

META_MODEL = "n3-mobilenet"
N_CLASSES, N_WORDS = 10, 60
VOCABULARY = sorted(set(re.findall(r"[a-z]{3,}", (ROOT / "README.md").read_text())))


def words(bench: Bench) -> Figures:
    """Making classifiers, then one of them: from the store to a session, and predictions beside a raw loop."""
    bench, state_dir = replace(bench, meta_model=load(ZOO / META_MODEL)), bench.folder / "words"
    with service(state_dir) as server:
        client = Client(server.port)
        figures, task_id = making(bench, client)
        times_ms = load_times_ms(bench, state_dir, task_id, 30)
        bodies = write_images(bench.folder / "photographs", map(photograph, range(20)))
        model = bench.folder / "described.onnx"
        model.write_bytes(client.send("GET", f"/tasks/{task_id}/model.onnx"))
        path = f"/tasks/{task_id}/predict"
        speed = beside_raw(bench, Served(server, path, bodies, "image/jpeg"), model)
    if quantised.is_worthwhile() and quantised.read(bench.meta_model):
        with service(state_dir, INT8="true") as server:
            in_integers = beside_raw(bench, Served(server, path, bodies, "image/jpeg"), model)
        figures |= {f"int8_{name}": in_integers[name] for name in ("per_s", "of_raw", "p99_ms")}
    return {**figures, "load_p50_ms": percentile(times_ms, 50), "load_p95_ms": percentile(times_ms, 95), **speed}


def making(bench: Bench, client: Client) -> tuple[Figures, str]:
    """`POST /tasks` with ten descriptions of sixty words, every text new; then with all but one of them known."""
    rng = Random(0)
    for _ in range(3):
        create(client, texts(rng))
    made = [create(client, texts(rng)) for _ in range(bench.repeats(60))]
    known = texts(rng)
    create(client, known)
    again = [create(client, [*known[1:], texts(rng)[0]]) for _ in range(bench.repeats(60))]
    new_ms, record = [ms for _, ms in made], made[-1][0]
    figures = {
        "create_p50_ms": percentile(new_ms, 50),
        "create_p95_ms": percentile(new_ms, 95),
        "generate_p50_ms": percentile([task["generate_ms"] for task, _ in made], 50),
        "known_p50_ms": percentile([ms for _, ms in again], 50),
        "task_bytes": record["bytes"],
    }
    return figures, record["id"]


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
    ("the same in 8-bit integers (`CLASSMITH_INT8`)", "words", "int8_per_s", "{:,.0f} a second", ""),
    ("of the raw loop in floats", "words", "int8_of_raw", "{:.0%}", ""),
)
