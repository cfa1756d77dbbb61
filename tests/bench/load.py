"""The load generator of `classmith bench` in a process of its own, so that it shares no interpreter with the bench.

    echo '{"paths": ["/tasks/ID/predict", ...], "bodies": ["IMAGE", ...]}' | python -m tests.bench.load --port PORT

One request for each path or body, whichever are more; every connection goes through all of them. Prints JSON: the
number of answers, those that were not 200, seconds, and the latency of each in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from service.cli.load import generate_load, request_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--content-type", default="image/png")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    host = f"{args.host}:{args.port}"
    given = json.load(sys.stdin)
    paths, bodies = given["paths"], [Path(body).read_bytes() for body in given["bodies"]]
    pairs = [(paths[n % len(paths)], bodies[n % len(bodies)]) for n in range(max(len(paths), len(bodies)))]
    requests = [request_bytes(path, body, args.content_type, host) for path, body in pairs]
    started = time.perf_counter()
    tally = asyncio.run(generate_load(args.host, args.port, requests, args.connections, args.seconds))
    elapsed_s = time.perf_counter() - started
    answer = {
        "n": len(tally.latencies_ms),
        "n_errors": tally.n_errors,
        "seconds": elapsed_s,
        "latencies_ms": [round(ms, 4) for ms in tally.latencies_ms],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
