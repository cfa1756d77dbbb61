"""Calls are made again where that makes sense, when and as often as said, and without doing things twice."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from service.client import (
    AsyncClassmith,
    Classmith,
    NotAllowed,
    NotFound,
    RequestFailed,
    Retries,
    TooBusy,
    Unreachable,
    UnusableInput,
    calls,
)
from service.client.retries import Attempts, retry_after_s
from tests.service.client.scripted import DROP, TASK, Answer, as_json, problem, serving

QUICK = Retries(most=3, max_wait_s=30.0, first_wait_s=0.001)
IDENT = TASK["id"]
CLASSES = {"a": b"one", "b": {"description": "two", "images": [b"two"]}}
Ask = Callable[..., str]


def waiting(url: str, call: str, *arguments: object, read_s: float | None = 120.0, **options: object) -> str:
    """The id of the task that a call of the blocking client gives; ``read_s``: its HTTP client's time-out."""
    with Classmith(url, retries=QUICK, timeout_s=read_s) as client:  # type: ignore[arg-type]
        return str(getattr(client, call)(*arguments, **options).id)


def awaiting(url: str, call: str, *arguments: object, read_s: float | None = 120.0, **options: object) -> str:
    async def ask() -> str:
        async with AsyncClassmith(url, retries=QUICK, timeout_s=read_s) as client:  # type: ignore[arg-type]
            return str((await getattr(client, call)(*arguments, **options)).id)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [waiting, awaiting])


@both
@pytest.mark.parametrize("refusal", [problem(429, Retry_After="0"), problem(503), Answer(502, b"<html>"), DROP],
                         ids=["429", "503", "502", "dropped"])  # fmt: skip
def test_what_may_pass_is_asked_again(ask: Ask, refusal: Answer) -> None:
    with serving(refusal, refusal, as_json(TASK)) as script:
        assert ask(script.url, "task", IDENT) == IDENT
    assert [asked.path for asked in script.asked] == [f"/tasks/{IDENT}"] * 3


@both
def test_a_repeated_create_is_the_same_request_under_the_same_key(ask: Ask) -> None:
    with serving(DROP, problem(429, Retry_After="0"), as_json(TASK, 201)) as script:
        ask(script.url, "create", CLASSES)
    keys = {asked.headers["Idempotency-Key"] for asked in script.asked}
    assert len(keys) == 1
    assert len({asked.body for asked in script.asked}) == 1
    with serving(as_json(TASK, 201)) as later:
        ask(later.url, "create", CLASSES)
    assert later.asked[0].headers["Idempotency-Key"] not in keys


@both
def test_it_gives_up_after_the_tries_it_has(ask: Ask) -> None:
    with serving(*[problem(503)] * 4) as script, pytest.raises(TooBusy) as caught:
        ask(script.url, "task", IDENT)
    assert len(script.asked) == 1 + QUICK.most
    assert caught.value.problem.status == 503
    with serving(*[DROP] * 4) as script, pytest.raises(Unreachable, match="classmith serve"):
        ask(script.url, "task", IDENT)


@both
@pytest.mark.parametrize(("status", "n_asked", "words"), [
    (502, 4, "Bad Gateway: The answer was 502, from a balancer that reaches no service now"),
    (503, 4, "Service Unavailable: The answer was 503, from a balancer that reaches no service now"),
    (504, 1, "Gateway Timeout: The answer was 504, from a balancer whose service gave it no answer in time"),
])  # fmt: skip
def test_a_balancer_without_a_service_is_said_to_be_one(ask: Ask, status: int, n_asked: int, words: str) -> None:
    refusals = [Answer(status, b"<html>")] * n_asked
    with serving(*refusals) as script, pytest.raises(TooBusy, match=words):
        ask(script.url, "task", IDENT)


@both
def test_it_waits_as_long_as_the_service_says(ask: Ask) -> None:
    with serving(problem(429, Retry_After="1"), as_json(TASK)) as script:
        began_at = time.monotonic()
        ask(script.url, "task", IDENT)
        assert time.monotonic() - began_at >= 1.0


@both
def test_a_wait_over_the_cap_is_not_waited(ask: Ask) -> None:
    with serving(problem(429, Retry_After="3600")) as script, pytest.raises(TooBusy) as caught:
        ask(script.url, "task", IDENT)
    assert caught.value.retry_after_s == 3600.0
    assert len(script.asked) == 1


@both
def test_a_wait_over_the_time_for_a_task_is_not_waited(ask: Ask) -> None:
    with serving(problem(429, Retry_After="20")) as script, pytest.raises(TooBusy):
        ask(script.url, "create", CLASSES, timeout_s=2.0)
    with serving(problem(429, Retry_After="0"), as_json(TASK)) as script:
        ask(script.url, "create", CLASSES, timeout_s=60.0)
    with serving(problem(429, Retry_After="1"), as_json({**TASK, "state": "queued"})) as script:  # it stays on its own
        ask(script.url, "create", CLASSES, timeout_s=0.0, wait=False)


