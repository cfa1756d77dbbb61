"""Tensors of the Open Inference Protocol: a body in JSON or with binary data -> images, and answers the same way back.

A body is JSON, or, as the header ``Inference-Header-Content-Length: n`` says, n bytes of JSON and then the data of the
tensors that have a ``binary_data_size``, one after the other, little-endian and row-major; an element of BYTES is its
length in four bytes and then itself. Everything here is checked against what was sent before any memory is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.errors import ClassmithError, InvalidRequest, TooLarge
from service.api import bodies
from service.api.open_inference_schemas import InferIn, TensorIn
from service.images import checked, from_base64
from service.prediction.pieces import Given
from service.settings import Settings

HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGE, PIXELS, PIXELS_FP32 = "image", "pixels", "pixels_fp32"
DATATYPES = {IMAGE: "BYTES", PIXELS: "UINT8", PIXELS_FP32: "FP32"}
"""The inputs; a request has one of them."""
N_AXES = {IMAGE: 1, PIXELS: 4, PIXELS_FP32: 4}
LENGTH_BYTES = 4
SLACK = 1e-3
"""How far values of ``pixels_fp32`` may leave 0 to 1: resampling overshoots a little."""
WHITE = 255


@dataclass(frozen=True)
class InferRequest:
    """What was asked: its images, encoded or as pixels ``(H, W, C)``, and the JSON they came in."""

    images: Sequence[Given]
    header: InferIn


def decode(body: bytes, header_length: str | None, settings: Settings) -> InferRequest:
    """The body of an infer call; raises InvalidRequest, TooLarge or BrokenImage with the place."""
    n_header = _header_bytes(body, header_length)
    if n_header == 0:  # the extension's raw request: the body is the one element of the one tensor
        image = checked(IMAGE, body, max_bytes=settings.max_image_bytes)
        return InferRequest([image.data], InferIn(id="", inputs=[]))
    header = bodies.parse_json(body[:n_header], InferIn)
    binary = _binary_data(header.inputs, memoryview(body)[n_header:])
    if len(header.inputs) != 1:
        message = f"A request has exactly one input, one of {', '.join(DATATYPES)}; this one has {len(header.inputs)}."
        raise InvalidRequest(message, where="inputs")
    try:
        return InferRequest(_images(header.inputs[0], binary[0], settings), header)
    except ClassmithError as error:
        raise error.at("inputs[0]" + error.where) from error


def encode(answer: dict[str, Any], outputs: Mapping[str, tuple[NDArray[Any], bool]]) -> tuple[bytes, int | None]:
    """An answer and its tensors (and whether each goes as binary data) -> the body, and its JSON's length if mixed."""
    described, chunks = [], []
    for name, (values, is_binary) in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": _datatype(values), "shape": list(values.shape)}
        if is_binary:
            chunks.append(_to_binary(values))
            tensor["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        described.append(tensor)
    header = orjson.dumps({**answer, "outputs": described})
    return b"".join((header, *chunks)), len(header) if chunks else None


def _header_bytes(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise InvalidRequest("The length of the JSON must be a whole number of bytes.", where=HEADER_LENGTH)
    if int(header_length) > len(body):
        message = f"The JSON is said to have {int(header_length)} bytes, and the whole body has {len(body)}."
        raise InvalidRequest(message, where=HEADER_LENGTH)
    return int(header_length)


def _binary_data(tensors: Sequence[TensorIn], data: memoryview) -> list[memoryview | None]:
    """Each tensor's share of what follows the JSON; all of it must be someone's."""
    shares: list[memoryview | None] = []
    start = 0
    for i, tensor in enumerate(tensors):
        size = tensor.parameters.get("binary_data_size")
        if size is not None and (type(size) is not int or not 0 <= size <= len(data) - start):
            message = f"binary_data_size must be a whole number, and {len(data) - start} bytes are left for it."
            raise InvalidRequest(message, where=f"inputs[{i}].parameters.binary_data_size")
        shares.append(None if size is None else data[start : start + size])
        start += size or 0
    if start != len(data):
        message = f"{len(data) - start} bytes follow that belong to no tensor; check {HEADER_LENGTH}."
        raise InvalidRequest(message, where="inputs")
    return shares


def _images(tensor: TensorIn, binary: memoryview | None, settings: Settings) -> Sequence[Given]:
    _check_description(tensor, settings)
    if (binary is None) == (tensor.data is None):
        message = "A tensor carries either data, or binary_data_size and its bytes after the JSON."
        raise InvalidRequest(message, where=".data")
    if tensor.name == IMAGE:
        return _encoded(tensor, binary, settings)
    return list(_uint8(tensor, binary) if tensor.name == PIXELS else _from_fp32(tensor, binary))


def _check_description(tensor: TensorIn, settings: Settings) -> None:
    expected = DATATYPES.get(tensor.name)
    if expected is None:
        message = f"There is no input {tensor.name[:100]!r}; there are {', '.join(DATATYPES)}."
        raise InvalidRequest(message, where=".name")
    if tensor.datatype != expected:
        raise InvalidRequest(f"{tensor.name} is {expected}, not {tensor.datatype[:20]!r}.", where=".datatype")
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest("There is no shared memory here; send the data.", where=".parameters")
    if len(tensor.shape) != N_AXES[tensor.name] or min(tensor.shape) < 1:
        axes = "[N]" if tensor.name == IMAGE else "[N, height, width, channels]"
        raise InvalidRequest(f"The shape of {tensor.name} is {axes}, every number at least 1.", where=".shape")
    if tensor.shape[0] > settings.max_images_per_predict:
        message = f"{tensor.shape[0]} images are over the {settings.max_images_per_predict} a call; send fewer."
        raise TooLarge(message, where=".shape")


def _encoded(tensor: TensorIn, binary: memoryview | None, settings: Settings) -> list[bytes]:
    """Image files: as they are in binary data, in base64 in JSON, whose text cannot hold any bytes."""
    n_images, most = tensor.shape[0], settings.max_image_bytes
    if binary is not None:
        elements = _elements(binary, n_images)
        return [checked(f".data[{i}]", bytes(data), max_bytes=most).data for i, data in enumerate(elements)]
    texts = _flat(tensor)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest("An image in JSON is a text of base64.", where=f".data[{i}]")
    return [from_base64(f".data[{i}]", text, max_bytes=most).data for i, text in enumerate(texts)]


def _elements(binary: memoryview, n: int) -> list[memoryview]:
    """The elements of a BYTES tensor."""
    found = []
    for i in range(n):
        length = int.from_bytes(binary[:LENGTH_BYTES], "little")
        if len(binary) < LENGTH_BYTES + length:
            message = "The data ends within this element; each is its length in four bytes and then itself."
            raise InvalidRequest(message, where=f".data[{i}]")
        found.append(binary[LENGTH_BYTES : LENGTH_BYTES + length])
        binary = binary[LENGTH_BYTES + length :]
    if len(binary):
        raise InvalidRequest(f"{len(binary)} bytes follow the last of the {n} elements.", where=".data")
    return found


def _uint8(tensor: TensorIn, binary: memoryview | None) -> NDArray[np.uint8]:
    if binary is not None:
        return _from_binary(tensor, binary, np.dtype(np.uint8))
    values = _numbers(tensor, "iu")
    if values.min() < 0 or values.max() > WHITE:
        raise InvalidRequest(f"{PIXELS} are whole numbers from 0 to {WHITE}.", where=".data")
    levels: NDArray[np.uint8] = values.astype(np.uint8).reshape(tensor.shape)
    return levels


def _from_fp32(tensor: TensorIn, binary: memoryview | None) -> NDArray[np.uint8]:
    """Values from 0 (black) to 1 (white) -> the nearest of the 256 levels that networks take."""
    values = _from_binary(tensor, binary, np.dtype("<f4")) if binary is not None else _numbers(tensor, "iuf")
    if not (values.min() >= -SLACK and values.max() <= 1 + SLACK):  # so that NaN is refused, too
        raise InvalidRequest(f"{PIXELS_FP32} are numbers from 0 (black) to 1 (white).", where=".data")
    levels: NDArray[np.uint8] = np.rint(values.clip(0, 1) * WHITE).astype(np.uint8)
    return levels.reshape(tensor.shape)


def _from_binary(tensor: TensorIn, binary: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    n_bytes = math.prod(tensor.shape) * dtype.itemsize
    if len(binary) != n_bytes:
        message = f"A {tensor.datatype} tensor of this shape has {n_bytes} bytes; binary_data_size says {len(binary)}."
        raise InvalidRequest(message, where=".parameters.binary_data_size")
    return np.frombuffer(binary, dtype).reshape(tensor.shape)


def _numbers(tensor: TensorIn, kinds: str) -> NDArray[Any]:
    """The data as numbers of one of NumPy's ``kinds``."""
    data = _flat(tensor)
    are_numbers = set(map(type, data)) <= {int, float}  # of texts NumPy gives each the memory of the longest
    try:
        values = np.array(data if are_numbers else None)
    except OverflowError:
        values = np.array(None)
    if values.dtype.kind not in kinds:
        what = "whole numbers" if kinds == "iu" else "numbers"
        raise InvalidRequest(f"The data of a {tensor.datatype} tensor are {what}.", where=".data")
    return values


def _flat(tensor: TensorIn) -> list[Any]:
    """Data in row-major order, which comes flat or nested as its shape is."""
    data = tensor.data or []
    if len(data) == tensor.shape[0]:
        for n in tensor.shape[1:]:
            if not all(isinstance(row, list) and len(row) == n for row in data):
                break
            data = [value for row in data for value in row]
    if len(data) != math.prod(tensor.shape):
        message = f"A tensor of the shape {tensor.shape} has {math.prod(tensor.shape)} values, flat or nested alike."
        raise InvalidRequest(message, where=".data")
    return data


def _datatype(values: NDArray[Any]) -> str:
    return {"f": "FP32", "b": "BOOL"}.get(values.dtype.kind, "BYTES")


def _to_binary(values: NDArray[Any]) -> bytes:
    if values.dtype.kind == "f":
        return values.astype("<f4").tobytes()
    if values.dtype.kind == "b":
        return values.tobytes()
    texts = [text.encode() for text in values.ravel().tolist()]
    return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)
