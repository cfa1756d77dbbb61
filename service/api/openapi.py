"""The OpenAPI document of calls that read their bodies themselves: what /docs shows and the fuzz test reads."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.api import open_inference_openapi
from service.api.errors import PROBLEM_JSON
from service.api.schemas import (
    AdaptationOut,
    ExplanationOut,
    MetaModelListOut,
    PredictIn,
    PredictionsOut,
    ProblemOut,
    TaskIn,
    TaskListOut,
    TaskOut,
    TaskPartIn,
)

NEED_A_KEY = ("/tasks", "/meta-models", "/v2/models", "/v2/repository")
REF = "#/components/schemas/{model}"
ID_HEADER = {"ETag": {"description": "The task's id, once it is ready.", "schema": {"type": "string"}}}


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request as it is: what it reads is its own, and costs nothing more."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As the framework does; HEAD finds what GET finds, while the document lists GET alone."""
        return super().matches({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint, without FastAPI's reading of parameters and its stacks of contexts."""
        is_head = scope["method"] == "HEAD"
        if ("GET" if is_head else scope["method"]) not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(Request(scope, receive, send))
        if is_head:  # not left to the server, which would run a stream to its end to drop it
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await response(scope, receive, send)


def install(app: FastAPI, *, with_keys: bool) -> None:
    """Make ``app.openapi`` give the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, with_keys=with_keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents


def _document(app: FastAPI, *, with_keys: bool) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (TaskIn, TaskPartIn, PredictIn, ProblemOut, *open_inference_openapi.SENT):
        schema = model.model_json_schema(ref_template=REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, calls in found["paths"].items():
            if path.startswith(NEED_A_KEY):
                for call in calls.values():
                    call["security"] = [{"key": []}]
    return found


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": REF.format(model=model.__name__)}


def _problems(**details: str) -> dict[int | str, dict[str, Any]]:
    """``_404="..."`` -> a problem document as the 404 answer; any other error is one, too."""
    answers = {int(status[1:]): text for status, text in details.items()}
    everywhere = {400: "Malformed.", 401: "No key, or an unknown one.", 403: "Not allowed from there."}
    later = {429: "Too busy; see Retry-After.", 503: "Not now; see Retry-After."}
    content = {PROBLEM_JSON: {"schema": _ref(ProblemOut)}}
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": content} for status, text in {**everywhere, **answers, **later}.items()
    }
    return {**found, "default": {"description": "Any other error.", "content": content}}


def _parameter(place: str, name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "schema": schema, "description": text}


TASK_ID = _parameter("path", "task_id", {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "The task's id.")
FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
JSON_OF_TASK = {"description": "The task.", "model": TaskOut, "headers": ID_HEADER}
UNKNOWN = "No such task of yours."
LOCATION = {**ID_HEADER, "Location": {"description": "The task's address.", "schema": {"type": "string"}}}

CREATE: dict[str, Any] = {
    "status_code": 201,
    "responses": {
        200: {"description": "It was there already.", "model": TaskOut, "headers": LOCATION},
        201: {"description": "It was made.", "model": TaskOut, "headers": LOCATION},
        202: {"description": "It is still being made, or failed at once.", "model": TaskOut, "headers": LOCATION},
        **_problems(
            _413="Over a limit.",
            _415="Not a body, or not an image, that is taken.",
            _422="No classifier can be made of this, or the Idempotency-Key came with another request.",
        ),
    },
    "openapi_extra": {
        "parameters": [
            _parameter("header", "Prefer", {"type": "string"}, "`wait=10` bounds the wait to 10 seconds."),
            _parameter("header", "Idempotency-Key", {"type": "string"}, "Repeat a request safely: it is done once."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref(TaskIn)},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "description": "A file part for each image, named after its class; `unlabeled`: images of no "
                        "stated class; `task`: descriptions.",
                        "properties": {"task": _ref(TaskPartIn), "unlabeled": FILES},
                        "additionalProperties": FILES,
                    },
                    "encoding": {"task": {"contentType": "application/json"}},
                },
            },
        },
    },
}
LIST: dict[str, Any] = {
    "responses": {200: {"description": "One page.", "model": TaskListOut}, **_problems()},
    "openapi_extra": {
        "parameters": [
            _parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 500}, "Tasks a page (50)."),
            _parameter("query", "after", {"type": "string"}, "From the address that the page before gives as `next`."),
        ]
    },
}
SHOW: dict[str, Any] = {
    "responses": {200: JSON_OF_TASK, 304: {"description": "You have it."}, **_problems(_404=UNKNOWN)},
    "openapi_extra": {"parameters": [TASK_ID]},
}
DELETE: dict[str, Any] = {
    "status_code": 204,
    "responses": _problems(_404=UNKNOWN),
    "openapi_extra": {"parameters": [TASK_ID]},
}
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
EVENTS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "Server-sent events: `event` is the state (or `deleted`), `data` the task as JSON.",
            "content": {"text/event-stream": {"schema": EVENT}},
        },
        **_problems(_404=UNKNOWN),
    },
    "openapi_extra": {"parameters": [TASK_ID]},
}
EXPORT: dict[str, Any] = {
    "responses": {
        200: {
            "description": "An ONNX file: uint8 `pixels` in, `probabilities` out.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **_problems(_404=UNKNOWN, _409="Not ready."),
    },
    "openapi_extra": {"parameters": [TASK_ID]},
}
META_MODELS: dict[str, Any] = {
    "responses": {200: {"description": "All of them.", "model": MetaModelListOut}, **_problems()},
}
IMAGE = {"schema": {"type": "string", "format": "binary"}}
IMAGES: dict[str, Any] = {
    "required": True,
    "content": {
        "image/png": IMAGE,
        "image/jpeg": IMAGE,
        "image/webp": IMAGE,
        "application/json": {"schema": _ref(PredictIn)},
        "multipart/form-data": {"schema": {"type": "object", "additionalProperties": FILES}},
    },
}
PREDICT: dict[str, Any] = {
    "responses": {
        200: {"description": "The answers, in the order of the images.", "model": PredictionsOut},
        **_problems(_404=UNKNOWN, _409="Not ready.", _413="Over a limit.", _415="Not an image that is taken."),
    },
    "openapi_extra": {
        "parameters": [
            TASK_ID,
            _parameter("query", "top_k", {"type": "integer", "minimum": 1, "maximum": 1000}, "Only the best classes."),
        ],
        "requestBody": IMAGES,
    },
}
EXPLAIN: dict[str, Any] = {
    "responses": {
        200: {"description": "What carried the decision on the one image.", "model": ExplanationOut},
        **_problems(_404=UNKNOWN, _409="Not ready.", _413="Over a limit.", _415="Not an image that is taken."),
    },
    "openapi_extra": {"parameters": [TASK_ID], "requestBody": IMAGES},
}
ADAPTATION: dict[str, Any] = {
    "responses": {
        200: {"description": "The layers that the task adapts.", "model": AdaptationOut},
        **_problems(_404=UNKNOWN, _409="Not ready."),
    },
    "openapi_extra": {"parameters": [TASK_ID]},
}
