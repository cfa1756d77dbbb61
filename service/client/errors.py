"""What can go wrong between a caller and the service.

ClientError
├── UnusableInput       an image, a file, a class, an id or an address that cannot be used (also a ValueError)
├── Unreachable         no service answers at the address, or not in time, or the client is closed
├── TimedOut            the classifier was not made in the time given (also a TimeoutError)
└── RequestFailed       the service said no; carries its problem document
    ├── NotAllowed      no key, an unknown one, or not from there (401, 403)
    ├── NotFound        no such task, or not this key's (404)
    ├── TooBusy         too busy, shutting down, or not reached by its balancer: ask later (429, 502, 503, 504)
    └── TaskFailed      the classifier could not be made
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

SERVER_FAULT = 500
GENERATION_FAILED = "urn:classmith:problem:generation-failed"
IMAGE = re.compile(r"^images\[(\d+)\]")
"""Where an image of a request for predictions is at fault."""


@dataclass(frozen=True)
class Located:
    """What is wrong with one part of a request, e.g. ``classes[2].images[0]``."""

    where: str
    detail: str


@dataclass(frozen=True)
class Problem:
    """An RFC 9457 problem document: what was wrong and what to do (``detail``), where (``errors``)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    request_id: str = ""
    errors: tuple[Located, ...] = ()

    def __str__(self) -> str:
        places = [error.where for error in self.errors]
        if self.status >= SERVER_FAULT and self.request_id:
            places.append(f"request_id {self.request_id}")  # under which the service's log has it
        return f"{self.title}: {self.detail}" + (f" ({', '.join(places)})" if places else "")


class ClientError(Exception):
    """The root."""


class UnusableInput(ClientError, ValueError):
    """An image, a file, a class, an id or an address that cannot be used."""


class Unreachable(ClientError):
    """No service answers at the address, or not in time, or the client is closed."""


class TimedOut(ClientError, TimeoutError):
    """The classifier was not made in the time given; it is still being made."""


class RequestFailed(ClientError):
    """The service said no. ``problem``: its problem document; ``retry_after_s``: when it said to come back."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(problem, retry_after_s)
        self.problem = problem
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.problem)


class NotAllowed(RequestFailed):
    """No key, an unknown one, or not from there."""


class NotFound(RequestFailed):
    """No such task, or it is another's."""


class TooBusy(RequestFailed):
    """Too busy, shutting down, or not reached by its balancer; where that may pass soon, still so after the retries."""


class TaskFailed(RequestFailed):
    """The classifier could not be made."""


KINDS: Mapping[int, type[RequestFailed]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    429: TooBusy,
    502: TooBusy,
    503: TooBusy,
    504: TooBusy,
}
BALANCERS: Mapping[int, str] = {
    **dict.fromkeys((502, 503), "that reaches no service now; ask again, or look whether one runs behind it"),
    504: "whose service gave it no answer in time; ask later",
}
"""What these mean from something in front of the service, which writes no problem document."""


def refusal(status: int, document: object, retry_after_s: float | None) -> RequestFailed:
    """The exception for an answer that is no success. ``document``: its JSON, or None where it had none."""
    problem = _problem(status, document)
    kind = TaskFailed if problem.type == GENERATION_FAILED else KINDS.get(status, RequestFailed)
    return kind(problem, retry_after_s)


@contextmanager
def understood(status: int) -> Iterator[None]:
    """Within it an answer without the members it should have is not Classmith's: a RequestFailed, which says so."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refusal(status, None, None) from error


@contextmanager
def images_as(name: Callable[[int], str]) -> Iterator[None]:
    """Within it a refusal names an image as the caller knows it: by ``name`` of its number in the request."""
    try:
        yield
    except RequestFailed as error:
        problem = error.problem
        named = tuple(replace(e, where=IMAGE.sub(lambda at: name(int(at[1])), e.where)) for e in problem.errors)
        raise type(error)(replace(problem, errors=named), error.retry_after_s) from error.__cause__


def counted_from(first: int) -> Callable[[int], str]:
    """Of images that are sent some at a time: the number among all of them."""
    return lambda number: f"images[{first + number}]"


def unreachable(url: str, reason: Exception) -> Unreachable:
    """The exception where nothing answers."""
    remedy = "start one with `classmith serve`, or name another with --url or CLASSMITH_URL"
    error = Unreachable(f"No service answers at {url} ({str(reason) or type(reason).__name__}); {remedy}.")
    error.__cause__ = reason
    return error


def too_slow(url: str, reason: Exception) -> Unreachable:
    """The exception where a request was taken, and not answered in time."""
    error = Unreachable(f"{url} took the request and gave no answer in time; ask later, or with a longer timeout_s.")
    error.__cause__ = reason
    return error


def check_open(url: str, is_closed: bool) -> None:
    """Raises Unreachable where the client was closed before it was used."""
    if is_closed:
        raise Unreachable(f"The client of {url} is closed; make another, or close it after its last use.")


def _problem(status: int, document: object) -> Problem:
    try:
        return _parsed(document)  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError, ValueError):
        if status in BALANCERS:
            detail = f"The answer was {status}, from a balancer {BALANCERS[status]}."
            return Problem("about:blank", HTTPStatus(status).phrase, status, detail)
        detail = f"The answer was {status}, from something that is not Classmith; check the address."
        return Problem("about:blank", "Not understood", status, detail)


def _parsed(document: dict[str, Any]) -> Problem:
    return Problem(
        type=str(document["type"]),
        title=str(document["title"]),
        status=int(document["status"]),
        detail=str(document["detail"]),
        instance=str(document.get("instance", "")),
        request_id=str(document.get("request_id", "")),
        errors=tuple(Located(str(e["where"]), str(e["detail"])) for e in document.get("errors", ())),
    )
