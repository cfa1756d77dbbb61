"""`classmith bench`: what a caller of a running service meets: predictions a second, and how long each takes."""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from urllib.parse import quote, urlsplit

from service.cli.load import OK, generate_load, request_bytes
from service.cli.output import FAILED, UNREACHABLE, CommandFailed, print_json
from service.cli.tasks import address, service
from service.client.images import encoded, expanded

CONNECTIONS = (1, 16)
SIZE = 224
"""Pixels a side of the image made up where none is given."""
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Figures:
    """Of one number of connections. Times are from sending a request to having its whole answer.

    ``n_errors``: answers other than 200, and those that never came.
    """

    n_connections: int
    n_answers: int
    n_errors: int
    seconds: float
    answers_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def bench(asked: argparse.Namespace) -> int:
    """Measure and print; fails where answers were errors."""
    with service(asked) as client:
        images = [encoded(image) for image in expanded(asked.images)] if asked.images else [made_up_image()]
        task = client.task(asked.task)
        task.predict(images)  # what is wrong with them is said here; and the classifier is loaded
    requests = [_request(asked, task.id, image) for image in images]
    measured = [_measure(address(asked), requests, n, asked.seconds) for n in asked.connections or CONNECTIONS]
    n_errors = sum(figures.n_errors for figures in measured)
    if asked.json:
        print_json(
            {"task": task.id, "url": address(asked), "n_images": len(images), "runs": [asdict(f) for f in measured]}
        )
    else:
        _print_table(measured)
    if n_errors:
        raise CommandFailed(
            f"{n_errors} requests were refused or lost; the service's log and /metrics say why.", FAILED
        )
    return 0


def made_up_image() -> bytes:
    """A JPEG of smooth random colours, the same at every call."""
    from PIL import Image

    small = Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(8 * 8 * 3))
    buffer = io.BytesIO()
    small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def _request(asked: argparse.Namespace, ident: str, image: bytes) -> bytes:
    place = urlsplit(address(asked))
    headers = {"Authorization": f"Bearer {asked.api_key}"} if asked.api_key else {}
    path = f"{place.path.rstrip('/')}/tasks/{quote(ident, safe='')}/predict"
    return request_bytes(path, image, "image/*", place.netloc.rpartition("@")[2], headers)


def _measure(url: str, requests: Sequence[bytes], n_connections: int, seconds: float) -> Figures:
    place = urlsplit(url)
    port = place.port or PORTS[place.scheme]
    began_at = time.perf_counter()
    try:
        load = generate_load(place.hostname or "", port, requests, n_connections, seconds, tls=place.scheme == "https")
        tally = asyncio.run(load)
    except OSError as error:
        raise CommandFailed(f"{n_connections} connections to {url} cannot be made ({error}).", UNREACHABLE) from error
    elapsed_s = time.perf_counter() - began_at
    p50, p95, p99 = _percentiles(tally.latencies_ms)
    n_answers = tally.statuses[OK]
    return Figures(
        n_connections,
        n_answers,
        tally.n_errors + tally.n_lost,
        round(elapsed_s, 3),
        round(n_answers / elapsed_s, 1),
        p50,
        p95,
        p99,
    )


def _percentiles(latencies_ms: Sequence[float]) -> tuple[float, float, float]:
    if len(latencies_ms) < 2:
        raise CommandFailed("There were not enough answers to measure; give it more --seconds.", FAILED)
    cuts = quantiles(latencies_ms, n=100, method="inclusive")
    return round(cuts[49], 3), round(cuts[94], 3), round(cuts[98], 3)


def _print_table(measured: Sequence[Figures]) -> None:
    print(f"{'connections':>11}  {'answers/s':>9}  {'p50 ms':>8}  {'p95 ms':>8}  {'p99 ms':>8}  {'errors':>6}")
    for f in measured:
        print(
            f"{f.n_connections:>11}  {f.answers_per_s:>9.1f}  {f.p50_ms:>8.2f}  {f.p95_ms:>8.2f}  {f.p99_ms:>8.2f}"
            f"  {f.n_errors:>6}"
        )
