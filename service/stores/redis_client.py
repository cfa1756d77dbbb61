"""One Redis for all processes: the connection, every key name and TTL, and its failures in our own words.

    {prefix}:{ID}:record           hash    tenant, fixed, state, outcome, owner, lease_since, lease_until   no TTL
    {prefix}:{ID}:recipe           string  the recipe's bytes                                              no TTL
    {prefix}:{ID}:bundle           string  "DIGEST N": which N chunks make the bundle                      BUNDLE_TTL_S
    {prefix}:{ID}:bundle:DIGEST:i  string  one chunk                                                       BUNDLE_TTL_S
    {prefix}:tasks:TENANT          zset    ids by -created_at: the list, newest first                      no TTL
    {prefix}:unfinished            zset    "ID TENANT" by created_at: a hint, the record decides           no TTL
    {prefix}:jobs                  stream  tenant, id, trace: generations to do, for the group GROUP       no TTL
    {prefix}:workers               zset    names of workers by their last heartbeat (server ms)            no TTL

Keys of one task share the hash slot of ``{ID}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError, RedisClusterException, RedisError, ResponseError
from redis.retry import Retry

from models.errors import Unavailable

GROUP = "workers"
PREFIX = "classmith"
CLUSTER = "redis+cluster://"
BUNDLE_TTL_S = 7 * 24 * 3600.0
MAX_BUNDLE_BYTES = 256_000_000
CHUNK_BYTES = 4_000_000
"""Redis is single-threaded: larger values would hold up everybody else's commands."""
NOW_MS = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
"""Begins scripts that compare times: the server's clock is the one that all processes share."""


@dataclass(frozen=True)
class Keys:
    """Every key name, in one place."""

    prefix: str = PREFIX

    def record(self, task_id: str) -> str:
        """What a task is, and where it stands."""
        return f"{self.prefix}:{{{task_id}}}:record"

    def recipe(self, task_id: str) -> str:
        """How to make it (again)."""
        return f"{self.prefix}:{{{task_id}}}:recipe"

    def bundle(self, task_id: str) -> str:
        """The head of its bundle."""
        return f"{self.prefix}:{{{task_id}}}:bundle"

    def chunks(self, task_id: str, head: str) -> list[str]:
        """The chunk keys that a head ("DIGEST N") names."""
        digest, n_chunks = head.split(" ")
        return [f"{self.bundle(task_id)}:{digest}:{i}" for i in range(int(n_chunks))]

    def index(self, tenant: str) -> str:
        """A tenant's list."""
        return f"{self.prefix}:tasks:{tenant}"

    @property
    def unfinished(self) -> str:
        """What may have been left behind."""
        return f"{self.prefix}:unfinished"

    @property
    def jobs(self) -> str:
        """The queue of generations."""
        return f"{self.prefix}:jobs"

    @property
    def workers(self) -> str:
        """Who is alive to do them."""
        return f"{self.prefix}:workers"


def connect(url: str, *, timeout_s: float = 5.0) -> Redis:
    """A client as the stores need it (bytes, bounded waits, few quick retries); connects at the first command.

    ``redis+cluster://HOST:PORT`` names any node of a Redis Cluster, which must answer at once. A connection that broke
    is tried again; one that is silent is not, since each wait takes ``timeout_s``.
    """
    retry = Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), retries=2, supported_errors=(ConnectionError,))
    options: dict[str, Any] = {"protocol": 2, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if not url.startswith(CLUSTER):
        return Redis.from_url(url, retry=retry, **options)
    with redis_errors():  # it has the commands of the other, and finds the node for each
        return cast("Redis", RedisCluster.from_url("redis://" + url.removeprefix(CLUSTER), **options))


@contextmanager
def redis_errors() -> Iterator[None]:
    """What redis-py raises, as Unavailable with a remedy."""
    try:
        yield
    except (RedisError, RedisClusterException) as error:
        remedy = "check that it runs, that CLASSMITH_REDIS_URL points to it, and that it has memory left"
        raise Unavailable(f"Redis does not answer ({type(error).__name__}: {error}); {remedy}.") from error


def run_script(client: Redis, script: str, keys: list[str], arguments: Sequence[Any]) -> Any:
    """Run a Lua script, atomically; Redis keeps it, so that only its digest travels."""
    with redis_errors():
        return client.register_script(script)(keys=keys, args=list(arguments))


def durability_problems(client: Redis) -> list[str]:
    """What in this Redis's configuration could lose acknowledged tasks; empty where all is well."""
    with redis_errors():
        info = client.info()
    problems = []
    if not info.get("aof_enabled"):
        problems.append("Redis has no append-only file, so a restart loses tasks; set appendonly yes.")
    if str(info.get("maxmemory_policy", "")).startswith("allkeys"):
        problems.append("Redis may evict tasks when memory is short; set maxmemory-policy volatile-lfu.")
    elif info.get("maxmemory") and info.get("maxmemory_policy") == "noeviction":
        problems.append("Redis refuses new tasks once bundles fill its memory; set maxmemory-policy volatile-lfu.")
    if info.get("aof_enabled") and _fsync(client) != "always":
        problems.append("Redis may lose the tasks of its last second when it dies; set appendfsync always.")
    return problems


def _fsync(client: Redis) -> str:
    """The setting ``appendfsync``; taken for "always" where the server does not tell (hosted ones often don't)."""
    try:
        found: Any = client.config_get("appendfsync")
    except ResponseError:
        return "always"
    return str(found.get("appendfsync", "always"))
