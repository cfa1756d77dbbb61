"""The Open Inference Protocol, version 2: a task is a model, its id the name, and "1" the only version.

What any server of the protocol has: health, metadata, inference. Keys, tenants and limits are those of the other calls;
errors have the protocol's shape (``service.api.errors``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from models.errors import Conflict, InvalidRequest
from models.preprocess import PreprocessSpec
from service.api import bodies, openapi
from service.api import open_inference_openapi as document
from service.api.health import check_ready
from service.api.leaving import while_there
from service.api.middleware.context import add_timings
from service.api.open_inference_schemas import InferIn, ModelOut, RequestedOutputIn, ServerOut, TensorMetadataOut
from service.api.open_inference_tensors import DATATYPES, HEADER_LENGTH, IMAGE, decode, encode
from service.api.state import served
from service.ports import TaskRecord
from service.prediction.batching import Prediction

router = APIRouter(tags=["open inference protocol"], route_class=openapi.PlainRoute)
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
PLATFORM = "onnxruntime_onnx"
VERSION = "1"
PROBABILITIES, LABELS, ABSTAIN = "probabilities", "labels", "abstain"
OUTPUTS = (PROBABILITIES, LABELS, ABSTAIN)
BINARY = "application/octet-stream"
OFF_LOOP_VALUES = 2_000
"""Probabilities of an answer from which on the event loop would stand still for more than a millisecond."""
CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}


@router.get("/v2", **document.SERVER)
async def server(request: Request) -> Response:
    """What serves, and which extensions of the protocol it has."""
    version: str = request.app.version
    return _json(ServerOut(name="classmith", version=version, extensions=EXTENSIONS).model_dump())


@router.get("/v2/health/live", **document.LIVE)
async def live(request: Request) -> Response:
    """The process is alive."""
    return _json({"live": True})


@router.get("/v2/health/ready", **document.READY)
async def ready(request: Request) -> Response:
    """The process can take work; 503 where it cannot."""
    await check_ready(request)
    return _json({"ready": True})


@router.get("/v2/models/{model}", **document.MODEL)
@router.get("/v2/models/{model}/versions/1", include_in_schema=False)
async def metadata(request: Request) -> Response:
    """A task's inputs, of which a request has exactly one, and its outputs."""
    record, inputs, outputs = await _described(request)
    found = ModelOut(name=record.id, versions=[VERSION], platform=PLATFORM, inputs=inputs, outputs=outputs)
    return _json(found.model_dump(exclude_defaults=True))


@router.get("/v2/models/{model}/config", **document.CONFIG)
@router.get("/v2/models/{model}/versions/1/config", include_in_schema=False)
async def config(request: Request) -> Response:
    """The same as a configuration of the kind that clients of Triton ask for."""
    record, inputs, outputs = await _described(request)
    found = {"name": record.id, "platform": PLATFORM, "backend": "onnxruntime", "max_batch_size": 0}
    given = [{**_configured(tensor), "optional": True} for tensor in inputs]
    return _json({**found, "input": given, "output": [_configured(tensor) for tensor in outputs]})


@router.get("/v2/models/{model}/ready", **document.MODEL_READY)
@router.get("/v2/models/{model}/versions/1/ready", include_in_schema=False)
async def model_ready(request: Request) -> Response:
    """A request to this task would be answered: it is made, whether or not it is in memory at the moment."""
    here, tenant = served(request)
    record = await here.tasks.get(tenant, request.path_params["model"])
    if record.state != "ready":
        raise Conflict(f"The task is {record.state}; see GET /tasks/{record.id}.")
    return _json({"name": record.id, "ready": True})


