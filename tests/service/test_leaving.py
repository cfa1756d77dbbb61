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
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live
from tests.service.processes import until

HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


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


def test_a_client_that_leaves_within_its_body_is_counted_as_gone(settings: Settings) -> None:
    with live(settings) as running:
        task = running.task(centroids.task_json())
        path = f"/tasks/{task['id']}/predict"
        with _sent(running, path, b'{"images": [', length=1_000):
            pass
        until(lambda: "499" in _statuses(running, "/predict"), within_s=20)


def _sent(running: Live, path: str, body: bytes, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent; closed, its client is gone."""
    url = httpx.URL(running.url)
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(HEAD.format(path=path, length=length or len(body)).encode() + body)
    return connection


def _statuses(running: Live, end: str) -> set[str]:
    """Of requests to addresses with this end, as the metrics count them."""
    counted = re.findall(r'request_total\{code="(\d+)",endpoint="([^"]+)"\}', running.http.get("/metrics").text)
    return {status for status, endpoint in counted if endpoint.endswith(end)}
