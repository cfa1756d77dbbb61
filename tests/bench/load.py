"""A closed-loop load generator in a process of its own: N connections, each sends its next request on an answer.

    python -m tests.bench.load --port PORT --path /tasks/ID/predict --body IMAGE [--body IMAGE ...]

Written on raw asyncio protocols so that on a small machine, which it shares with the server, it costs little. Prints
JSON: the number of answers, those that were not 200, seconds, and the latency of each in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

END_OF_HEAD = b"\r\n\r\n"
CONTENT_LENGTH = b"\r\ncontent-length:"


@dataclass
class Tally:
    """What all connections saw. ``until``: no request is sent after this time."""

    until: float
    latencies_ms: list[float] = field(default_factory=list)
    n_errors: int = 0


class Connection(asyncio.Protocol):
    """Sends one request at a time until the time is up; ``done`` is set when the last answer is there."""

    def __init__(self, requests: list[bytes], first: int, tally: Tally) -> None:
        self.requests = cycle(requests[first % len(requests) :] + requests[: first % len(requests)])
        self.tally = tally
        self.buffer = b""
        self.sent_at = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(END_OF_HEAD)
        if not separator or len(rest) < content_length(head):
            return
        now = time.perf_counter()
        self.buffer = b""
        self.tally.latencies_ms.append(1e3 * (now - self.sent_at))
        self.tally.n_errors += head[9:12] != b"200"
        if now < self.tally.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def content_length(head: bytes) -> int:
    start = head.lower().index(CONTENT_LENGTH) + len(CONTENT_LENGTH)
    return int(head[start:].split(b"\r\n", 1)[0])


def request_bytes(path: str, body: bytes, content_type: str, host: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def generate_load(host: str, port: int, requests: list[bytes], n_connections: int, seconds: float) -> Tally:
    loop = asyncio.get_running_loop()
    tally = Tally(until=time.perf_counter() + seconds)
    made = [
        await loop.create_connection(partial(Connection, requests, n, tally), host, port) for n in range(n_connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in made))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", type=Path, action="append", required=True)
    parser.add_argument("--content-type", default="image/png")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    host = f"{args.host}:{args.port}"
    requests = [request_bytes(args.path, body.read_bytes(), args.content_type, host) for body in args.body]
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
