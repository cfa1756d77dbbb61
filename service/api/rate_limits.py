"""How fast each caller may send: a token bucket for each, in the memory of this process.

A bucket holds ``burst`` tokens at most and gains ``rate_per_s`` of them a second; a request takes one, or is told how
long the next takes. Processes count each for itself: with N of them behind a balancer that spreads a caller's requests,
the caller may send up to N times its rate. What a caller has left travels as headers, by
draft-ietf-httpapi-ratelimit-headers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.api.auth import Caller

HEADERS = "classmith.headers"
"""Where in a request's scope the headers are that its answer gets, whatever it is."""
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Admission:
    """Whether a request may go on: ``wait_s`` is 0, or the time until one may."""

    wait_s: float
    headers: Headers


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    """The buckets of all callers, used from one event loop; as many as there are keys, since nobody else gets here.

    ``rate_per_s`` (0: no limit) is for tenants: all their keys share a bucket of ``burst`` tokens (as many as a second
    brings, by default). A key with a rate of its own has a bucket of its own.
    """

    def __init__(self, rate_per_s: float, burst: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._buckets: dict[tuple[str, bytes], _Bucket] = {}

    def take(self, caller: Caller) -> Admission:
        """Take a token of the caller's, if there is one."""
        own_per_s = caller.grant.rate_per_s
        rate_per_s = own_per_s or self._rate_per_s
        if not rate_per_s:
            return Admission(0.0, [])
        burst = (None if own_per_s else self._burst) or max(1, math.ceil(rate_per_s))
        bucket = self._filled(self._name(caller), rate_per_s, burst)
        wait_s = max(0.0, 1 - bucket.tokens) / rate_per_s
        if not wait_s:
            bucket.tokens -= 1
        return Admission(wait_s, _headers(bucket.tokens, rate_per_s, burst))

    def give_back(self, caller: Caller) -> None:
        """Return a token that was taken for nothing."""
        if bucket := self._buckets.get(self._name(caller)):
            bucket.tokens += 1

    def _name(self, caller: Caller) -> tuple[str, bytes]:
        return caller.tenant, caller.key if caller.grant.rate_per_s else b""

    def _filled(self, name: tuple[str, bytes], rate_per_s: float, burst: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * rate_per_s)
        bucket.filled_at = now
        return bucket


def _headers(tokens: float, rate_per_s: float, burst: int) -> Headers:
    """``q`` requests within ``w`` seconds; ``r`` of them are left, and after ``t`` seconds all are again."""
    window_s, full_in_s = math.ceil(burst / rate_per_s), math.ceil((burst - tokens) / rate_per_s)
    return [
        (b"ratelimit-policy", f'"default";q={burst};w={window_s}'.encode()),
        (b"ratelimit", f'"default";r={math.floor(tokens)};t={full_in_s}'.encode()),
    ]
