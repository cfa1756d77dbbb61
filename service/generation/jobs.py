"""The queue of generations: Redis Streams with one consumer group, and the heartbeats of the workers.

A job is a task's tenant and id, and the trace it is part of. It stays in the stream until a worker has brought it to an
end; the job of a worker not heard of for ``alive_s`` is handed to another. Key names: ``redis_client``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import ResponseError

from service.observability.tracing import TraceContext, parse, trace_context
from service.stores.redis_client import GROUP, NOW_MS, PREFIX, Keys, redis_errors, run_script

ALIVE_S = 10.0
"""A worker not heard of for so long counts as dead."""
FORGET_S = 24 * 3600.0
"""Consumers without jobs, silent for so long, are removed from the group."""

T = TypeVar("T")
BEAT = NOW_MS + "return redis.call('ZADD', KEYS[1], now, ARGV[1])"
N_ALIVE = (
    NOW_MS
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
return redis.call('ZCARD', KEYS[1])"""
)


@dataclass(frozen=True)
class Job:
    """A generation to do. ``n_deliveries``: how many workers were given it, this one included."""

    message_id: str
    tenant: str
    task_id: str
    n_deliveries: int
    trace: TraceContext = field(default_factory=dict)


class JobQueue:
    """The queue's operations, each one round trip or two; all raise Unavailable where Redis does not answer."""

    def __init__(self, client: Redis, *, alive_s: float = ALIVE_S, prefix: str = PREFIX) -> None:
        self._client = client
        self._keys = Keys(prefix)
        self._alive_ms = round(alive_s * 1000)

    def put(self, tenant: str, task_id: str) -> str:
        """Append a job, part of the trace that this call is part of; its message id."""
        fields: dict[Any, Any] = {"tenant": tenant, "id": task_id, **trace_context.get()}
        with redis_errors():
            message_id = self._client.xadd(self._keys.jobs, fields)
        return _text(message_id)

    def holds(self, message_id: str) -> bool:
        """Whether a job has not ended yet."""
        with redis_errors():
            return bool(self._client.xrange(self._keys.jobs, message_id, message_id, count=1))

    def n_jobs(self) -> int:
        """Jobs waiting or under way."""
        with redis_errors():
            return int(self._client.xlen(self._keys.jobs))

    def n_workers(self) -> int:
        """Workers alive."""
        return int(run_script(self._client, N_ALIVE, [self._keys.workers], [self._alive_ms]))

    def beat(self, worker: str, job: Job | None = None) -> None:
        """A worker is alive, and still has its job."""
        run_script(self._client, BEAT, [self._keys.workers], [worker])
        if job is not None:
            with redis_errors():
                self._client.xclaim(self._keys.jobs, GROUP, worker, 0, [job.message_id], justid=True)

    def take(self, worker: str, *, wait_s: float) -> Job | None:
        """The next job, waiting for one at most ``wait_s``."""
        streams: Any = {self._keys.jobs: ">"}
        block_ms = max(1, round(wait_s * 1000))
        found: Any = self._in_group(lambda: self._client.xreadgroup(GROUP, worker, streams, count=1, block=block_ms))
        if not found:
            return None
        message_id, fields = found[0][1][0]
        return _job(_text(message_id), fields, 1)

    def take_over(self, worker: str) -> Job | None:
        """A job of a worker that died, if there is one."""
        found: Any = self._in_group(
            lambda: self._client.xautoclaim(self._keys.jobs, GROUP, worker, self._alive_ms, count=1)
        )
        if not found or not found[1] or found[1][0][1] is None:
            return None
        message_id, fields = found[1][0]
        return _job(_text(message_id), fields, self._n_deliveries(_text(message_id)))

    def forgive(self, worker: str, job: Job) -> None:
        """A delivery that ended for no fault of the job is not counted; the job waits to be taken over."""
        n_before = job.n_deliveries - 1
        with redis_errors():
            self._client.xclaim(self._keys.jobs, GROUP, worker, 0, [job.message_id], retrycount=n_before, justid=True)

    def end(self, job: Job) -> None:
        """A job has come to an end, good or bad; it leaves the stream."""
        with redis_errors():
            pipe = self._client.pipeline(transaction=True)
            pipe.xack(self._keys.jobs, GROUP, job.message_id)
            pipe.xdel(self._keys.jobs, job.message_id)
            pipe.execute()

    def leave(self, worker: str) -> None:
        """A worker stops: no heartbeat, and no place in the group unless it still has a job for others to take over."""
        with redis_errors():
            self._client.zrem(self._keys.workers, worker)
            for consumer in self._client.xinfo_consumers(self._keys.jobs, GROUP):
                silent = consumer["idle"] > FORGET_S * 1000 or _text(consumer["name"]) == worker
                if silent and consumer["pending"] == 0:
                    self._client.xgroup_delconsumer(self._keys.jobs, GROUP, consumer["name"])

    def _n_deliveries(self, message_id: str) -> int:
        with redis_errors():
            pending: Any = self._client.xpending_range(self._keys.jobs, GROUP, message_id, message_id, 1)
        return int(pending[0]["times_delivered"]) if pending else 1

    def _in_group(self, command: Callable[[], T]) -> T | None:
        """A command of the consumer group; None, with the group made, where there was none (an empty Redis)."""
        with redis_errors():
            try:
                return command()
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
            try:
                self._client.xgroup_create(self._keys.jobs, GROUP, id="0", mkstream=True)
            except ResponseError as error:  # another worker was faster
                if "BUSYGROUP" not in str(error):
                    raise
        return None


def _job(message_id: str, fields: Mapping[bytes, bytes], n_deliveries: int) -> Job:
    trace = parse((_text(name), _text(value)) for name, value in fields.items())
    return Job(message_id, _text(fields[b"tenant"]), _text(fields[b"id"]), n_deliveries, trace)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
