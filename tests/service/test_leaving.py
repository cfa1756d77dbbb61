"""Clients that go away: their predictions end, and are counted as such."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from typing import Any

import httpx
import pytest

from service.prediction.batching import Batcher
from service.prediction.pieces import Piece
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live
from tests.service.processes import until

HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
JSON, PNG = "application/json", "image/png"


class HeldBatcher:
    """In place of runs that take long."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()

    async def predict(self, *_: Any) -> None:
        self.began.set()
        try:
            await asyncio.sleep(240)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.mark.parametrize("is_open_inference", [False, True])
def test_a_prediction_ends_when_its_client_goes_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, is_open_inference: bool
) -> None:
    held = HeldBatcher()
    monkeypatch.setattr(Batcher, "predict", held.predict)
    images = centroids.task_json()["classes"][0]["images"][:1]
    with live(settings) as running:
        task = running.task(centroids.task_json())
        if is_open_inference:
            path = f"/v2/models/{task['id']}/infer"
            body: dict[str, Any] = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": images}]}
        else:
            path, body = f"/tasks/{task['id']}/predict", {"images": images}
        with _sent(running, path, json.dumps(body).encode()):
            assert held.began.wait(20)
        assert held.cancelled.wait(20)
        until(lambda: "499" in _statuses(running, "/infer" if is_open_inference else "/predict"), within_s=20)


@pytest.mark.parametrize(("kind", "body"), [(JSON, b'{"images": ['), (PNG, b"\x89PNG")])
def test_a_client_that_leaves_within_its_body_is_counted_as_gone(settings: Settings, kind: str, body: bytes) -> None:
    with live(settings) as running:
        task = running.task(centroids.task_json())
        path = f"/tasks/{task['id']}/predict"
        with _sent(running, path, body, kind=kind, length=1_000):
            pass
        until(lambda: _statuses(running, "/predict") == {"499": 1}, within_s=20)


def test_images_sent_as_they_are_leave_the_line_with_their_clients(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, run, n_run = threading.Event(), threading.Event(), Batcher._run, list[int]()

    def held(self: Batcher, batch: list[Piece]) -> int:
        began.set()
        assert go_on.wait(240)
        n_run.append(run(self, batch))
        return n_run[-1]

    image = centroids.characters()["character 0"]
    with live(settings.model_copy(update={"n_runners": 1})) as running:
        path = f"/tasks/{running.task(centroids.task_json())['id']}/predict"
        tasks = running.served.tasks

        def ask() -> int:
            return running.http.post(path, content=image, headers={"Content-Type": PNG}).status_code

        assert ask() == 200  # in memory from here on
        with monkeypatch.context() as patched:
            patched.setattr(Batcher, "_run", held)
            try:
                with _sent(running, path, image, kind=PNG):
                    assert began.wait(20)
                    with _sent(running, path, image, kind=PNG), _sent(running, path, image, kind=PNG):
                        until(lambda: tasks.batcher.n_images == 2, within_s=20)
                    until(lambda: _statuses(running, "/predict") == {"200": 1, "499": 2}, within_s=20)
                    assert tasks.batcher.n_images == 0
                until(lambda: _statuses(running, "/predict") == {"200": 1, "499": 3}, within_s=20)
            finally:
                go_on.set()
            assert ask() == 200
        assert n_run == [0, 1]  # what ran already was dropped before it was decoded
        assert _statuses(running, "/predict") == {"200": 2, "499": 3}
        assert all(entry.n_leases == 0 for entry in tasks.sessions._entries.values())


def _sent(running: Live, path: str, body: bytes, *, kind: str = JSON, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent; closed, its client is gone."""
    url = httpx.URL(running.url)
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(HEAD.format(path=path, kind=kind, length=length or len(body)).encode() + body)
    return connection


def _statuses(running: Live, end: str) -> dict[str, int]:
    """How many requests to addresses with this end had each status, as the metrics count them."""
    lines = r'request_total\{code="(\d+)",endpoint="([^"]+)"\} (\d+)'
    counted = re.findall(lines, running.http.get("/metrics").text)
    return {status: int(n) for status, endpoint, n in counted if endpoint.endswith(end)}
