"""The processes of a port start, are replaced and stop together, whatever one of them does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.observability.siblings import Siblings
from service.serving.supervisor import Supervisor
from tests.service.processes import until


def serve(notes: Path, listening: socket.socket, siblings: Siblings, on_started: Callable[[], None]) -> int:
    """Notes that it runs, answers every connection with its number, and stops when it is told to."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    (notes / f"{siblings.index}-{os.getpid()}").touch()
    listening.settimeout(0.02)
    on_started()
    while not stopped.is_set():
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        connection.sendall(str(siblings.index).encode())
        connection.close()
    return 0


def fail(listening: socket.socket, siblings: Siblings, on_started: Callable[[], None]) -> int:
    """The second of them cannot start."""
    if siblings.index == 1:
        return 3
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    on_started()
    assert stopped.wait(240)
    return 0


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def pids(notes: Path, index: int) -> list[int]:
    return [int(path.name.split("-")[1]) for path in notes.glob(f"{index}-*")]


def meanwhile(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """``work`` in a thread, since the supervisor needs the main one; then the process is told to stop."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_one_that_dies_is_replaced_and_all_stop_together(tmp_path: Path) -> None:
    announced = threading.Event()
    with listen() as listening:

        def work() -> None:
            assert announced.wait(120)
            (first,) = pids(tmp_path, 0)
            os.kill(first, signal.SIGKILL)
            until(lambda: len(pids(tmp_path, 0)) == 2)
            announced.clear()
            answers = set()
            for _ in range(50):
                with socket.create_connection(listening.getsockname(), timeout=60) as connection:
                    answers.add(connection.recv(10))
            assert answers <= {b"0", b"1"}
            assert answers

        thread, raised = meanwhile(work)
        status = Supervisor(partial(serve, tmp_path), 2, listening).run(announced.set)
        thread.join()
    assert raised == []
    assert status == 0
    assert not announced.is_set()  # said once
    assert len(pids(tmp_path, 1)) == 1
    for pid in pids(tmp_path, 0) + pids(tmp_path, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_told_to_stop_while_they_start_they_stop(tmp_path: Path) -> None:
    with listen() as listening:
        thread, raised = meanwhile(lambda: until(lambda: any(pids(tmp_path, index) for index in (0, 1))))
        status = Supervisor(partial(serve, tmp_path), 2, listening).run(lambda: None)
        thread.join()
    assert raised == []
    assert status == 0


def test_where_one_cannot_start_none_stays() -> None:
    announced = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with listen() as listening:
        assert Supervisor(fail, 2, listening).run(announced.set) == 1
    assert not announced.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


def test_they_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        "import sys; from functools import partial; from pathlib import Path;"
        "from tests.service.serving.test_supervisor import Supervisor, listen, serve;"
        "Supervisor(partial(serve, Path(sys.argv[1])), 2, listen()).run(lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3]) as parent:
        until(lambda: all(pids(tmp_path, index) for index in (0, 1)))
        parent.kill()

    def is_gone(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(lambda: all(is_gone(pid) for index in (0, 1) for pid in pids(tmp_path, index)))
