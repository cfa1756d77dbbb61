"""The limit: decoding and running in a plain loop, on as many threads as there are cores. No server, no sockets.

    echo '{"bodies": ["IMAGE", ...]}' | python -m tests.bench.raw --model MODEL [--threads N] [--seconds S] [--device D]

Tries batches of several sizes and keeps the best. Prints JSON: images a second, and that batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from models.device import providers_on
from tests.bench.classifier import Classifier

BATCHES = {"cpu": (1, 4, 8), "cuda": (1, 8, 32, 64)}


def images_per_s(classifier: Classifier, bodies: list[bytes], n_batch: int, n_threads: int, seconds: float) -> float:
    done, until = [0] * n_threads, time.perf_counter() + seconds

    def work(thread: int) -> None:
        images = cycle(bodies[thread:] + bodies[:thread])
        while time.perf_counter() < until:
            classifier.answers(list(islice(images, n_batch)))
            done[thread] += n_batch

    threads = [threading.Thread(target=work, args=(n,)) for n in range(n_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    args = parser.parse_args()
    bodies = [Path(body).read_bytes() for body in json.load(sys.stdin)["bodies"]]
    classifier = Classifier(args.model, providers_on(args.device))
    classifier.answers(bodies[:1])
    rates = {n: images_per_s(classifier, bodies, n, args.threads, args.seconds) for n in BATCHES[args.device]}
    best = max(rates, key=lambda n: rates[n])
    json.dump({"images_per_s": rates[best], "batch": best}, sys.stdout)


if __name__ == "__main__":
    main()