@both
@pytest.mark.parametrize(("timeout_s", "read_s", "prefer"), [
    (300.0, 120.0, "wait=30"), (300.0, None, "wait=30"), (2.9, 120.0, "wait=2"), (300.0, 10.0, "wait=5"),
    (-1.0, 120.0, "respond-async"),
])  # fmt: skip
def test_the_answer_to_create_is_asked_for_in_time(
    ask: Ask, timeout_s: float, read_s: float | None, prefer: str
) -> None:
    with serving(as_json(TASK, 201)) as script:
        ask(script.url, "create", CLASSES, timeout_s=timeout_s, read_s=read_s)
    assert script.asked[0].headers["Prefer"] == prefer


@both
@pytest.mark.parametrize(("timeout_s", "answers"), [(2.0, []), (12.0, [as_json(TASK)])], ids=["over", "left"])
def test_the_time_that_a_refusal_took_is_gone(ask: Ask, timeout_s: float, answers: list[Answer]) -> None:
    answered = threading.Event()
    refusal = replace(problem(503, Retry_After="1"), held=answered)
    with serving(refusal, *answers) as script:
        threading.Timer(4.0, answered.set).start()
        with nullcontext() if answers else pytest.raises(TooBusy):
            ask(script.url, "create", CLASSES, timeout_s=timeout_s)
    first, *again = [int(asked.headers["Prefer"].removeprefix("wait=")) for asked in script.asked]
    assert first == timeout_s
    assert [1 <= stay_s < first - 2 for stay_s in again] == [True] * len(answers)


@pytest.mark.parametrize(("left_s", "prefer"), [(60.0, "wait=20"), (5.9, "wait=5"), (0.9, "respond-async")])
def test_a_try_asks_for_no_more_than_the_time_left(left_s: float, prefer: str) -> None:
    call = calls.create({}, stay_s=20.0)
    first, again = (call.within(seconds)["headers"] for seconds in (math.inf, left_s))
    assert (first["Prefer"], again["Prefer"]) == ("wait=20", prefer)
    assert first["Idempotency-Key"] == again["Idempotency-Key"]


@both
def test_an_answer_that_comes_too_late_does_not_mean_that_nobody_is_there(ask: Ask) -> None:
    go_on = threading.Event()
    with serving(replace(as_json(TASK), held=go_on)) as script:
        with pytest.raises(Unreachable, match="no answer in time"):
            ask(script.url, "task", IDENT, read_s=0.2)
        go_on.set()


@both
@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAllowed), (403, NotAllowed), (404, NotFound), (422, RequestFailed)]
)
def test_a_plain_no_is_final_and_carries_the_problem_document(ask: Ask, status: int, kind: type[RequestFailed]) -> None:
    with serving(problem(status, "Impossible task")) as script, pytest.raises(kind) as caught:
        ask(script.url, "create", CLASSES)
    assert len(script.asked) == 1
    found = caught.value.problem
    assert (found.status, found.title, found.detail, found.request_id) == (status, "Impossible task", "Because.", "r1")
    assert found.errors[0].where == "here"
    assert str(caught.value) == "Impossible task: Because. (here)"
    with serving(problem(500, "Internal error")) as script, pytest.raises(RequestFailed, match="request_id r1"):
        ask(script.url, "create", CLASSES)


@both
@pytest.mark.parametrize("answer", [
    Answer(200, b"<html>"), Answer(404, b"<html>"), as_json([1]), as_json({"detail": "x"}, 400), Answer(500),
    as_json({"status": "ok"}), as_json({**TASK, "classes": "all"}), as_json({**TASK, "created_at": "today"}),
])  # fmt: skip
def test_what_is_not_classmith_is_said_to_be_so(ask: Ask, answer: Answer) -> None:
    with serving(answer) as script, pytest.raises(RequestFailed, match="not Classmith"):
        ask(script.url, "task", IDENT)


def test_json_of_something_else_is_said_to_be_so_by_every_call() -> None:
    other = as_json({"status": "ok"})
    with serving(as_json(TASK), *[other] * 4) as script, Classmith(script.url) as client:
        task = client.task(IDENT)
        for use in (lambda: list(client.tasks()), client.meta_models, lambda: task.predict(b"image"), task.adaptation):
            with pytest.raises(RequestFailed, match="not Classmith"):
                use()


