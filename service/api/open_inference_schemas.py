"""The Open Inference Protocol as JSON: what is read, what is answered, and both for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, Any]
Size = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class _Sent(BaseModel):
    """Unknown members are refused; what extends the protocol is in ``parameters``, whose unknown members are not."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TensorIn(_Sent):
    """An input: ``data`` is flat or nested; or ``parameters.binary_data_size`` bytes follow the JSON."""

    name: str
    shape: list[Size] = Field(max_length=8)
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutputIn(_Sent):
    """An output that is wanted; `parameters.binary_data`, and for probabilities `classification`: only the best N."""

    name: str
    parameters: Parameters = {}


class InferIn(_Sent):
    """An inference request; `parameters.binary_data_output`: outputs come as binary data where they don't say."""

    id: str = Field("", max_length=1000)
    parameters: Parameters = {}
    inputs: list[TensorIn]
    outputs: list[RequestedOutputIn] = []


class RepositoryIndexIn(_Sent):
    """`ready`: only models that are."""

    ready: bool = False


class RepositoryControlIn(_Sent):
    """`unload_dependents` is all that there is, and changes nothing: no model depends on another."""

    parameters: Parameters = {}


class TensorOut(BaseModel):
    """An output: its data, or `parameters.binary_data_size`."""

    name: str
    datatype: Literal["FP32", "BYTES", "BOOL"]
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | None = None


class InferOut(BaseModel):
    """An inference answer."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[TensorOut]


class ServerOut(BaseModel):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadataOut(BaseModel):
    """A tensor a model takes or gives; -1 is any number. `parameters.labels`: the classes, in their order."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}


class ModelOut(BaseModel):
    """A task as a model. It takes exactly one of its inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadataOut]
    outputs: list[TensorMetadataOut]


class IndexedModelOut(BaseModel):
    """A model of the repository; `reason`: why it is not ready."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class ErrorOut(BaseModel):
    """Every error of the protocol."""

    error: str
