"""A task's event stream: what breaks it off is mended, what ends it ends the waiting."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from service.client import (
    AsyncClassmith,
    Classmith,
    NotFound,
    RequestFailed,
    Retries,
    TaskFailed,
    TimedOut,
    TooBusy,
    following,
)
from tests.service.client.scripted import DROP, TASK, Answer, as_json, problem, serving

QUICK = Retries(most=4, max_wait_s=30.0, first_wait_s=0.001)
QUEUED, GENERATING = {**TASK, "state": "queued"}, {**TASK, "state": "generating"}
FAILED = {**TASK, "state": "failed", "error": "It broke."}
Wait = Callable[..., list[str]]


def stream(*events: tuple[str, object]) -> Answer:
    """As the service sends it, comments and a retry time included."""
    parts = [f"event: {name}\ndata: {json.dumps(data)}\n\n: still working\n\n" for name, data in events]
    return Answer(200, ("retry: 1000\n\n" + "".join(parts)).encode(), {"Content-Type": "text/event-stream"})


def states(*tasks: dict[str, object]) -> Answer:
    return stream(*((str(task["state"]), task) for task in tasks))


def waiting(url: str, timeout_s: float = 60.0) -> list[str]:
    """The states that the blocking client reports, from the creation on."""
    seen: list[str] = []
    with Classmith(url, retries=QUICK) as client:
        client.create({"a": b"1"}, timeout_s=timeout_s, progress=lambda info: seen.append(info.state))
    return seen


def awaiting(url: str, timeout_s: float = 60.0) -> list[str]:
    seen: list[str] = []

    async def create() -> None:
        async with AsyncClassmith(url, retries=QUICK) as client:
            await client.create({"a": b"1"}, timeout_s=timeout_s, progress=lambda info: seen.append(info.state))

    asyncio.run(create())
    return seen


both = pytest.mark.parametrize("wait", [waiting, awaiting])
MADE = as_json(QUEUED, 202)


@both
def test_each_change_is_reported_once(wait: Wait) -> None:
    with serving(MADE, states(QUEUED, GENERATING, GENERATING, TASK)) as script:
        assert wait(script.url) == ["queued", "generating", "ready"]
    assert script.asked[0].headers["Prefer"] == "respond-async"
    assert script.asked[1].path == f"/tasks/{TASK['id']}/events"


@both
@pytest.mark.parametrize("cut", [states(GENERATING), DROP, problem(503), Answer(502), problem(429, Retry_After="0")],
                         ids=["ended", "dropped", "503", "502", "429"])  # fmt: skip
def test_a_stream_that_breaks_off_is_opened_again(wait: Wait, cut: Answer) -> None:
    with serving(MADE, cut, states(GENERATING), cut, cut, states(TASK)) as script:
        assert wait(script.url)[-1] == "ready"
    assert len(script.asked) == 6


@both
def test_a_stream_that_never_comes_through_is_given_up(wait: Wait) -> None:
    with serving(MADE, *[problem(503)] * 5) as script, pytest.raises(TooBusy):
        wait(script.url)


@both
def test_only_failures_in_a_row_are_counted(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 2.0)
    go_on = threading.Event()
    quiet = replace(states(QUEUED), held=go_on)
    with serving(MADE, *[DROP, DROP, DROP, quiet] * 2, DROP, states(TASK)) as script:
        assert wait(script.url) == ["queued", "ready"]
        go_on.set()


@both
def test_a_service_that_asks_for_patience_is_given_no_more_than_there_is(wait: Wait) -> None:
    with serving(MADE, problem(503, Retry_After="20")) as script:
        began_at = time.monotonic()
        with pytest.raises(TimedOut, match="goes on"):
            wait(script.url, timeout_s=3.0)
        assert 2.9 < time.monotonic() - began_at < 10


@both
def test_failure_and_deletion_are_said(wait: Wait) -> None:
    with serving(MADE, states(GENERATING, FAILED)) as script, pytest.raises(TaskFailed, match="It broke"):
        wait(script.url)
    with serving(MADE, stream(("deleted", {"id": TASK["id"]}))) as script, pytest.raises(NotFound, match="deleted"):
        wait(script.url)
    with serving(MADE, problem(404, "Not found")) as script, pytest.raises(NotFound):
        wait(script.url)


@both
def test_comments_keep_nobody_waiting(wait: Wait) -> None:
    with serving(MADE, replace(states(QUEUED), n_comments=80)) as script:
        began_at = time.monotonic()
        with pytest.raises(TimedOut, match="goes on"):
            wait(script.url, timeout_s=1.0)
        assert 0.9 < time.monotonic() - began_at < 5


@both
@pytest.mark.parametrize("event", [
    stream(("ready", {"state": "ready"})), Answer(200, b"data: {\n\n", {"Content-Type": "text/event-stream"}),
])  # fmt: skip
def test_an_event_of_something_else_is_said_to_be_so(wait: Wait, event: Answer) -> None:
    with serving(MADE, event) as script, pytest.raises(RequestFailed, match="not Classmith"):
        wait(script.url)


@both
def test_no_time_left_is_no_time_waited(wait: Wait) -> None:
    with serving(MADE) as script, pytest.raises(TimedOut):
        wait(script.url, timeout_s=0.0)
    assert len(script.asked) == 1
