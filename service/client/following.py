"""A task while it is made: what its event stream says, and how long to go on listening."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

import httpx
from httpx_sse import ServerSentEvent

from service.client.answers import TaskInfo, task_info
from service.client.errors import NotFound, Problem, TimedOut, understood
from service.client.retries import Attempts

QUIET_S = 5.0
"""A stream silent for so long is opened again, which shows at once how things stand."""
ENDED = httpx.RemoteProtocolError("the event stream ended early")
Ending: TypeAlias = httpx.Response | Exception | None
"""How a stream ended: refused, broken, or (None) it was only quiet."""


@dataclass(frozen=True)
class Until(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer's stream up to a deadline: comments, which are no events, may keep it from ever being quiet."""

    stream: Any
    deadline: float

    def __iter__(self) -> Iterator[bytes]:
        for part in self.stream:
            yield part
            self._check()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self.stream:
            yield part
            self._check()

    def close(self) -> None:
        """Of the stream itself."""
        self.stream.close()

    async def aclose(self) -> None:
        """Of the stream itself."""
        await self.stream.aclose()

    def _check(self) -> None:
        if time.monotonic() >= self.deadline:
            raise httpx.ReadTimeout("the deadline is over")


def deadline_in(timeout_s: float) -> float:
    """A time on the monotonic clock."""
    return time.monotonic() + timeout_s


def patience_s(deadline: float, info: TaskInfo) -> float:
    """How long to listen before looking again; raises TimedOut after the deadline."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimedOut(f"Task {info.id} is still {info.state}; it goes on being made, and task.wait() goes on waiting.")
    return min(QUIET_S, left_s)


def pause_s(attempts: Attempts, info: TaskInfo, ending: Ending, deadline: float) -> float:
    """Seconds until the stream is opened again, or the deadline; raises where its end was one failure too many."""
    if ending is None or info.is_finished:
        return 0.0
    wait_s = attempts.after_error(ending) if isinstance(ending, Exception) else attempts.after(ending) or 0.0
    return min(wait_s, max(0.0, deadline - time.monotonic()))


def change(event: ServerSentEvent, info: TaskInfo) -> TaskInfo:
    """The task after an event; raises NotFound where it was deleted."""
    if not event.data:  # it only says how soon to come back
        return info
    if event.event == "deleted":
        detail = f"Task {info.id} was deleted while it was made; create it again."
        raise NotFound(Problem("urn:classmith:problem:not-found", "Not found", 404, detail))
    with understood(HTTPStatus.OK):
        document = event.json()
        return task_info(document) if isinstance(document, dict) and "state" in document else info
