"""A closed-loop load generator: N connections, each sends its next request as soon as the last one is answered.

Written on raw asyncio protocols: on a small machine, which it shares with the service, it costs little.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

END_OF_HEAD = b"\r\n\r\n"
CONTENT_LENGTH = b"\r\ncontent-length:"
CHUNKED, LAST_CHUNK = b"\r\ntransfer-encoding: chunked", b"0\r\n\r\n"
OK = 200


@dataclass
class Tally:
    """What all connections saw. ``until``: no request is sent after this time. ``statuses``: answers by HTTP status.

    ``n_lost``: requests whose answer never came, because the connection ended.
    """

    until: float
    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    n_lost: int = 0

    @property
    def n_errors(self) -> int:
        """Answers other than 200."""
        return self.statuses.total() - self.statuses[OK]


class Connection(asyncio.Protocol):
    """Sends one request at a time until the time is up; ``done`` is set when the last answer is there."""

    def __init__(self, requests: Sequence[bytes], first: int, tally: Tally) -> None:
        at = first % len(requests)
        self.requests = cycle([*requests[at:], *requests[:at]])
        self.tally = tally
        self.buffer = b""
        self.sent_at: float | None = None
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        """The next request."""
        self.sent_at = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        """Count an answer once it is whole, and go on."""
        self.buffer += data
        head, separator, rest = self.buffer.partition(END_OF_HEAD)
        if not separator or not is_whole(head, rest) or self.sent_at is None:
            return
        now = time.perf_counter()
        self.tally.latencies_ms.append(1e3 * (now - self.sent_at))
        self.tally.statuses[int(head[9:12])] += 1
        self.buffer, self.sent_at = b"", None
        if now < self.tally.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The end, whoever wanted it."""
        self.tally.n_lost += self.sent_at is not None
        if not self.done.done():
            self.done.set_result(None)


def is_whole(head: bytes, body: bytes) -> bool:
    """Whether an answer has arrived to its end."""
    if CHUNKED in head.lower():
        return body.endswith(LAST_CHUNK)
    return len(body) >= content_length(head)


def content_length(head: bytes) -> int:
    """Of an answer's head; raises ValueError where it has none."""
    start = head.lower().index(CONTENT_LENGTH) + len(CONTENT_LENGTH)
    return int(head[start:].split(b"\r\n", 1)[0])


def request_bytes(
    path: str, body: bytes, content_type: str, host: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """A POST request as it travels."""
    given = {"Host": host, "Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


async def generate_load(
    host: str, port: int, requests: Sequence[bytes], n_connections: int, seconds: float, *, tls: bool = False
) -> Tally:
    """Run; raises OSError where a connection cannot be made."""
    loop = asyncio.get_running_loop()
    tally = Tally(until=time.perf_counter() + seconds)
    made = [
        await loop.create_connection(partial(Connection, requests, n, tally), host, port, ssl=tls or None)
        for n in range(n_connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in made))
    return tally
