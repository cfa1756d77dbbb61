"""The shared bundle store: bundles in Redis with a TTL that each use renews, in chunks that hold nobody up."""

from __future__ import annotations

import hashlib
from typing import cast

from redis import Redis

from models.errors import TooLarge
from service.stores.redis_client import BUNDLE_TTL_S, CHUNK_BYTES, MAX_BUNDLE_BYTES, PREFIX, Keys, redis_errors


class RedisBundleStore:
    """A BundleStore in Redis. Chunks are named by the content's digest, so two writers never mix theirs.

    ``ttl_s``: how long an unused bundle stays. ``max_bundle_bytes``: larger ones are refused; the total is Redis's own
    ``maxmemory``, under a ``volatile-*`` policy.
    """

    def __init__(
        self,
        client: Redis,
        ttl_s: float = BUNDLE_TTL_S,
        max_bundle_bytes: int = MAX_BUNDLE_BYTES,
        prefix: str = PREFIX,
    ) -> None:
        self._client = client
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._max_bundle_bytes = max_bundle_bytes
        self._keys = Keys(prefix)

    def put(self, task_id: str, data: bytes) -> None:
        """Store whole or not at all (the head that names the chunks comes last); raises TooLarge over the limit."""
        if len(data) > self._max_bundle_bytes:
            remedy = "use a smaller meta-model, or raise the limit"
            raise TooLarge(f"The network is {len(data)} bytes, over the limit of {self._max_bundle_bytes}; {remedy}.")
        pieces = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
        head = f"{hashlib.sha256(data).hexdigest()[:32]} {len(pieces)}"
        with redis_errors():
            for name, piece in zip(self._keys.chunks(task_id, head), pieces, strict=True):
                self._client.set(name, piece, px=self._ttl_ms)
            before = self._client.set(self._keys.bundle(task_id), head, px=self._ttl_ms, get=True)
        if before is not None and (old := cast("bytes", before).decode()) != head:
            self._drop(self._keys.chunks(task_id, old))

    def get(self, task_id: str) -> bytes | None:
        """The bytes, their TTL renewed, or None where any part is gone."""
        with redis_errors():
            head = self._client.getex(self._keys.bundle(task_id), px=self._ttl_ms)
            if head is None:
                return None
            pieces = [
                self._client.getex(name, px=self._ttl_ms)
                for name in self._keys.chunks(task_id, cast("bytes", head).decode())
            ]
        return None if None in pieces else b"".join(cast("list[bytes]", pieces))

    def delete(self, task_id: str) -> None:
        """Remove the head and the chunks it names."""
        with redis_errors():
            head = self._client.getdel(self._keys.bundle(task_id))
        if head is not None:
            self._drop(self._keys.chunks(task_id, cast("bytes", head).decode()))

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _drop(self, names: list[str]) -> None:
        with redis_errors():
            self._client.delete(*names)
