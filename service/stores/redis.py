"""The shared task store: records and recipes in Redis, for more than one process or machine.

Each change of a task is one script on keys of one hash slot: atomic, on a cluster too. The two indices (a tenant's
list, and what is unfinished) live in other slots. They are written before the record, so that no crash or lost reply
leaves a task that no list shows, and again after it; entries without a record are dropped when they are read.
What is acknowledged is kept as long as Redis keeps it: see ``redis_client``, which also has all key names and TTLs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from redis import Redis

from service.ports import ClassSummary, Position, State, TaskRecord
from service.stores.redis_client import NOW_MS, PREFIX, Keys, redis_errors, run_script

CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'tenant', ARGV[1], 'fixed', ARGV[2], 'state', ARGV[3], 'outcome', ARGV[4])
redis.call('SET', KEYS[2], ARGV[5])
return 1"""
DELETE = """
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2])"""
GET = """
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return {} end
return redis.call('HGETALL', KEYS[1])"""
"""The tenant is compared here, so that a foreign task takes no longer to miss than one that never was."""
RECIPE = """
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return false end
return redis.call('GET', KEYS[2])"""
RUNS = """
local function runs(since, till) return since and tonumber(since) <= now and tonumber(till) > now end"""
"""Whether a lease runs; one that began in the future is from before the clock was set back."""
CLAIM = (
    NOW_MS
    + RUNS
    + """
local found = redis.call('HMGET', KEYS[1], 'tenant', 'owner', 'lease_since', 'lease_until')
if found[1] ~= ARGV[1] then return 0 end
if found[2] and found[2] ~= ARGV[2] and runs(found[3], found[4]) then return 0 end
redis.call('HSET', KEYS[1], 'state', 'generating', 'owner', ARGV[2],
  'lease_since', string.format('%.0f', now), 'lease_until', string.format('%.0f', now + ARGV[3]))
return 1"""
)
RELEASE = """
local found = redis.call('HMGET', KEYS[1], 'tenant', 'owner')
if found[1] ~= ARGV[1] or found[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'outcome', ARGV[4])
redis.call('HDEL', KEYS[1], 'owner', 'lease_since', 'lease_until')
return 1"""
LEFT_BEHIND = (
    NOW_MS
    + RUNS
    + """
local found = redis.call('HMGET', KEYS[1], 'state', 'lease_since', 'lease_until')
if not found[1] or found[1] == 'ready' or found[1] == 'failed' then return 'ended' end
if found[1] == 'generating' and runs(found[2], found[3]) then return 'running' end
return 'left'"""
)

FIRST = Position(math.inf, "")
"""Before every task."""


