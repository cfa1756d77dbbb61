"""Clients that are slow, silent, gone or too many, at a real process: the others are answered all the while."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.demo.alphabet import drawing
from tests.e2e.processes import Service, serve
from tests.e2e.test_service import predict
from tests.service import centroids

BODY_S = 2.0
MAX_CONNECTIONS = 60
WAIT_S = 120

pytestmark = pytest.mark.timeout(900)  # several processes start, on machines that may be busy


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("slow")
    centroids.meta_model(folder / "meta-models")
    settings = {"meta_models": folder / "meta-models", "state_dir": folder / "state"}
    with serve(**settings, body_s=BODY_S, max_connections=MAX_CONNECTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def task_id(service: Service) -> str:
    ident: str = service.http.post("/tasks", json=centroids.task_json()).json()["id"]
    return ident


@contextmanager
def connection(service: Service) -> Iterator[socket.socket]:
    address = (service.http.base_url.host, service.http.base_url.port or 0)
    with socket.create_connection(address, timeout=WAIT_S) as opened:
        yield opened


def answer(opened: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the problem on a connection that the service then closes."""
    data = b""
    while piece := opened.recv(65_536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def upload(task_id: str, length: int) -> bytes:
    head = f"POST /tasks/{task_id}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def test_a_body_that_comes_byte_by_byte_is_given_up(service: Service, task_id: str) -> None:
    with connection(service) as slow:
        slow.sendall(upload(task_id, 100_000) + b"\x89PNG")
        assert predict(service, task_id, drawing(1, 0))["label"] == "character 1"
        status, problem = answer(slow)
        assert (status, problem["status"]) == (408, 408)
        assert "too slowly" in problem["detail"]


def test_many_slow_bodies_hold_nobody_up(service: Service, task_id: str) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(service)) for _ in range(MAX_CONNECTIONS // 2)]
        for opened in slow:
            opened.sendall(upload(task_id, 1_000_000) + bytes(1_000))
        expected = predict(service, task_id, drawing(2, 0))
        for _ in range(20):
            assert predict(service, task_id, drawing(2, 0)) == expected
        assert {answer(opened)[0] for opened in slow} == {408}
    assert service.http.get("/readyz").status_code == 200


def test_idle_connections_make_room_for_others(service: Service, task_id: str) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connection(service)) for _ in range(5 * MAX_CONNECTIONS)]
        with connection(service) as newcomer:
            newcomer.sendall(upload(task_id, len(drawing(1, 0))) + drawing(1, 0))
            assert newcomer.recv(65_536).startswith(b"HTTP/1.1 200")
        closed = [opened for opened in idle[:MAX_CONNECTIONS] if opened.recv(1) == b""]  # the oldest went first
        assert len(closed) == MAX_CONNECTIONS


def test_connections_in_use_are_not_taken_away(service: Service, task_id: str) -> None:
    with ExitStack() as stack:
        busy: list[socket.socket] = []
        while True:
            opened = stack.enter_context(connection(service))
            opened.sendall(upload(task_id, 1_000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            first = opened.recv(65_536)
            if not first.startswith(b"HTTP/1.1 100"):
                break
            busy.append(opened)
        assert first.startswith(b"HTTP/1.1 503")
        assert MAX_CONNECTIONS // 2 <= len(busy) <= MAX_CONNECTIONS
        assert [answer(opened)[0] for opened in busy] == [408] * len(busy)  # each had its whole time
    assert predict(service, task_id, drawing(1, 0))["label"] == "character 1"


def test_clients_that_vanish_leave_nothing_behind(service: Service, task_id: str) -> None:
    n_files = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) if Path("/proc").exists() else 0
    for _ in range(2 * MAX_CONNECTIONS):
        with connection(service) as gone:
            gone.sendall(upload(task_id, 5_000) + bytes(100))
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    assert predict(service, task_id, drawing(1, 0))["label"] == "character 1"
    if n_files:
        assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) <= n_files + MAX_CONNECTIONS
