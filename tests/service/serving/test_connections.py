"""Connections whose answer nobody takes are given up and make no room; a client may be slow while it takes some."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.serving import connections
from service.serving.connections import Limits, PatientProtocol

N_BYTES = 16_000_000
"""More than the system keeps for a client that reads nothing: the rest stays in the process."""
SMALL, LARGE = b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET /large HTTP/1.1\r\nHost: localhost\r\n"
both_ends = pytest.mark.parametrize("end", [b"\r\n", b"Connection: close\r\n\r\n"], ids=["kept", "closing"])
"""Of a head: the server closes the connection long after the answer, or at once."""


@dataclass(frozen=True)
class Server:
    """On a loopback port; nobody sweeps its connections but the test."""

    port: int
    connections: set[Any]

    @contextmanager
    def client(self, sent: bytes = b"") -> Iterator[socket.socket]:
        """A connection of a client whose system keeps little for it."""
        with socket.socket() as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            opened.connect(("127.0.0.1", self.port))
            opened.setblocking(False)
            opened.send(sent)
            yield opened

    async def until_answered(self, n: int = 1) -> None:
        """Until ``n`` connections are there, and the answers of all are written whole."""
        await until(lambda: [c.cycle is not None and c.cycle.response_complete for c in self.connections] == [True] * n)


async def application(scope: Any, receive: Any, send: Any) -> None:
    n_bytes = N_BYTES if scope["path"] == "/large" else 2
    headers = [(b"content-length", str(n_bytes).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(n_bytes)})


CONFIG = uvicorn.Config(application, ws="none", lifespan="off", log_config=None, timeout_keep_alive=600)


@asynccontextmanager
async def serving(max_connections: int, stall_s: float) -> AsyncIterator[Server]:
    state, limits = ServerState(), Limits(max_connections, body_s=600, stall_s=stall_s)
    protocol = partial(PatientProtocol, CONFIG, state, {}, limits=limits)
    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as listening:
        try:
            yield Server(listening.sockets[0].getsockname()[1], state.connections)
        finally:
            for connection in state.connections:
                connection.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def first_of(opened: socket.socket) -> bytes:
    """What comes first; nothing where the server closed."""
    async with asyncio.timeout(60):
        return await asyncio.get_running_loop().sock_recv(opened, 65_536)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=CONFIG.get_loop_factory()) as runner:  # the service's kind of loop
        runner.run(scenario)


@both_ends
def test_an_answer_that_nobody_takes_is_given_up(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.01)

    async def scenario() -> None:
        async with serving(10, stall_s=0.1) as server:
            with server.client(LARGE + end):
                await server.until_answered()
                sweeping = asyncio.create_task(connections.sweep(server.connections))
                await until(lambda: not server.connections)
                sweeping.cancel()

    run(scenario())


@both_ends
def test_an_answer_that_is_taken_slowly_comes_whole(end: bytes) -> None:
    async def scenario() -> None:
        async with serving(10, stall_s=75) as server:
            with server.client(LARGE + end) as slow:
                await server.until_answered()
                (connection,) = server.connections
                now, n_sweeps, n_taken = asyncio.get_running_loop().time(), 0, 0
                n_unsent = connection.transport.get_write_buffer_size()
                while n_taken < N_BYTES and (piece := await first_of(slow)):
                    n_taken += len(piece)
                    if connection.transport.get_write_buffer_size() < n_unsent:  # a minute later
                        n_unsent, now, n_sweeps = connection.transport.get_write_buffer_size(), now + 60, n_sweeps + 1
                        connection.sweep(now)
                assert n_taken >= N_BYTES
                assert n_sweeps > 2

    run(scenario())


@both_ends
def test_answers_that_nobody_takes_make_no_room(end: bytes) -> None:
    async def scenario() -> None:
        async with serving(2, stall_s=600) as server:
            with server.client(LARGE + end), server.client(LARGE + end):
                await server.until_answered(2)
                with server.client(SMALL + b"\r\n") as newcomer:
                    assert (await first_of(newcomer)).startswith(b"HTTP/1.1 503 ")

    run(scenario())


def test_a_connection_whose_head_came_in_pieces_makes_room_too() -> None:
    async def scenario() -> None:
        async with serving(1, stall_s=600) as server:
            with server.client() as slow:
                await until(lambda: bool(server.connections))
                (connection,) = server.connections
                for piece in (SMALL[:20], SMALL[20:], b"\r\n"):
                    before_s = connection._heard_at
                    slow.send(piece)
                    await until(lambda before_s=before_s: connection._heard_at > before_s)
                await server.until_answered()
                with server.client(SMALL + b"\r\n") as newcomer:
                    assert (await first_of(newcomer)).startswith(b"HTTP/1.1 200 ")

    run(scenario())
