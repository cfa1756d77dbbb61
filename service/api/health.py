"""For operators: liveness, readiness, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from models.errors import Unavailable
from service.api.openapi import PlainRoute
from service.api.state import running
from service.catalogue import nothing_in
from service.observability.telemetry import CONTENT_TYPE

router = APIRouter(route_class=PlainRoute, tags=["operations"])
ANSWERS_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}


@router.get("/healthz", responses=ANSWERS_JSON)
async def healthz(request: Request) -> Response:
    """The process is alive."""
    return Response('{"status":"ok"}', media_type="application/json")


@router.get("/readyz", responses={**ANSWERS_JSON, 503: {"description": "Starting, stopping, or a tier is missing."}})
async def readyz(request: Request) -> Response:
    """The process can take work: a meta-model is loaded, the store answers, and nobody told it to stop."""
    await check_ready(request)
    return Response('{"status":"ready"}', media_type="application/json")


async def check_ready(request: Request) -> None:
    """Raise Unavailable where the process cannot take work."""
    here = running(request)
    if here.stopping.is_set():
        raise Unavailable("The service is stopping.")
    if not here.tasks.loader.catalogue.names:
        raise Unavailable(nothing_in(here.settings.meta_models))
    await asyncio.to_thread(here.tasks.store.ping)


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics; they name no task and no tenant."""
    here = running(request)
    siblings, own = here.siblings, here.metrics
    text = await siblings.render(own) if siblings else await asyncio.to_thread(own.render)
    return Response(text, media_type=CONTENT_TYPE)
