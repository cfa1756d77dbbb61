"""Explanations over HTTP: why an image is classified as it is, and how far a task changed the network."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from models.errors import InvalidRequest
from service.api import bodies, openapi
from service.api.predict import encoded_images
from service.api.state import served

router = APIRouter(tags=["explanations"], route_class=openapi.PlainRoute)


@router.post("/tasks/{task_id}/explain", **openapi.EXPLAIN)
async def explain(request: Request) -> Response:
    """What in one image and in the descriptions carried the decision; the image comes as for predict."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    images = await encoded_images(request, here.settings)
    if len(images) != 1:
        raise InvalidRequest(f"Exactly one image is explained at a time, not {len(images)}; send one.", where="images")
    explanation = await here.tasks.explain(tenant, request.path_params["task_id"], images[0])
    return Response(orjson.dumps(explanation), media_type=bodies.JSON)


@router.get("/tasks/{task_id}/adaptation", **openapi.ADAPTATION)
async def adaptation(request: Request) -> Response:
    """How far the task changed each layer of the base network that it adapts."""
    here, tenant = served(request)
    bodies.check_query(request, ())
    layers = await here.tasks.changes(tenant, request.path_params["task_id"])
    return Response(orjson.dumps({"layers": layers}), media_type=bodies.JSON)
