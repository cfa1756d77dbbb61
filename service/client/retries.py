"""When a call is made again: the service was too busy or not there, and every call may be repeated safely.

Reading and predicting change nothing; deleting twice deletes once; creating carries an Idempotency-Key.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from service.client.errors import refusal, too_slow, understood, unreachable

Found = TypeVar("Found")
BUSY = frozenset({429, 502, 503})
"""502: a balancer reaches no service. Not 504, which is a time-out."""
FINAL = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.UnsupportedProtocol, httpx.DecodingError)
"""Transport errors that coming back does not mend; after a time-out it would add to what the service has to do."""
MOST_DOUBLINGS = 30


@dataclass(frozen=True)
class Retries:
    """At most ``most`` times, and ``max_wait_s`` of waiting, for one call.

    A service that asks for more patience than is left (``Retry-After``) is not asked again: coming back early would be
    refused. Where it names no time the waits double from ``first_wait_s``, with jitter.
    """

    most: int = 3
    max_wait_s: float = 60.0
    first_wait_s: float = 0.25


@dataclass
class Attempts:
    """The tries of one call: each answer and each error is shown to it, and it says how long to wait, or raises.

    ``left_s``: for the whole call, and after each wait for the rest of it; no try begins after that.
    """

    url: str
    retries: Retries
    left_s: float = math.inf
    n_failed: int = field(default=0, init=False)
    waited_s: float = field(default=0.0, init=False)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.left_s

    def after(self, response: httpx.Response) -> float | None:
        """None after success, else seconds until the next try; raises RequestFailed where that was the last."""
        if response.is_success or self._is_gone(response):
            return None
        told_s = retry_after_s(response.headers)
        wait_s = self._next_s(told_s) if response.status_code in BUSY else None
        if wait_s is None:
            raise refusal(response.status_code, _read(response), told_s)
        return wait_s

    def after_error(self, error: Exception) -> float:
        """Seconds until the next try; raises Unreachable where that was the last."""
        may_pass = isinstance(error, httpx.TransportError) and not isinstance(error, FINAL)
        wait_s = self._next_s(None) if may_pass else None
        if wait_s is None:
            raise (too_slow if isinstance(error, httpx.ReadTimeout) else unreachable)(self.url, error)
        return wait_s

    def _is_gone(self, response: httpx.Response) -> bool:
        """A repeated DELETE finds nothing: the first one worked, only its answer was lost."""
        is_repeated_delete = self.n_failed > 0 and response.request.method == "DELETE"
        return is_repeated_delete and response.status_code == HTTPStatus.NOT_FOUND

    def _next_s(self, told_s: float | None) -> float | None:
        """The next wait, counted; None where the tries or the time are used up."""
        doubled = 2 ** min(self.n_failed, MOST_DOUBLINGS)
        backoff_s = self.retries.first_wait_s * doubled * random.uniform(0.5, 1.0)
        wait_s = backoff_s if told_s is None else told_s
        self.n_failed += 1
        self.waited_s += wait_s
        self.left_s = self.deadline - time.monotonic() - wait_s
        is_over = self.waited_s > self.retries.max_wait_s or self.left_s < 0
        return None if self.n_failed > self.retries.most or is_over else wait_s


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds by a Retry-After header, which holds seconds or a date; None where it says nothing we understand."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def answer(response: httpx.Response, read: Callable[[dict[str, Any]], Found]) -> Found:
    """What ``read`` finds in an answer's JSON object; raises RequestFailed where it is none of Classmith's."""
    found = _read(response)
    if not isinstance(found, dict):
        raise refusal(response.status_code, None, None)
    with understood(response.status_code):
        return read(found)


def _read(response: httpx.Response) -> object:
    try:
        found: object = response.json()
    except ValueError:
        return None
    return found
