"""The short way of plain predictions: the same answers, byte for byte, as the application's; all else is left to it."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import Any

import pytest

from models.errors import Busy
from service.api import predict
from service.demo.alphabet import drawing
from service.serving.direct import UNUSUAL
from service.settings import Grant, Settings
from tests.service import centroids
from tests.service.live import Live, live
from tests.service.processes import until
from tests.service.test_security_http import connection, exchange, statuses, until_closed

IMAGE = drawing(3, 0)
OWN = {b"date", b"x-request-id", b"server-timing"}
"""Headers that differ from answer to answer."""


@pytest.fixture(scope="module")
def cold(service: Live) -> str:
    return f"/tasks/{service.task(centroids.task_json(centroids.characters(5)))['id']}/predict"


@pytest.fixture
def address(service: Live, cold: str) -> str:
    """Of a task that is in memory, and was just checked to be there still."""
    assert service.http.post(cold, content=IMAGE, headers={"Content-Type": "image/png"}).status_code == 200
    return cold


@pytest.fixture
def seen(address: str, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of predictions that the application was left with."""
    bodies: list[bytes] = []
    read = predict.encoded_images

    async def noting(request: Any, settings: Any) -> list[bytes]:
        bodies.append(await request.body())
        return await read(request, settings)

    monkeypatch.setattr(predict, "encoded_images", noting)
    return bodies


def head(address: str, length: int | None = len(IMAGE), **headers: str) -> bytes:
    sent = {"host": "localhost", "content-type": "image/png", **headers}
    if length is not None:
        sent["content-length"] = str(length)
    lines = [f"POST {address} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def ask(service: Live, address: str, body: bytes, **headers: str) -> bytes:
    """The one answer on a connection of its own."""
    return exchange(service, head(address, len(body), connection="close", **headers) + body, is_all=False)


def answers(opened: socket.socket, n: int) -> list[tuple[list[tuple[bytes, bytes]], bytes]]:
    """The next ``n`` answers on a connection: headers and body of each; every one must be a success."""
    file, found = opened.makefile("rb"), []
    for _ in range(n):
        assert file.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = []
        while line := file.readline().rstrip(b"\r\n"):
            name, _, value = line.partition(b": ")
            headers.append((name, value))
        found.append((headers, file.read(int(dict(headers)[b"content-length"]))))
    return found


def label(body: bytes) -> str:
    found: str = json.loads(body)["predictions"][0]["label"]
    return found


def test_the_answer_is_the_applications_to_the_byte(service: Live, address: str, seen: list[bytes]) -> None:
    plain = head(address) + IMAGE
    unusual = head(address, origin="http://localhost") + IMAGE
    with connection(service) as opened:
        opened.sendall(plain)
        ((own, own_body),) = answers(opened, 1)
        assert seen == []
        opened.sendall(unusual)
        ((others, others_body),) = answers(opened, 1)
        assert seen == [IMAGE]
    assert own_body == others_body
    assert [name for name, _ in own] == [name for name, _ in others]
    assert [h for h in own if h[0] not in OWN] == [h for h in others if h[0] not in OWN]
    assert re.fullmatch(rb"[0-9a-f]{32}", dict(own)[b"x-request-id"])
    digits = re.compile(rb"[0-9.]+")
    assert digits.sub(b"0", dict(own)[b"server-timing"]) == digits.sub(b"0", dict(others)[b"server-timing"])


def test_it_counts_what_the_application_counts(service: Live, address: str, seen: list[bytes]) -> None:
    def counted() -> dict[str, float]:
        lines = service.http.get("/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        wanted = [name for name in found if "/predict" in name and "_bucket" not in name and "_sum" not in name]
        wanted += [f"classmith_{what}_duration_seconds_count" for what in ("queue", "decode", "infer")]
        stats = service.http.get(f"/v2/models/{address.split('/')[2]}/stats").json()["model_stats"][0]
        return {name: float(found[name]) for name in wanted if "created" not in name} | {
            "images": stats["inference_count"], "requests": stats["inference_stats"]["success"]["count"],
        }  # fmt: skip

    service.http.post(address, content=IMAGE, headers={"Content-Type": "image/png"})  # series are there
    before = counted()
    service.http.post(address, content=IMAGE, headers={"Content-Type": "image/png"})
    between = counted()
    assert seen == []
    service.http.post(address, content=IMAGE, headers={"Content-Type": "image/png", "Origin": service.url})
    after = counted()
    assert len(seen) == 1
    assert len(before) >= 7
    assert {name: between[name] - before[name] for name in before} == dict.fromkeys(before, 1)
    assert {name: after[name] - between[name] for name in before} == dict.fromkeys(before, 1)


def test_a_request_id_is_the_clients_where_it_is_plain(service: Live, address: str) -> None:
    for sent, taken in (("abc-1", True), ("<script>", False)):
        with connection(service) as opened:
            opened.sendall(head(address, **{"x-request-id": sent}) + IMAGE)
            ((headers, _),) = answers(opened, 1)
        assert (dict(headers)[b"x-request-id"] == sent.encode()) is taken


@pytest.mark.parametrize("name", sorted(UNUSUAL))
def test_heads_that_ask_for_more_are_left_to_the_application(
    name: bytes, service: Live, address: str, seen: list[bytes]
) -> None:
    values = {
        "content-encoding": "identity", "transfer-encoding": "chunked", "expect": "100-continue",
        "upgrade": "h2c", "origin": "http://localhost", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }  # fmt: skip
    chunked = name == b"transfer-encoding"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE), IMAGE) if chunked else IMAGE
    sent = head(address, None if chunked else len(IMAGE), **{name.decode(): values[name.decode()]})
    with connection(service) as opened:
        opened.sendall(sent + body)
        if name == b"expect":
            assert opened.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        ((_, answer),) = answers(opened, 1)
    assert label(answer) == "character 3"
    assert seen == [IMAGE]


