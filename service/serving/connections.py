"""Connections that cost others nothing: bodies have to arrive, answers to be taken, and idle connections make room.

uvicorn waits for ever for a body that comes byte by byte, and for a client that takes no more of its answer. Here one
sweep a second looks at every connection, so that the path of a request carries no timer.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from service.serving.http_protocol import HttpProtocol

SWEEP_S = 1.0
SWEPT_AT_ONCE = 500
"""Connections looked at before requests get their turn."""
EVICTED_AT_ONCE = 0.01
"""Part of all connections that makes room for the next ones."""
SPARE_FILES = 256
"""Descriptors that are kept for the stores, the log and what else is open."""
PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A peer that is gone without a word is noticed after two minutes, though nothing is sent to it."""


@dataclass(frozen=True)
class Limits:
    """``body_s``: for a body to arrive, and a second more for each ``body_bytes_per_s`` that did.

    ``stall_s``: for a client to take more of its answer, which the server may have written whole.
    """

    max_connections: int
    body_s: float
    stall_s: float
    body_bytes_per_s: int = 1_000


class PatientProtocol(HttpProtocol):
    """One connection, with limits to our patience once its head is there, and to how many there are."""

    def __init__(self, *arguments: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._is_surplus = False
        self._heard_at = self.loop.time()
        self._body_began_at, self._n_body_bytes = 0.0, 0
        self._taken_at, self._n_unsent = self._heard_at, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; over the limit those idle for longest make room, or else this one is refused."""
        super().connection_made(transport)
        self._is_surplus = len(self.connections) > self._limits.max_connections and not self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._heard_at = self.loop.time()
        if self._is_surplus:  # only now: the answer to a connection with unread bytes may not get through
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "All connections are in use; try again in a moment.")
        else:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        """The body begins."""
        self._body_began_at, self._n_body_bytes = self._heard_at, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._n_body_bytes += len(body)
        super().on_body(body)

    def sweep(self, now: float) -> None:
        """End the connection if the body does not go on arriving, or the answer not go on being taken."""
        n_before, self._n_unsent = self._n_unsent, self.transport.get_write_buffer_size()
        if self._n_unsent == 0 or self._n_unsent < n_before:  # ``write_paused`` lasts until nearly all is taken
            self._taken_at = now
        elif now - self._taken_at > self._limits.stall_s:
            self.transport.abort()
            return
        if self._is_idle or self._is_in_head or self.transport.is_closing():
            return
        patience_s = self._limits.body_s + self._n_body_bytes / self._limits.body_bytes_per_s
        is_ours_to_read = self.flow.read_paused or not self.cycle.more_body
        if not is_ours_to_read and now - self._body_began_at > patience_s:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The body of the request arrives too slowly; send it again.")

    @property
    def _is_idle(self) -> bool:
        """Between requests, or before the first: nothing of one has come."""
        return self._n_head_bytes == 0 and (self.cycle is None or self.cycle.response_complete)

    def _make_room(self) -> bool:
        """Close the connections that are idle for longest; False where none is.

        One whose client has not taken all of its answer would not go by being closed.
        """
        others = [c for c in self.connections if isinstance(c, PatientProtocol) and c is not self]
        idle = [c for c in others if c._is_idle and not c.transport.get_write_buffer_size()]
        n_evicted = max(1, round(EVICTED_AT_ONCE * self._limits.max_connections))
        for one in heapq.nsmallest(n_evicted, idle, key=lambda connection: connection._heard_at):
            one.transport.close()
        return bool(idle)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer with a problem document, and close."""
        kind = f"urn:classmith:problem:{status.phrase.lower().replace(' ', '-')}"
        problem = {"type": kind, "title": status.phrase, "status": status.value, "detail": detail}
        body = json.dumps(problem).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
            f"x-content-type-options: nosniff\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


async def sweep(connections: set[Any]) -> None:
    """Look at all connections again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        for i, connection in enumerate([*connections], start=1):
            connection.sweep(loop.time())
            if i % SWEPT_AT_ONCE == 0:
                await asyncio.sleep(0)


def most_connections(wanted: int) -> int:
    """``wanted``, or as many as the process may have descriptors for, whose soft limit this raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        with suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def notice_dead_peers(listening: socket.socket) -> None:
    """Have the system probe silent peers; connections take this from the socket that listens."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
