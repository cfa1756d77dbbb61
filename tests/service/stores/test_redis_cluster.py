"""A Redis Cluster: every command keeps to one hash slot, with a cluster's client and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from models.errors import Unavailable
from service.generation.jobs import JobQueue
from service.idempotency import RedisIdempotencyStore, Remembered
from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import CHUNK_BYTES, connect
from tests.contract.places import record
from tests.redis_server import RedisServer, free_port
from tests.service.processes import until

N_SLOTS = 16_384
ENTRY = Remembered("f1", "t1", True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A cluster of one node: commands on keys of several slots are refused as on many."""
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    try:
        server = RedisServer(tmp_path_factory.mktemp("cluster"), options=options)
    except AssertionError as error:
        if "cluster-port" in str(error):
            pytest.skip("this Redis is older than 7.0, whose clusters need a port 10,000 above their own")
        raise
    with connect(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, N_SLOTS - 1)
        until(lambda: b"cluster_state:ok" in _info(client))
        with pytest.raises(ResponseError, match=r"CROSSSLOT|same slot"):
            client.mget("a", "b")
    yield server
    server.stop()


def _info(client: Redis) -> bytes:
    client.set_response_callback("CLUSTER INFO", lambda response: response)
    found: bytes = client.execute_command("CLUSTER INFO")
    return found


@pytest.fixture(params=["redis", "redis+cluster"])
def client(request: pytest.FixtureRequest, cluster: RedisServer) -> Iterator[Redis]:
    opened = connect(cluster.url.replace("redis", request.param, 1))
    yield opened
    opened.close()


def test_tasks(client: Redis, redis_prefix: str) -> None:
    tasks = RedisTaskStore(client, redis_prefix)
    for i in range(5):
        assert tasks.create(record(f"a{i}", created_at=float(i)), b"recipe")
    assert not tasks.create(record("a1"), b"other")
    assert tasks.claim("ann", "a1", owner="x", lease_s=60)
    assert tasks.release("ann", "a1", owner="x", state="ready")
    assert [r.id for r in tasks.list("ann", limit=9)] == ["a4", "a3", "a2", "a1", "a0"]
    assert [task_id for _, task_id in tasks.unfinished(limit=9)] == ["a0", "a2", "a3", "a4"]
    assert tasks.delete("ann", "a4")
    assert tasks.count("ann") == 4
    tasks.ping()


def test_bundles_of_several_chunks(client: Redis, redis_prefix: str) -> None:
    bundles = RedisBundleStore(client, prefix=redis_prefix)
    large = bytes(2 * CHUNK_BYTES + 1)
    bundles.put("a1", large)
    assert bundles.get("a1") == large
    bundles.put("a1", b"small")
    assert bundles.get("a1") == b"small"
    bundles.delete("a1")
    assert bundles.get("a1") is None


def test_jobs_and_idempotency_keys(client: Redis, redis_prefix: str) -> None:
    queue = JobQueue(client, prefix=redis_prefix)
    queue.beat("w")
    assert queue.n_workers() == 1
    assert queue.take("w", wait_s=0.01) is None
    queue.put("ann", "a1")
    job = queue.take("w", wait_s=10)
    assert job is not None
    queue.beat("w", job)
    queue.end(job)
    assert queue.n_jobs() == 0
    queue.leave("w")
    keys = RedisIdempotencyStore(client, keep_s=60, prefix=redis_prefix)
    assert keys.put("ann", "k", ENTRY) == ENTRY
    assert keys.get("ann", "k") == ENTRY


def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="Redis does not answer"):
        connect(f"redis+cluster://127.0.0.1:{free_port()}", timeout_s=0.5)
