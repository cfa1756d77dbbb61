"""What attackers try below requests: bytes that are no HTTP, heads without end, bodies whose length is two things."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.serving import http_protocol
from service.serving.http_protocol import MAX_HEAD_BYTES
from tests.service.live import Live

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@contextmanager
def connection(service: Live) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=60) as opened:
        yield opened


def until_closed(opened: socket.socket) -> bytes:
    answer = b""
    try:
        while data := opened.recv(65_536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def exchange(service: Live, sent: bytes, *, is_all: bool = True) -> bytes:
    """Everything that is answered until the server closes. ``is_all``: tell it that nothing more will come."""
    with connection(service) as opened:
        try:
            opened.sendall(sent)
            if is_all:
                opened.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it closed already, which is an answer too
        return until_closed(opened)


def statuses(answer: bytes) -> list[int]:
    """Of all the answers that came, one after the other."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def refusal(answer: bytes, status: int) -> None:
    """One answer, of this status, and the end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert statuses(answer) == [status]
    assert b"connection: close" in head.lower()
    assert json.loads(body)["status"] == status


NOT_HTTP: dict[str, bytes] = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "zeros": bytes(1000),
    "no version": b"GET /healthz\r\n\r\n",
    "an unknown method": b"HACK /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /healthz ICE/1.0\r\n\r\n",
    "version nine": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "a space in a header's name": GET + b"Bad Name: x\r\n\r\n",
    "a space before the colon": GET + b"Content-Length : 5\r\n\r\nhello",
    "a zero byte in a header": GET + b"X: a\x00b\r\n\r\n",
    "a bare CR in a header": GET + b"X: a\rY: b\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a path that is not ASCII": "GET /h\u00e9 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "a control character in the path": b"GET /he\x01althz HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a chunk of no length": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "a chunk of more than 64 bits": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", NOT_HTTP)
def test_what_is_not_http_is_refused_once_and_cut_off(service: Live, case: str) -> None:
    """Also with a request behind it, which a more lenient parser would have taken out of the first one's body."""
    for behind in (b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        refusal(exchange(service, NOT_HTTP[case] + behind), 400)
    assert service.http.get("/healthz").status_code == 200


LARGE = b"a" * (MAX_HEAD_BYTES + 1)
LARGE_HEADS: dict[str, bytes] = {
    "a header": GET + b"X: " + LARGE + b"\r\n\r\n",
    "a header's name": GET + LARGE + b": x\r\n\r\n",
    "many headers": GET + b"X-Header: 0123456789\r\n" * 4000 + b"\r\n",
    "a path": b"GET /" + LARGE + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a query": b"GET /healthz?" + LARGE + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header that never ends": GET + b"X: " + LARGE * 20,
    "a method that never ends": b"GET /" + LARGE * 20,
}


@pytest.mark.parametrize("case", LARGE_HEADS)
def test_a_head_without_measure_is_refused(service: Live, case: str) -> None:
    answer = exchange(service, LARGE_HEADS[case])
    if answer or not case.endswith("ends"):  # with more on its way, a reset can overtake the answer
        refusal(answer, 431)


def test_a_head_that_comes_in_pieces_is_counted(service: Live) -> None:
    with connection(service) as opened:
        opened.sendall(GET)
        try:
            for _ in range(1000):  # what is read at once with the first bytes is not counted: 256 kB at most
                opened.sendall(b"X-Header: " + b"a" * 1000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = until_closed(opened)
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")


def test_heads_within_measure_pass_on_one_connection(service: Live) -> None:
    """The count begins anew with every request, and bodies do not count."""
    body = b'{"classes": "' + b"a" * 50_000 + b'"}'
    request = POST + b"X: " + b"a" * 30_000 + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    end = GET + b"Connection: close\r\n\r\n"
    answer = exchange(service, request * 5 + end, is_all=False)
    assert statuses(answer) == [400] * 5 + [200]


def test_a_body_is_not_taken_for_a_request(service: Live) -> None:
    """A request inside a body, its length told in either way, is a body."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    by_length = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
    chunked = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inner) + inner
    for sent in (by_length, chunked + b"\r\n0\r\n\r\n"):
        answer = exchange(service, sent)
        assert statuses(answer) == [400]


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.0"])
def test_no_connection_becomes_another_protocol(service: Live, upgrade: bytes) -> None:
    head = GET + b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\nSec-WebSocket-Key: AAAA\r\n\r\n"
    answer = exchange(service, head)
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
    assert b"101 Switching" not in answer


@pytest.mark.parametrize("head", [
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n",
    b"TRACE /healthz HTTP/1.1\r\nHost: x\r\nX: secret\r\n",
    b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n",
])  # fmt: skip
def test_no_proxy_no_echo(service: Live, head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = exchange(service, head + b"Connection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4"))
    assert b"secret" not in answer
    assert b"evil.example" not in answer
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []  # it ends as other refusals do


def test_a_silent_client_and_a_slow_one_are_let_go(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    for begun in (b"", b"GET /heal", GET):
        with connection(service) as opened:
            opened.sendall(begun)
            assert until_closed(opened) == b""
    with connection(service) as opened:  # one that asks in time stays, and is timed again at its next request
        opened.sendall(GET + b"\r\n")
        assert opened.recv(65_536).startswith(b"HTTP/1.1 200 ")
        opened.sendall(GET)
        assert until_closed(opened) == b""


BYTES = st.binary(max_size=200) | st.lists(
    st.sampled_from([
        b"GET ", b"POST ", b"/tasks", b"/v2/models/x/infer", b" HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\n", b"\r",
        b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n",
        b"Expect: 100-continue\r\n", b"Inference-Header-Content-Length: 3\r\n", b"Connection: upgrade\r\n",
        b"Upgrade: x\r\n", b"hello", b"\x00", b"\xff",
    ]), max_size=14,
).map(b"".join)  # fmt: skip


@settings(max_examples=150, derandomize=True, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(sent=BYTES)
def test_any_bytes_are_answered_with_less_than_500_or_not_at_all(service: Live, sent: bytes) -> None:
    answer = exchange(service, sent)
    assert all(100 <= status < 500 for status in statuses(answer)), (sent, answer)