@pytest.mark.parametrize("query", ["?top_k=2", "?"])
def test_only_a_bare_address_is_plain(query: str, service: Live, address: str, seen: list[bytes]) -> None:
    with connection(service) as opened:
        opened.sendall(head(address + query) + IMAGE)
        ((_, answer),) = answers(opened, 1)
    assert len(json.loads(answer)["predictions"][0]["probabilities"]) == (2 if "k" in query else 5)
    assert len(seen) == ("k" in query)


def test_two_headers_of_one_name_are_left_to_the_application(service: Live, address: str, seen: list[bytes]) -> None:
    twice = head(address).replace(b"host:", b"accept: image/png\r\naccept: */*\r\nhost:")
    with connection(service) as opened:
        opened.sendall(twice + IMAGE)
        answers(opened, 1)
    assert seen == [IMAGE]


def test_what_fails_is_refused_in_the_applications_words(service: Live, address: str, seen: list[bytes]) -> None:
    unknown = address.replace(address.split("/")[2], "0" * 32)
    for path, body, status in ((address, b"GIF89a no image", 415), (address, IMAGE[:90], 400), (unknown, IMAGE, 404)):
        seen.clear()
        answer = ask(service, path, body)
        assert statuses(answer) == [status]
        problem = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert problem["instance"] == path
        assert seen == [body]  # whole, though the short way had it first


def test_a_body_in_pieces_and_one_of_many_windows(service: Live, address: str, seen: list[bytes]) -> None:
    padded = IMAGE + bytes(150_000)  # what follows a PNG's end is ignored
    with connection(service) as opened:
        for body in (IMAGE, padded):
            opened.sendall(head(address, len(body)) + body[:10])
            for start in range(10, len(body), 20_000):
                time.sleep(0.01)
                opened.sendall(body[start : start + 20_000])
            ((_, answer),) = answers(opened, 1)
            assert label(answer) == "character 3"
    assert seen == []


def test_requests_sent_at_once_are_answered_in_their_order(service: Live, address: str, seen: list[bytes]) -> None:
    images = [drawing(k, 1) for k in (4, 0, 2, 1, 3)]
    png = {"Content-Type": "image/png"}
    alone = [service.http.post(address, content=image, headers=png).content for image in images]
    sent = [head(address, len(image)) + image for image in images]
    sent[2] = head(address, len(images[2]), origin="http://localhost") + images[2]  # one that the application answers
    with connection(service) as opened:
        opened.sendall(b"".join(sent))
        found = answers(opened, len(sent))
    assert [body for _, body in found] == alone
    assert len(set(alone)) == len(alone)
    assert seen == images[1:-1]  # those with others behind them, too


def test_a_connection_is_closed_where_the_client_asks_for_it(service: Live, address: str, seen: list[bytes]) -> None:
    answer = ask(service, address, IMAGE)
    assert statuses(answer) == [200]
    assert b"\r\nconnection: close\r\n" in answer
    old = exchange(service, head(address).replace(b"HTTP/1.1", b"HTTP/1.0") + IMAGE, is_all=False)
    assert statuses(old) == [200]
    assert seen == []


