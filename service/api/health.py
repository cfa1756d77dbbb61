"""For operators and browsers: liveness, readiness, metrics, the page, and the documentation, all served from here."""

from __future__ import annotations

import asyncio
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from models.errors import Unavailable
from service.api.openapi import PlainRoute
from service.api.state import running
from service.telemetry import CONTENT_TYPE

router = APIRouter(route_class=PlainRoute, tags=["operations"])
OURS, SWAGGER = resources.files("service") / "web", resources.files("fastapi_swagger") / "resources"
ASSETS: dict[str, tuple[Traversable, str]] = {
    "style.css": (OURS / "style.css", "text/css"),
    "docs.js": (OURS / "docs.js", "text/javascript"),
    "swagger-ui.css": (SWAGGER / "swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": (SWAGGER / "swagger-ui-bundle.js", "text/javascript"),
    "favicon.png": (SWAGGER / "favicon-32x32.png", "image/png"),
}
NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STRICT = f"{NOTHING_ELSE}; style-src 'self'; img-src 'self'"
FOR_DOCS = (
    f"{NOTHING_ELSE}; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
"""Swagger UI sets styles from script; no script but ours and its own runs, and nothing is fetched from elsewhere."""
ANSWERS_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}


@router.get("/healthz", responses=ANSWERS_JSON)
async def healthz(request: Request) -> Response:
    """The process is alive."""
    return Response('{"status":"ok"}', media_type="application/json")


@router.get("/readyz", responses={**ANSWERS_JSON, 503: {"description": "Starting, stopping, or a tier is missing."}})
async def readyz(request: Request) -> Response:
    """The process can take work: a meta-model is loaded, the store answers, and nobody told it to stop."""
    here = running(request)
    if here.stopping.is_set():
        raise Unavailable("The service is stopping.")
    if not here.tasks.loader.catalogue.names:
        raise Unavailable(f"No meta-model is loaded; put one into {here.settings.meta_models.name} and restart.")
    await asyncio.to_thread(here.tasks.store.ping)
    return Response('{"status":"ready"}', media_type="application/json")


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics; they name no task and no tenant."""
    return Response(await asyncio.to_thread(running(request).metrics.render), media_type=CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page."""
    return _html("index.html", STRICT)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The interactive documentation, without a byte from elsewhere."""
    return _html("docs.html", FOR_DOCS)


@router.get("/assets/{name}", include_in_schema=False)
async def asset(request: Request) -> Response:
    """A static file, by its name in a fixed list."""
    found = ASSETS.get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    file, media_type = found
    return Response(file.read_bytes(), headers={"Cache-Control": "max-age=3600"}, media_type=media_type)


def _html(name: str, policy: str) -> Response:
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Response((OURS / name).read_bytes(), headers=headers, media_type="text/html")
