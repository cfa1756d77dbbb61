"""What ``Batcher.predict`` costs over a plain loop that decodes and runs, for a small network.

    python -m tests.bench.batching [--meta-model models/zoo/omniglot-8] [--concurrency 16] [--runners 2] [--rounds 7]

Rounds of the two alternate in one process, and medians are compared, so that a busy machine slows both. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import uvloop

from models import metamodel
from models.decision import decide
from models.preprocess import to_pixels
from service.prediction.batching import Batcher
from service.prediction.session_cache import SessionCache
from service.prediction.sessions import Session, build_session
from tests.service import tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--meta-model", type=Path)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--runners", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--switch-interval", type=float, default=sys.getswitchinterval())
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    args = parser.parse_args()
    sys.setswitchinterval(args.switch_interval)
    make = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=make) as runner, tempfile.TemporaryDirectory() as folder:
        meta_model = metamodel.load(args.meta_model) if args.meta_model else tiny.meta_model(Path(folder) / "tiny")
        written = tiny.bundle(meta_model)
        build = lambda tenant, task: build_session(meta_model, written, tenant, task)  # noqa: E731
        print(json.dumps(runner.run(measure(args, build)), indent=1))


async def measure(args: argparse.Namespace, build: Callable[[str, str], Session]) -> dict[str, object]:
    images = [tiny.drawing(seed) for seed in range(64)]
    cache = SessionCache(build, lambda *_: True, max_bytes=10**9, min_residency_s=5)
    batcher = Batcher(n_runners=args.runners, max_batch=64, max_queue_images=4096, deadline_s=10, batch_s=0.02)
    session = build("t", "plain")
    plain, batched, latencies = [], [], []
    for _ in range(args.rounds):
        plain.append(plain_loop(session, images, args.requests))
        seconds, times = await clients(cache, batcher, images, args)
        batched.append(seconds)
        latencies.append(times)
    await batcher.drain()
    await cache.close()
    p50s, p99s = zip(
        *((statistics.median(times), sorted(times)[len(times) * 99 // 100]) for times in latencies), strict=True
    )
    per_request = [statistics.median(seconds) / args.requests * 1e6 for seconds in (plain, batched)]
    return {
        "plain_us": round(per_request[0], 1),
        "batched_us": round(per_request[1], 1),
        "requests_per_s_ratio": round(per_request[0] / per_request[1], 3),
        "p50_ms": round(statistics.median(p50s) * 1e3, 2),
        "p99_ms": round(statistics.median(p99s) * 1e3, 2),
        "p99_over_p50": round(statistics.median(p99s) / statistics.median(p50s), 2),
    }


def plain_loop(session: Session, images: list[bytes], n_requests: int) -> float:
    """Seconds for decoding, running and deciding, one image after another."""
    header, began_at = session.header, perf_counter()
    for i in range(n_requests):
        logits = session.run(to_pixels(images[i % len(images)], session.preprocess)[None])
        decide(logits, header.class_names, temperature=header.temperature, abstain_below=header.abstain_below)
    return perf_counter() - began_at


async def clients(
    cache: SessionCache, batcher: Batcher, images: list[bytes], args: argparse.Namespace
) -> tuple[float, list[float]]:
    """Seconds for the same by concurrent clients, and the seconds each request took."""
    times: list[float] = []

    async def client(first: int) -> None:
        for i in range(first, args.requests, args.concurrency):
            began_at = perf_counter()
            async with cache.lease("t", "task") as session:
                await batcher.predict(session, [images[i % len(images)]], None)
            times.append(perf_counter() - began_at)

    began_at = perf_counter()
    await asyncio.gather(*(client(i) for i in range(args.concurrency)))
    return perf_counter() - began_at, times


if __name__ == "__main__":
    main()