def test_a_delete_whose_answer_was_lost_is_done_and_one_of_nothing_is_not() -> None:
    with serving(as_json(TASK), DROP, problem(404)) as script, Classmith(script.url, retries=QUICK) as client:
        client.task(IDENT).delete()
    with serving(as_json(TASK), problem(404)) as script, Classmith(script.url, retries=QUICK) as client:
        task = client.task(IDENT)
        with pytest.raises(NotFound):
            task.delete()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[broken"])
@both
def test_an_address_without_a_service(ask: Ask, url: str) -> None:
    with pytest.raises(Unreachable, match="No service answers at"):
        ask(url, "task", IDENT)


@pytest.mark.parametrize("url", ["localhost:8137", "127.0.0.1:8137", "nonsense", "ftp://127.0.0.1"])
@both
def test_an_address_without_its_scheme_is_said_to_be_wrong(ask: Ask, url: str) -> None:
    with pytest.raises(UnusableInput, match="does not begin with http://"):
        ask(url, "task", IDENT)


@pytest.mark.parametrize("key", ["secret\n", "se cret", "\u0441\u0435\u043a\u0440\u0435\u0442"])
@pytest.mark.parametrize("kind", [Classmith, AsyncClassmith])
def test_a_key_that_no_header_carries_is_wrong_input_and_kept_to_ourselves(kind: type, key: str) -> None:
    with pytest.raises(UnusableInput, match="A key is visible ASCII") as caught:
        kind("http://127.0.0.1:1", key)
    assert key.strip() not in str(caught.value)


@pytest.mark.parametrize("ident", [None, 3, "", "..", "\ud800"])
@both
def test_what_is_no_id_is_wrong_input(ask: Ask, ident: object) -> None:
    with serving() as script, pytest.raises(UnusableInput, match="id is a string"):
        ask(script.url, "task", ident)


def test_a_closed_client_says_so() -> None:
    queued = {**TASK, "state": "queued"}
    with serving(as_json(queued)) as script, Classmith(script.url) as client:
        task = client.task(IDENT)
    for use in (task.refresh, task.wait):
        with pytest.raises(Unreachable, match="is closed"):
            use()


def test_a_closed_asynchronous_client_says_so() -> None:
    async def ask() -> None:
        async with AsyncClassmith(script.url) as client:
            task = await client.task(IDENT)
        for use in (task.refresh, task.wait):
            with pytest.raises(Unreachable, match="is closed"):
                await use()

    with serving(as_json({**TASK, "state": "queued"})) as script:
        asyncio.run(ask())


def test_waits_double_with_jitter_and_are_counted_together() -> None:
    attempts = Attempts("", Retries(most=10, max_wait_s=10.0, first_wait_s=1.0))
    lost = httpx.ConnectError("x")
    waits = [attempts.after_error(lost) for _ in range(3)]
    assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits))
    with pytest.raises(RequestFailed):  # seven seconds at most were waited; these would be too many
        attempts.after(httpx.Response(429, headers={"Retry-After": "7"}, request=httpx.Request("GET", "http://x")))
    with pytest.raises(Unreachable):  # the service is there, and slow: asking again would make it slower
        Attempts("", Retries()).after_error(httpx.ReadTimeout("x"))


def test_a_patient_caller_may_be_told_to_wait_any_number_of_times() -> None:
    attempts = Attempts("", Retries(most=10_000, max_wait_s=math.inf, first_wait_s=0.25))
    busy = httpx.Response(429, headers={"Retry-After": "1"}, request=httpx.Request("GET", "http://x"))
    assert {attempts.after(busy) for _ in range(2_000)} == {1.0}
    assert attempts.after_error(httpx.ConnectError("x")) < 1e9


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert retry_after_s(httpx.Headers({"Retry-After": "12"})) == 12.0
    assert 90.0 < (retry_after_s(httpx.Headers({"Retry-After": soon})) or 0.0) <= 100.0
    assert retry_after_s(httpx.Headers({"Retry-After": "Sat, 21 Nov 2020 00:00:00 GMT"})) == 0.0
    assert retry_after_s(httpx.Headers({"Retry-After": "soon"})) is None
    assert retry_after_s(httpx.Headers()) is None


def test_what_travels() -> None:
    with serving(as_json(TASK, 201), as_json({"why": 1})) as script, Classmith(script.url, "a-key") as client:
        explained = client.create(CLASSES, unlabeled=[b"three"], meta_model="some").explain(b"image")
    created, explain = script.asked
    assert json.loads(created.body) == {
        "classes": [
            {"name": "a", "description": "", "images": ["b25l"]},
            {"name": "b", "description": "two", "images": ["dHdv"]},
        ],
        "unlabeled": ["dGhyZWU="],
        "generator": "some",
    }
    assert created.headers["Authorization"] == "Bearer a-key"
    assert (explain.method, explain.path, explained) == ("POST", f"/tasks/{IDENT}/explain", {"why": 1})
    assert b"image" in explain.body


def test_tasks_are_fetched_page_by_page() -> None:
    older = {**TASK, "id": "1" * 32}
    first, second = {"tasks": [TASK], "next": "/below/tasks?limit=7&after=01ab"}, {"tasks": [older], "next": None}
    with serving(as_json(first), as_json(second)) as script, Classmith(script.url) as client:
        assert [task.id for task in client.tasks()] == [IDENT, "1" * 32]
    assert script.asked[1].path == "/tasks?limit=100&after=01ab"
