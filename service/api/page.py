"""For browsers: the page, the interactive documentation, and the few files they need, all served from here.

Nothing is fetched from elsewhere, and no script or style runs that is not a file of ours: the policies say so to the
browser. Files come with an ETag and are asked for again each time, so that a page never runs with yesterday's script.
"""

from __future__ import annotations

import json
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, HTTPException, Request, Response

from service.api.openapi import PlainRoute
from service.demo import examples

router = APIRouter(route_class=PlainRoute, include_in_schema=False)
OURS, SWAGGER = resources.files("service") / "web", resources.files("fastapi_swagger") / "resources"
MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
ASSETS: dict[str, Traversable] = {
    **{file.name: file for file in OURS.iterdir() if file.name.rpartition(".")[2] in MEDIA_TYPES},
    "swagger-ui.css": SWAGGER / "swagger-ui.css",
    "swagger-ui-bundle.js": SWAGGER / "swagger-ui-bundle.js",
}
NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; script-src 'self'"
STRICT = (
    f"{NOTHING_ELSE}; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""``blob:``: previews of images that the user chose. Trusted types, none of them: no text ever becomes markup."""
FOR_DOCS = f"{NOTHING_ELSE}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
"""Swagger UI sets styles from script."""


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return _html(request, "index.html", STRICT)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The interactive documentation, without a byte from elsewhere."""
    return _html(request, "docs.html", FOR_DOCS)


@router.get("/assets/{name}")
async def asset(request: Request) -> Response:
    """A static file, by its name in a fixed list."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    return _file(request, ASSETS[name].read_bytes(), MEDIA_TYPES[name.rpartition(".")[2]])


@router.get("/examples")
async def example_list(request: Request) -> Response:
    """The tasks that the page offers as examples."""
    return _file(request, json.dumps(examples.listing()).encode(), "application/json")


@router.get("/examples/{name}")
async def example_image(request: Request) -> Response:
    """An image of an example."""
    found = examples.image(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    return _file(request, *found)


def _html(request: Request, name: str, policy: str) -> Response:
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return _file(request, (OURS / name).read_bytes(), "text/html", headers)


def _file(request: Request, content: bytes, media_type: str, headers: dict[str, str] | None = None) -> Response:
    """The file, or 304 where the browser has this very one."""
    etag = f'"{sha256(content).hexdigest()[:16]}"'
    sent = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    return Response(content, headers=sent, media_type=media_type)
