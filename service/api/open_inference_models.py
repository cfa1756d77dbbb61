"""The Open Inference Protocol's extensions about models: statistics, and the repository with load and unload.

Loading and unloading is about memory alone: a task that is not in memory is loaded by its next request, so unloading
one frees what it takes until then, and takes it from nobody.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from models.errors import InvalidRequest
from service.api import bodies, openapi
from service.api import open_inference_openapi as document
from service.api.open_inference import VERSION
from service.api.open_inference_schemas import IndexedModelOut, RepositoryControlIn, RepositoryIndexIn
from service.api.state import Served, served
from service.observability.statistics import Tally
from service.ports import State, TaskRecord

router = APIRouter(tags=["open inference protocol"], route_class=openapi.PlainRoute)
PAGE, MAX_LISTED = 500, 10_000
"""Lists here have no pages: they end after the newest ``MAX_LISTED`` tasks; GET /tasks has them all."""
STATES: dict[State, Any] = {"ready": "READY", "queued": "LOADING", "generating": "LOADING", "failed": "UNAVAILABLE"}


@router.get("/v2/models/stats", **document.ALL_STATISTICS)
async def all_statistics(request: Request) -> Response:
    """What each of the caller's tasks has answered in this process."""
    here, tenant = served(request)
    return _statistics(here, tenant, await _all(here, tenant))


@router.get("/v2/models/{model}/stats", **document.STATISTICS)
@router.get("/v2/models/{model}/versions/1/stats", include_in_schema=False)
async def statistics(request: Request) -> Response:
    """What a task has answered in this process, whichever call asked."""
    here, tenant = served(request)
    return _statistics(here, tenant, [await here.tasks.get(tenant, request.path_params["model"])])


@router.post("/v2/repository/index", **document.INDEX)
async def index(request: Request) -> Response:
    """The caller's tasks, newest first."""
    here, tenant = served(request)
    asked = await bodies.read_json(request, lambda body: bodies.parse_json(body or b"{}", RepositoryIndexIn))
    records = [record for record in await _all(here, tenant) if record.state == "ready" or not asked.ready]
    listed = [IndexedModelOut(name=r.id, version=VERSION, state=STATES[r.state], reason=_reason(r)) for r in records]
    return Response(orjson.dumps([model.model_dump() for model in listed]), media_type=bodies.JSON)


@router.post("/v2/repository/models/{model}/load", **document.LOAD)
async def load(request: Request) -> Response:
    """Make a task's classifier ready in memory, so that its next request does not wait for that."""
    here, tenant = served(request)
    await _check_control(request)
    await here.tasks.load(tenant, request.path_params["model"])
    return Response(b"{}", media_type=bodies.JSON)


@router.post("/v2/repository/models/{model}/unload", **document.UNLOAD)
async def unload(request: Request) -> Response:
    """Take a task's classifier out of memory; the task stays, and its next request loads it again."""
    here, tenant = served(request)
    await _check_control(request)
    await here.tasks.unload(tenant, request.path_params["model"])
    return Response(b"{}", media_type=bodies.JSON)


async def _check_control(request: Request) -> None:
    """Raise InvalidRequest where a model of the client's own is to be loaded: tasks are made by POST /tasks alone."""
    asked = await bodies.read_json(request, lambda body: bodies.parse_json(body or b"{}", RepositoryControlIn))
    if unknown := set(asked.parameters) - {"unload_dependents"}:
        message = f"{min(unknown)[:100]!r} is not taken: tasks are made by POST /tasks, and load as they are."
        raise InvalidRequest(message, where="parameters")


async def _all(here: Served, tenant: str) -> list[TaskRecord]:
    records, more = await here.tasks.page(tenant, limit=PAGE, after=None)
    while more and len(records) < MAX_LISTED:
        page, more = await here.tasks.page(tenant, limit=PAGE, after=records[-1].position)
        records += page
    return records


def _reason(record: TaskRecord) -> str:
    return (record.error or "") if record.state == "failed" else ""


def _statistics(here: Served, tenant: str, records: list[TaskRecord]) -> Response:
    found = [_model_statistics(record.id, here.tasks.statistics.of(tenant, record.id)) for record in records]
    return Response(orjson.dumps({"model_stats": found}), media_type=bodies.JSON)


def _model_statistics(task_id: str, tally: Tally) -> dict[str, Any]:
    """Runs are shared by requests, and of tasks by each other, so a request counts as one execution."""
    n = tally.n_requests
    return {
        "name": task_id,
        "version": VERSION,
        "last_inference": round(tally.last_at * 1e3),
        "inference_count": tally.n_images,
        "execution_count": n,
        "inference_stats": {
            "success": _duration(n, tally.total_ms),
            "fail": _duration(tally.n_failed, tally.failed_ms),
            "queue": _duration(n, tally.queue_ms),
            "compute_input": _duration(n, tally.decode_ms),
            "compute_infer": _duration(n, tally.run_ms),
            "compute_output": _duration(0, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [],
    }


def _duration(count: int, total_ms: float) -> dict[str, int]:
    return {"count": count, "ns": round(total_ms * 1e6)}