def test_clients_that_go_away_hurt_nobody(service: Live, address: str) -> None:
    for n_sent in (0, 10, len(IMAGE)):
        with connection(service) as opened:
            opened.sendall(head(address) + IMAGE[:n_sent])
    until(lambda: service.served.tasks.batcher.n_images == 0)
    until(lambda: all(entry.n_leases == 0 for entry in service.served.tasks.sessions._entries.values()))
    assert service.http.post(address, content=IMAGE, headers={"Content-Type": "image/png"}).status_code == 200


def test_a_deleted_task_is_gone(service: Live) -> None:
    task = service.task(centroids.task_json(centroids.characters(3)))
    path = f"/tasks/{task['id']}"
    assert statuses(ask(service, f"{path}/predict", IMAGE)) == [200]
    assert service.http.delete(path).status_code == 204
    assert statuses(ask(service, f"{path}/predict", IMAGE)) == [404]


def test_a_rate_limit_counts_each_request_once(settings: Settings) -> None:
    limited = settings.model_copy(update={"rate_per_s": 1 / 3600, "rate_burst": 6})
    with live(limited) as service:
        path = f"/tasks/{service.task(centroids.task_json(centroids.characters(3)))['id']}/predict"
        broken = IMAGE[:90]
        found = [ask(service, path, body) for body in (IMAGE, broken, IMAGE, IMAGE, IMAGE, IMAGE)]
    assert [statuses(answer)[0] for answer in found] == [200, 400, 200, 200, 200, 429]
    left = [int(re.search(rb"r=(\d+);t=", answer)[1]) for answer in found]  # type: ignore[index]
    assert left == [4, 3, 2, 1, 0, 0]


def test_without_room_the_refusal_is_the_applications_too(service: Live, address: str, seen: list[bytes]) -> None:
    def full(tenant: str, task_id: str) -> None:
        raise Busy("7 images are waiting already; send this request again later.", retry_after_s=2.5)

    sent = {"x-request-id": "mine"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.served.tasks.batcher._line, "refuse_if_full", full)
        own = ask(service, address, IMAGE, **sent)
        as_json = ask(service, address, b'{"images": ["', **{**sent, "content-type": "application/json"})
        others = ask(service, address, IMAGE, **sent, origin="http://localhost")
        with connection(service) as opened:
            opened.sendall(head(address, 1_000_000))
            opened.sendall(bytes(1_000_000))  # is read and dropped, and the next request heard
            opened.sendall(head(address, connection="close") + IMAGE)
            assert statuses(until_closed(opened)) == [429, 429]
    assert seen == []
    assert statuses(own) == [429]
    assert b"\r\nretry-after: 3\r\n" in own

    def stripped(answer: bytes) -> list[bytes]:
        return [
            line for line in answer.split(b"\r\n") if line.partition(b":")[0].lower() not in OWN - {b"x-request-id"}
        ]

    assert stripped(own) == stripped(others) == stripped(as_json)


def test_many_refused_at_once_are_each_told_so(service: Live, address: str) -> None:
    n = 3_000

    def full(tenant: str, task_id: str) -> None:
        raise Busy("7 images are waiting already; send this request again later.", retry_after_s=2.5)

    with pytest.MonkeyPatch.context() as patch, connection(service) as opened:
        patch.setattr(service.served.tasks.batcher._line, "refuse_if_full", full)
        sending = threading.Thread(
            target=opened.sendall, args=(head(address, 0) * n + head(address, 0, connection="close"),)
        )
        sending.start()
        assert statuses(until_closed(opened)) == [429] * (n + 1)
        sending.join()


def test_keys_are_asked_for(settings: Settings) -> None:
    with live(
        settings.model_copy(update={"api_keys": {"key-of-ann": Grant(tenant="ann"), "key-of-bob": Grant(tenant="bob")}})
    ) as service:
        ann = {"authorization": "Bearer key-of-ann"}
        path = f"/tasks/{service.task(centroids.task_json(centroids.characters(3)), **ann)['id']}/predict"
        own = ask(service, path, IMAGE, **ann)
        others = ask(service, path, IMAGE, authorization="Bearer key-of-bob")
        nobodys = ask(service, path, IMAGE)
    assert [statuses(answer)[0] for answer in (own, others, nobodys)] == [200, 404, 401]
