"""For every folder of tests: a real Redis, shared by the session, and Hypothesis's profile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from service.stores.redis_client import connect
from tests.redis_server import RedisServer

# The same examples in every run, on a machine of any speed.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's server; a test that kills Redis makes its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_prefix() -> str:
    """Key names that no other test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[Redis]:
    client = connect(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def shared(tmp_path: Path, redis_server: RedisServer, redis_prefix: str) -> dict[str, object]:
    """Settings of services and workers that share a Redis; the test puts what it needs into the meta-models' folder."""
    return {
        "redis_url": redis_server.url,
        "redis_prefix": redis_prefix,
        "meta_models": tmp_path / "meta-models",
        "state_dir": tmp_path / "unused",
    }