@router.post("/v2/models/{model}/infer", **document.INFER)
@router.post("/v2/models/{model}/versions/1/infer", include_in_schema=False)
async def infer(request: Request) -> Response:
    """Classify images: one input, encoded or as pixels, as JSON or as binary data; outputs likewise."""
    here, tenant = served(request)
    bodies.media_type(request)  # refuses compressed ones; the protocol does not look at the type
    lengths = request.headers.getlist(HEADER_LENGTH)
    if len(lengths) > 1:
        raise InvalidRequest("It is given twice.", where=HEADER_LENGTH)
    length, model = lengths[0] if lengths else None, request.path_params["model"]
    with here.tasks.reading(tenant, model):
        asked = await bodies.read_json(request, lambda body: decode(body, length, here.settings))
        wanted = _wanted(asked.header)
        await bodies.check_pixels([image for image in asked.images if isinstance(image, bytes)], here.settings)
    prediction, classes = await while_there(request, here.tasks.infer(tenant, model, asked.images))
    add_timings(request.scope, queue=prediction.queue_ms, decode=prediction.decode_ms, run=prediction.run_ms)
    answer = {"model_name": model, "model_version": VERSION} | ({"id": asked.header.id} if asked.header.id else {})

    def encoded() -> tuple[bytes, int | None]:
        outputs = {name: (_output(name, n_best, prediction, classes), binary) for name, n_best, binary in wanted}
        return encode(answer, outputs)

    is_small = len(prediction.decisions) * len(classes) < OFF_LOOP_VALUES
    body, n_header = encoded() if is_small else await asyncio.to_thread(encoded)
    headers = {} if n_header is None else {HEADER_LENGTH: str(n_header)}
    return Response(body, headers=headers, media_type=bodies.JSON if n_header is None else BINARY)


def _wanted(header: InferIn) -> list[tuple[str, int, bool]]:
    """The outputs asked for: name, how many classes of the classification extension (0: none), binary or not."""
    by_default = _flag(header.parameters, "binary_data_output", False, "parameters")
    asked = header.outputs or [RequestedOutputIn(name=name) for name in OUTPUTS]
    wanted: list[tuple[str, int, bool]] = []
    for i, output in enumerate(asked):
        where = f"outputs[{i}]"
        if output.name not in OUTPUTS or output.name in (name for name, _, _ in wanted):
            message = f"An output is one of {', '.join(OUTPUTS)}, each once; not {output.name[:100]!r}."
            raise InvalidRequest(message, where=f"{where}.name")
        if "shared_memory_region" in output.parameters:
            raise InvalidRequest("There is no shared memory here; take the data.", where=f"{where}.parameters")
        n_best = output.parameters.get("classification", 0)
        if type(n_best) is not int or n_best < 0 or (n_best and output.name != PROBABILITIES):
            message = f"classification is a number of classes, of {PROBABILITIES} only."
            raise InvalidRequest(message, where=f"{where}.parameters.classification")
        wanted.append((output.name, n_best, _flag(output.parameters, "binary_data", by_default, f"{where}.parameters")))
    return wanted


def _flag(parameters: dict[str, Any], name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is true or false.", where=f"{where}.{name}")
    return value


def _output(name: str, n_best: int, prediction: Prediction, classes: tuple[str, ...]) -> NDArray[Any]:
    decisions = prediction.decisions
    if name == LABELS:
        return np.array([decision.label for decision in decisions], dtype=object)
    if name == ABSTAIN:
        return np.array([decision.abstain for decision in decisions])
    found = [decision.probabilities for decision in decisions]  # best first
    if not n_best:
        return np.array([[row[label] for label in classes] for row in found])
    index = {label: k for k, label in enumerate(classes)}
    texts = [[f"{p:f}:{index[label]}:{label}" for label, p in list(row.items())[:n_best]] for row in found]
    return np.array(texts, dtype=object)


async def _described(request: Request) -> tuple[TaskRecord, list[TensorMetadataOut], list[TensorMetadataOut]]:
    """A request's task, and its tensors."""
    here, tenant = served(request)
    record = await here.tasks.get(tenant, request.path_params["model"])
    spec = here.tasks.loader.catalogue.get(record.meta_model).manifest.preprocess
    return record, _inputs(spec), _outputs([summary.name for summary in record.classes])


def _inputs(spec: PreprocessSpec) -> list[TensorMetadataOut]:
    pixels = [-1, spec.size, spec.size, spec.channels]
    shapes = {name: [-1] if name == IMAGE else pixels for name in DATATYPES}
    return [TensorMetadataOut(name=name, datatype=DATATYPES[name], shape=shape) for name, shape in shapes.items()]


def _outputs(labels: list[str]) -> list[TensorMetadataOut]:
    shape = [-1, len(labels)]
    return [
        TensorMetadataOut(name=PROBABILITIES, datatype="FP32", shape=shape, parameters={"labels": labels}),
        TensorMetadataOut(name=LABELS, datatype="BYTES", shape=[-1]),
        TensorMetadataOut(name=ABSTAIN, datatype="BOOL", shape=[-1]),
    ]


def _configured(tensor: TensorMetadataOut) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": CONFIG_TYPES[tensor.datatype], "dims": tensor.shape}


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type=bodies.JSON)
