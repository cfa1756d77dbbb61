"""Tasks over HTTP: create, list, show, follow, delete, export."""

from __future__ import annotations

import asyncio
import json
import math
import re
import struct
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from models.errors import GenerationFailed, InvalidRequest
from service.api import bodies, openapi
from service.api.schemas import TaskListOut, task_out
from service.api.state import max_tasks, served
from service.api.task_body import read_task
from service.ports import Position, TaskRecord
from service.registration import Creation
from service.settings import Settings
from service.tasks import FINISHED

router = APIRouter(tags=["tasks"], route_class=openapi.PlainRoute)
PAGE, LARGEST_PAGE = 50, 500
KEEP_ALIVE_POLLS = 15
PREFERENCE = re.compile(r"\s*(?:(respond-async)|wait\s*=\s*\"?(\d{1,9})\"?)\s*", re.IGNORECASE)
CURSOR = re.compile(r"([0-9a-f]{16})([0-9a-f]{32})")
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@router.post("/tasks", **openapi.CREATE)
async def create(request: Request) -> Response:
    """Make a classifier of classes in words, in a few images, or both; equal requests give the same task."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    key = _idempotency_key(request)
    wait_s, applied = _wait_s(request, here.settings)
    asked = await read_task(request, here.settings)
    await bodies.check_pixels([image.data for image in asked.images], here.settings)
    creation = await here.tasks.create(tenant, asked, wait_s=wait_s, key=key, max_tasks=max_tasks(request))
    if creation.record.state == "failed" and wait_s > 0:  # who doesn't wait follows the task, and is told there
        record = creation.record
        raise GenerationFailed(f"{record.error} The task is kept as {record.id}; the same request tries again.")
    return _created(request, creation, applied)


@router.get("/tasks", **openapi.LIST)
async def page(request: Request) -> Response:
    """The caller's tasks, newest first."""
    here, tenant = served(request)
    bodies.check_query(request, ("limit", "after"))
    limit = bodies.integer(request, "limit", least=1, most=LARGEST_PAGE) or PAGE
    records, more = await here.tasks.page(tenant, limit=limit, after=_after(request))
    onward = f"{_root(request)}/tasks?limit={limit}&after={_cursor(records[-1].position)}" if more else None
    listed = TaskListOut(tasks=[task_out(record) for record in records], next=onward)
    headers = {"Link": f'<{onward}>; rel="next"'} if onward else {}
    return Response(listed.model_dump_json(), headers=headers, media_type=bodies.JSON)


@router.get("/tasks/{task_id}", **openapi.SHOW)
async def show(request: Request) -> Response:
    """One task."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    record = await here.tasks.get(tenant, request.path_params["task_id"])
    return _answer(request, record, 200)


@router.delete("/tasks/{task_id}", **openapi.DELETE)
async def delete(request: Request) -> Response:
    """Delete a task with everything kept of it."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    await here.tasks.delete(tenant, request.path_params["task_id"])
    return Response(status_code=204)


@router.get("/tasks/{task_id}/events", **openapi.EVENTS)
async def events(request: Request) -> Response:
    """Server-sent events: the task now and at each change, until it is ready, failed or deleted."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    changes = here.tasks.follow(tenant, request.path_params["task_id"])
    first = await anext(changes)  # an unknown task is a 404, not a stream
    stream = _event_stream(first, changes, here.stopping)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/tasks/{task_id}/model.onnx", **openapi.EXPORT)
async def export(request: Request) -> Response:
    """The classifier as one file that ONNX Runtime runs anywhere, without this service."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    record = await here.tasks.get(tenant, request.path_params["task_id"])
    headers = {"ETag": f'"{record.id}"'}
    if record.state == "ready" and _has(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    model = await here.tasks.export_model(tenant, record.id)
    headers["Content-Disposition"] = f'attachment; filename="{record.id}.onnx"'
    return Response(model, headers=headers, media_type="application/octet-stream")


def _cursor(position: Position) -> str:
    """A position as ``after`` takes it, with every bit of its time."""
    return struct.pack(">d", position.created_at).hex() + position.id


def _after(request: Request) -> Position | None:
    """The position to list from, or None for the first page; raises InvalidRequest."""
    text = request.query_params.get("after")
    if text is None:
        return None
    found = CURSOR.fullmatch(text)
    created_at = struct.unpack(">d", bytes.fromhex(found[1]))[0] if found else math.nan
    if found is None or not math.isfinite(created_at):
        message = "after is taken from the address that the page before gives as `next`; start at the first page."
        raise InvalidRequest(message, where="query.after")
    return Position(created_at, found[2])


def _wait_s(request: Request, settings: Settings) -> tuple[float, str | None]:
    """Seconds to wait, and the preference applied; as RFC 7240 says, one we don't understand is ignored."""
    is_async = False
    for preference in ",".join(request.headers.getlist("prefer")).replace(";", ",").split(","):
        found = PREFERENCE.fullmatch(preference)
        if found and found[2]:  # also beside respond-async: it says how long to wait before that
            seconds = min(float(found[2]), settings.max_wait_s)
            return seconds, f"wait={seconds:g}"
        is_async = is_async or found is not None
    return (0.0, "respond-async") if is_async else (settings.wait_s, None)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        message = "An Idempotency-Key has 1 to 255 visible ASCII characters, no spaces; a UUID is a good one."
        raise InvalidRequest(message, where="Idempotency-Key")
    return key


def _created(request: Request, creation: Creation, applied: str | None) -> Response:
    """201 made, 200 known, 202 still being made, or failed before an answer that was not to wait."""
    record = creation.record
    status = (201 if creation.made else 200) if record.state == "ready" else 202
    response = _answer(request, record, status)
    response.headers["Location"] = f"{_root(request)}/tasks/{record.id}"
    if applied:
        response.headers["Preference-Applied"] = applied
    if record.state not in FINISHED:
        response.headers["Retry-After"] = "1"
    return response


def _answer(request: Request, record: TaskRecord, status: int) -> Response:
    """A task, or 304 where the client has it already; only a finished task is worth an ETag."""
    headers = {"ETag": f'"{record.id}"'} if record.state == "ready" else {}
    if headers and request.method in ("GET", "HEAD") and _has(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(task_out(record).model_dump_json(), status, headers, media_type=bodies.JSON)


def _has(request: Request, etag: str) -> bool:
    """Whether the client has this version already, as RFC 9110 compares (section 13.1.2)."""
    held = request.headers.get("if-none-match", "")
    return held.strip() == "*" or etag in held


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


async def _event_stream(
    record: TaskRecord | None, changes: AsyncIterator[TaskRecord | None], stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    last, n_quiet = record, 0
    while not stopping.is_set():
        if record:
            last = record
            yield _event(record.state, task_out(record).model_dump_json())
        n_quiet = 0 if record else n_quiet + 1
        if n_quiet == KEEP_ALIVE_POLLS:
            n_quiet = 0
            yield b": still working\n\n"
        record = await anext(changes, last)
        if record is last:  # the end
            break
    if last and last.state not in FINISHED and not stopping.is_set():
        yield _event("deleted", json.dumps({"id": last.id}))


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
