"""The Open Inference Protocol's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.api.open_inference_schemas import (
    ErrorOut,
    IndexedModelOut,
    InferIn,
    InferOut,
    ModelOut,
    RepositoryControlIn,
    RepositoryIndexIn,
    ServerOut,
)

SENT = (InferIn, RepositoryIndexIn, RepositoryControlIn, ErrorOut)
"""What the document refers to without FastAPI's knowing."""
JSON, BINARY = "application/json", "application/octet-stream"
OBJECT: dict[str, Any] = {"type": "object"}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _answers(success: dict[str, Any], **details: str) -> dict[int | str, dict[str, Any]]:
    """``_404="..."`` -> an error of the protocol as the 404 answer; any other error is one, too."""
    content = {JSON: {"schema": _ref(ErrorOut)}}
    found: dict[int | str, dict[str, Any]] = {200: success}
    for status, text in details.items():
        found[int(status[1:])] = {"description": text, "content": content}
    return {**found, "default": {"description": "Any other error.", "content": content}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _sent(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {JSON: {"schema": _ref(model)}}}}


NAME = {
    "in": "path",
    "name": "model",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "A task's id. Each call is also there with `/versions/1` after it.",
}
UNKNOWN = "No such task of yours."
OF_A_MODEL = {"parameters": [NAME]}
LENGTH = {
    "in": "header",
    "name": "Inference-Header-Content-Length",
    "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "Bytes of JSON before binary data; 0: the body is one encoded image, without JSON.",
}
MIXED = {"schema": {"type": "string", "format": "binary"}}

SERVER: dict[str, Any] = {"responses": _answers({"description": "The server.", "model": ServerOut})}
LIVE: dict[str, Any] = {"responses": _answers(_json("It is alive.", OBJECT))}
READY: dict[str, Any] = {"responses": _answers(_json("It takes requests.", OBJECT), _503="It does not.")}
MODEL: dict[str, Any] = {
    "responses": _answers({"description": "The task as a model.", "model": ModelOut}, _404=UNKNOWN),
    "openapi_extra": OF_A_MODEL,
}
CONFIG: dict[str, Any] = {
    "responses": _answers(_json("The configuration.", OBJECT), _404=UNKNOWN),
    "openapi_extra": OF_A_MODEL,
}
MODEL_READY: dict[str, Any] = {
    "responses": _answers(_json("It is ready.", OBJECT), _404=UNKNOWN, _409="It is not."),
    "openapi_extra": OF_A_MODEL,
}
INFER: dict[str, Any] = {
    "responses": _answers(
        {"description": "The outputs.", "model": InferOut, "content": {BINARY: MIXED}},
        _404=UNKNOWN,
        _409="Not ready.",
        _413="Over a limit.",
        _415="Not an image that is taken.",
    ),
    "openapi_extra": {
        "parameters": [NAME, LENGTH],
        "requestBody": {"required": True, "content": {JSON: {"schema": _ref(InferIn)}, BINARY: MIXED}},
    },
}
STATISTICS: dict[str, Any] = {
    "responses": _answers(_json("Counts and times.", OBJECT), _404=UNKNOWN),
    "openapi_extra": OF_A_MODEL,
}
ALL_STATISTICS: dict[str, Any] = {"responses": _answers(_json("Counts and times, of each.", OBJECT))}
INDEX: dict[str, Any] = {
    "responses": _answers({"description": "The models.", "model": list[IndexedModelOut]}),
    "openapi_extra": _sent(RepositoryIndexIn),
}
LOAD: dict[str, Any] = {
    "responses": _answers(_json("It is in memory.", OBJECT), _404=UNKNOWN, _409="Not ready."),
    "openapi_extra": {**OF_A_MODEL, **_sent(RepositoryControlIn)},
}
UNLOAD: dict[str, Any] = {
    "responses": _answers(_json("It is not in memory.", OBJECT), _404=UNKNOWN),
    "openapi_extra": {**OF_A_MODEL, **_sent(RepositoryControlIn)},
}
