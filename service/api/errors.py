"""From the tree of domain errors to RFC 9457 problem documents: the one table of statuses.

A problem says what was wrong (``detail``), where (``errors[].where``, e.g. ``classes[2].images[0]``), what to do about
it, and the request's id, which the log line of the request carries too.
"""

from __future__ import annotations

import json
import logging
import math
import re
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from models import errors
from service.observability.telemetry import request_id

STATUS: dict[type[errors.ClassmithError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "Malformed request"),
    errors.BrokenImage: (400, "Broken image"),
    errors.UnsupportedMedia: (415, "Unsupported media type"),
    errors.TooLarge: (413, "Too large"),
    errors.ImpossibleTask: (422, "Impossible task"),
    errors.Unauthenticated: (401, "Not authenticated"),
    errors.Forbidden: (403, "Not allowed"),
    errors.QuotaExceeded: (403, "Quota exceeded"),
    errors.NotFound: (404, "Not found"),
    errors.Conflict: (409, "Conflict"),
    errors.ReusedKey: (422, "Idempotency key reused"),
    errors.Busy: (429, "Too busy"),
    errors.RateLimited: (429, "Rate limit exceeded"),
    errors.Unavailable: (503, "Unavailable"),
    errors.GenerationFailed: (500, "Generation failed"),
    errors.CorruptBundle: (500, "Corrupt bundle"),
    errors.InvalidMetaModel: (500, "Invalid meta-model"),
    errors.ClassmithError: (500, "Internal error"),
}
CLIENT_WENT_AWAY = 499
"""No status of HTTP's, and sent to nobody: what is counted where the client left before its answer."""
PROBLEM_JSON = "application/problem+json"
FRAMEWORK_REMEDY = {
    404: "No such address here; see /docs for the calls there are.",
    405: "This address does not take that method; see the Allow header, or /docs.",
}
PROBLEMS = {
    "extra_forbidden": "there is no such field; leave it out, or check its spelling",
    "missing": "this field is missing",
    "string_type": "this must be a string",
    "int_type": "this must be a whole number",
    "bool_type": "this must be true or false",
    "list_type": "this must be an array, [...]",
    "dict_type": "this must be an object, {...}",
    "model_type": "this must be an object, {...}",
}
"""What pydantic finds, in the words of JSON rather than Python; the rest is clear enough in its own."""
OPEN_INFERENCE = re.compile(r"/v2(/|$)")
log = logging.getLogger("classmith.api")


def install(app: FastAPI) -> None:
    """Answer every exception, the framework's own included, with a problem document."""
    app.add_exception_handler(errors.ClassmithError, domain_problem)
    app.add_exception_handler(HTTPException, framework_problem)
    app.add_exception_handler(ClientDisconnect, nobody_there)
    app.add_exception_handler(Exception, unexpected_problem)


def status_of(error: errors.ClassmithError) -> tuple[int, str]:
    """(HTTP status, title) of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


async def domain_problem(request: Request, error: Exception) -> Response:
    """The problem document of a domain error, when the framework meets one."""
    assert isinstance(error, errors.ClassmithError)
    return refusal(request.scope["path"], error)


def refusal(path: str, error: errors.ClassmithError) -> Response:
    """The problem document of a domain error."""
    status, title = status_of(error)
    if status == 500:
        log.error("request failed", exc_info=error, extra={"error_type": type(error).__name__})
    headers = {}
    if isinstance(error, errors.Busy):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 503:
        headers["Retry-After"] = "1"  # nobody knows when; another replica may answer at once
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="classmith"'
    return problem(path, status, title, error.message, where=[(error.where, error.message)], headers=headers)


async def framework_problem(request: Request, error: Exception) -> Response:
    """Unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = FRAMEWORK_REMEDY.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_at(request)))
    return problem(request.scope["path"], error.status_code, title, detail, headers=headers)


async def nobody_there(request: Request, error: Exception) -> Response:
    """The client went away before its answer: nothing of ours failed, and nobody reads this."""
    return Response(status_code=CLIENT_WENT_AWAY)


async def unexpected_problem(request: Request, error: Exception) -> Response:
    """A fault of ours: nothing of it goes to the client but the id under which the server logs it, and then closes."""
    detail = "Something went wrong in the service; the log has it under this request_id. Trying again may help."
    return problem(request.scope["path"], 500, "Internal error", detail, headers={"Connection": "close"})


def problem(
    path: str,
    status: int,
    title: str,
    detail: str,
    *,
    where: list[tuple[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An RFC 9457 response; below ``/v2`` one of the Open Inference Protocol."""
    if OPEN_INFERENCE.match(path):
        return _open_inference_error(status, detail, where or [], headers)
    body: dict[str, object] = {
        "type": f"urn:classmith:problem:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": path,
        "request_id": request_id.get(),
    }
    located = [{"where": place, "detail": message} for place, message in where or () if place]
    if located:
        body["errors"] = located
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")  # input may hold lone surrogates
    return Response(data, status, headers, media_type=PROBLEM_JSON)


def _open_inference_error(
    status: int, detail: str, where: list[tuple[str, str]], headers: dict[str, str] | None
) -> Response:
    place = f"{where[0][0]}: " if where and where[0][0] else ""
    place = "" if detail.startswith(place) else place
    data = json.dumps({"error": place + detail}, ensure_ascii=False).encode("utf-8", "replace")
    return Response(data, status, headers, media_type="application/json")


def _methods_at(request: Request) -> set[str]:
    """The methods of all calls at a request's address (the framework names those of one); HEAD goes with GET."""
    routes = [r for r in request.app.routes if isinstance(r, Route) and r.path_regex.match(request.scope["path"])]
    methods = {method for route in routes for method in route.methods or ()}
    return methods | {"HEAD"} if "GET" in methods else methods


def path_of(location: tuple[int | str, ...]) -> str:
    """``("classes", 2, "images", 0)`` -> ``classes[2].images[0]``."""
    parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in location]
    return "".join(parts).removeprefix(".")


def from_validation(details: list[ErrorDetails]) -> errors.InvalidRequest:
    """The first of pydantic's findings as a domain error."""
    first = details[0]
    where, problem = path_of(first["loc"]), PROBLEMS.get(first["type"], first["msg"])
    return errors.InvalidRequest(f"{where or 'The JSON'}: {problem}. See /docs for the shape.", where=where)