class RedisTaskStore:
    """A TaskStore in Redis."""

    def __init__(self, client: Redis, prefix: str = PREFIX) -> None:
        self._client = client
        self._keys = Keys(prefix)

    def create(self, record: TaskRecord, recipe: bytes) -> bool:
        """Store unless the id is taken; True if it is new. As durable as Redis is configured to be."""
        fixed = {"classes": [asdict(c) for c in record.classes], "n_unlabeled": record.n_unlabeled,
                 "meta_model": record.meta_model, "created_at": record.created_at, "notes": record.notes}  # fmt: skip
        outcome = _outcome(record.generate_ms, record.bytes, record.error)
        values = [record.tenant, json.dumps(fixed, ensure_ascii=False), record.state, outcome, recipe]
        self._index(record)
        made = self._script(CREATE, record.id, values)
        self._index(record if made else self.get(record.tenant, record.id))
        return bool(made)

    def get(self, tenant: str, task_id: str) -> TaskRecord | None:
        """The record, or None."""
        found = self._script(GET, task_id, [tenant])
        return _record(task_id, dict(zip(found[::2], found[1::2], strict=True)), tenant)

    def recipe(self, tenant: str, task_id: str) -> bytes | None:
        """The recipe's bytes, or None."""
        return cast("bytes | None", self._script(RECIPE, task_id, [tenant]))

    def list(self, tenant: str, *, limit: int, after: Position | None = None) -> list[TaskRecord]:
        """One page, newest first, then by id."""
        page: list[TaskRecord] = []
        dangling: list[str] = []
        while len(page) < limit:
            positions = self._positions_after(tenant, after or FIRST, limit - len(page))
            if not positions:
                break
            ids = [position.id for position in positions]
            found = self._records(tenant, ids)
            page += [record for record in found if record is not None]
            dangling += [i for i, record in zip(ids, found, strict=True) if record is None]
            after = positions[-1]
        self._mend(tenant, dangling)
        return page

    def count(self, tenant: str) -> int:
        """How many tasks a tenant has, by its list."""
        with redis_errors():
            return self._client.zcard(self._keys.index(tenant))

    def delete(self, tenant: str, task_id: str) -> bool:
        """Remove record, recipe and index entries."""
        gone = self._script(DELETE, task_id, [tenant])
        with redis_errors():
            self._client.zrem(self._keys.index(tenant), task_id)
            self._client.zrem(self._keys.unfinished, f"{task_id} {tenant}")
        return bool(gone)

    def claim(self, tenant: str, task_id: str, *, owner: str, lease_s: float) -> bool:
        """Become the one generator of a task, unless another owner's lease (by the server's clock) runs."""
        claimed = self._script(CLAIM, task_id, [tenant, owner, round(lease_s * 1000)])
        if claimed:
            with redis_errors():
                self._client.zadd(self._keys.unfinished, {f"{task_id} {tenant}": 0.0}, nx=True)
        return bool(claimed)

    def release(self, tenant: str, task_id: str, *, owner: str, state: State, generate_ms: float | None = None,
                bytes: int | None = None, error: str | None = None) -> bool:  # fmt: skip
        """End this owner's lease with a state."""
        released = self._script(RELEASE, task_id, [tenant, owner, state, _outcome(generate_ms, bytes, error)])
        if released and state in ("ready", "failed"):
            with redis_errors():
                self._client.zrem(self._keys.unfinished, f"{task_id} {tenant}")
        return bool(released)

    def unfinished(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """(tenant, id) of what is queued, or was left behind by a crash; oldest first."""
        left: list[tuple[str, str]] = []
        for member in self._unfinished_members():
            task_id, tenant = member.split(" ", 1)
            status = self._script(LEFT_BEHIND, task_id, [])
            if status == b"left":
                left.append((tenant, task_id))
            elif status == b"ended":
                self._forget_unfinished(member)
            if len(left) == limit:
                break
        return left

    def ping(self) -> None:
        """Raise Unavailable where Redis does not answer."""
        with redis_errors():
            self._client.ping()

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _script(self, script: str, task_id: str, arguments: Sequence[Any]) -> Any:
        keys = [self._keys.record(task_id), self._keys.recipe(task_id)]
        return run_script(self._client, script, keys, arguments)

    def _index(self, record: TaskRecord | None) -> None:
        if record is None:  # the id is another tenant's
            return
        with redis_errors():
            self._client.zadd(self._keys.index(record.tenant), {record.id: -record.created_at})
            if record.state in ("queued", "generating"):
                self._client.zadd(self._keys.unfinished, {f"{record.id} {record.tenant}": record.created_at})

    def _positions_after(self, tenant: str, after: Position, n: int) -> Sequence[Position]:
        """Up to ``n``: the rest of the same moment, whose order is that of the ids' bytes, then what is older."""
        name, score = self._keys.index(tenant), -after.created_at
        with redis_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.zrangebyscore(name, score, score, withscores=True)
            pipe.zrangebyscore(name, f"({score!r}", "+inf", 0, n, withscores=True)
            same, older = pipe.execute()
        rest = [(ident, score) for ident, score in same if ident > after.id.encode()]
        return [Position(-score, ident.decode()) for ident, score in (rest + older)[:n]]

    def _records(self, tenant: str, ids: Sequence[str]) -> Sequence[TaskRecord | None]:
        with redis_errors():
            pipe = self._client.pipeline(transaction=False)
            for task_id in ids:
                pipe.hgetall(self._keys.record(task_id))
            return [_record(i, fields, tenant) for i, fields in zip(ids, pipe.execute(), strict=True)]

    def _mend(self, tenant: str, dangling: Sequence[str]) -> None:
        """Drop index entries without a record; one made again at this very moment is put back."""
        for task_id in dangling:
            with redis_errors():
                self._client.zrem(self._keys.index(tenant), task_id)
            if record := self.get(tenant, task_id):
                self._index(record)

    def _unfinished_members(self) -> Sequence[str]:
        with redis_errors():
            members = cast("list[bytes]", self._client.zrange(self._keys.unfinished, 0, -1))
        return [m.decode() for m in members]

    def _forget_unfinished(self, member: str) -> None:
        """Drop an ended task from the hints; one claimed again at this very moment is put back."""
        with redis_errors():
            self._client.zrem(self._keys.unfinished, member)
        task_id, _ = member.split(" ", 1)
        if self._script(LEFT_BEHIND, task_id, []) != b"ended":
            with redis_errors():
                self._client.zadd(self._keys.unfinished, {member: 0.0})


def _outcome(generate_ms: float | None, n_bytes: int | None, error: str | None) -> str:
    return json.dumps({"generate_ms": generate_ms, "bytes": n_bytes, "error": error})


def _record(task_id: str, fields: dict[bytes, bytes], tenant: str) -> TaskRecord | None:
    if fields.get(b"tenant") != tenant.encode():
        return None
    fixed, outcome = json.loads(fields[b"fixed"]), json.loads(fields[b"outcome"])
    state = cast("State", fields[b"state"].decode())
    if state != "failed":
        outcome["error"] = None
    classes = tuple(ClassSummary(**c) for c in fixed.pop("classes"))
    notes = tuple(fixed.pop("notes", ()))  # tasks of the first version have none
    return TaskRecord(tenant=tenant, id=task_id, state=state, classes=classes, notes=notes, **fixed, **outcome)
