"""The bench measures what it says: its load generator counts right, its command runs, its table shows its figures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from models import metamodel
from models.device import starts
from models.metamodel import ZOO
from models.runtime import CUDA
from service.cli.load import content_length, generate_load, is_whole, request_bytes
from tests.bench.__main__ import PARTS, TABLE, percentile, rows
from tests.bench.measure import Bench
from tests.bench.server import ask, free_port, process
from tests.service.processes import until

ROOT = Path(__file__).parents[1]
N_ANSWERS = 20


async def load_on_a_server_that_answers(answers: list[bytes]) -> tuple[int, int, list[bytes]]:
    """(answers seen, errors seen, requests received) of two connections that a server ends after some answers each."""
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(N_ANSWERS):
            head = await reader.readuntil(b"\r\n\r\n")
            received.append(await reader.readexactly(content_length(head)))
            whole = answers[len(received) % len(answers)]
            writer.write(whole[:20])  # in two pieces, as a network may deliver it
            await writer.drain()
            writer.write(whole[20:])
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):  # the next request is on its way
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        requests = [request_bytes("/", body, "text/plain", "here") for body in (b"one", b"two", b"three")]
        tally = await generate_load("127.0.0.1", port, requests, n_connections=2, seconds=3600)
    return len(tally.latencies_ms), tally.n_errors, received


def test_the_load_generator_counts_every_answer_and_every_error() -> None:
    good = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    bad = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
    n_answers, n_errors, received = asyncio.run(load_on_a_server_that_answers([good, bad]))
    assert n_answers == len(received) == 2 * N_ANSWERS
    assert n_errors == N_ANSWERS
    assert set(received) == {b"one", b"two", b"three"}


def test_an_answer_in_chunks_ends_with_its_last() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert not is_whole(head, b"5\r\nhello\r\n")
    assert is_whole(head, b"5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 51), (99, 100), (100, 101)])
def test_percentiles(percent: float, expected: float) -> None:
    assert percentile(list(range(101, 0, -1)), percent) == expected


def test_the_table_names_figures_of_the_parts_and_leaves_out_what_was_not_taken() -> None:
    assert {part for _, part, *_ in TABLE} == set(PARTS)
    assert rows({"start": {"idle_mb": 111.4}}) == [("memory of the idle service", "111 MB", "under 250 MB")]
    assert rows({"speed_up": {"skipped": "needs torch"}}) == []


@pytest.mark.skipif(starts(CUDA), reason="there is a GPU")
def test_without_a_gpu_the_bench_says_so(tmp_path: Path) -> None:
    found = PARTS["gpu"](Bench(tmp_path, metamodel.load(ZOO / "omniglot-8"), quick=True))
    assert found.keys() == {"skipped"}
    assert "no GPU here" in found["skipped"]


@pytest.mark.skipif(not (ZOO / "omniglot-8").is_dir(), reason="the zoo has no omniglot-8")
def test_the_command_runs_and_prints_its_figures_as_json() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--only", "create,predict,imports"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    output = answer.stdout
    results = json.loads(output[output.index("\n{") :])
    assert results["imports"]["torch"] is False
    assert results["predict"]["n_errors"] == 0
    assert results["create"]["create_p50_ms"] <= results["create"]["create_p95_ms"]
    assert all(what in output for what, _, _ in rows(results))


def test_a_paused_server_stands_still_with_its_children(tmp_path: Path) -> None:
    child = [sys.executable, "-c", "import time; time.sleep(3600)"]
    parent = f"import http.server, subprocess; subprocess.Popen({child}, start_new_session=True); " + (
        "http.server.test(http.server.SimpleHTTPRequestHandler, port={}, bind='127.0.0.1')"
    )
    port = free_port()

    def states(pid: int) -> list[str]:
        command = ["ps", "-o", "state=", "-p", str(pid), "--ppid", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    command = [sys.executable, "-c", parent.format(port)]

    def answers(port: int) -> bool:
        return ask(port, "GET", "/") == 200

    with process(command, port, dict(os.environ), log=tmp_path / "log", is_ready=answers) as server:
        (own,) = [int(pid) for pid in _children(server.pid)]
        try:
            with server.paused():
                until(lambda: states(server.pid) == ["T", "T"])
            assert "T" not in states(server.pid)
            assert ask(port, "GET", "/") == 200
        finally:
            os.kill(own, signal.SIGKILL)


def _children(pid: int) -> list[str]:
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
