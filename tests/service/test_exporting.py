"""Exports keep nobody waiting but those who export."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service import app, exporting
from service.settings import Settings
from tests.service import centroids
from tests.service.live import live, problem


def test_more_exports_than_may_wait_are_told_when_to_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever needs the store is answered meanwhile."""
    begun, go_on, real = threading.Semaphore(0), threading.Event(), exporting.self_contained

    def held(*given: Any) -> bytes:
        begun.release()
        assert go_on.wait(240)
        return real(*given)

    monkeypatch.setattr(exporting, "self_contained", held)
    monkeypatch.setattr(exporting, "MAX_WAITING", exporting.N_THREADS)
    monkeypatch.setattr(app, "N_STORE_THREADS", exporting.N_THREADS)
    with live(settings) as running, ThreadPoolExecutor(exporting.N_THREADS) as pool:
        address = f"/tasks/{running.task(centroids.task_json())['id']}"
        asked = [pool.submit(running.http.get, f"{address}/model.onnx") for _ in range(exporting.N_THREADS)]
        try:
            assert all(begun.acquire(timeout=240) for _ in asked)
            refused = running.http.get(f"{address}/model.onnx", timeout=60)
            problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert 'classmith_shed_total{reason="export_queue_full"} 1.0' in running.http.get("/metrics").text
            assert running.http.get(address, timeout=60).json()["state"] == "ready"
        finally:
            go_on.set()
        files = {answer.result().content for answer in asked}
        assert files == {running.http.get(f"{address}/model.onnx").content}
