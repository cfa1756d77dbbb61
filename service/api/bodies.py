"""Request bodies -> Python values, with every limit that can be checked without opening an image.

JSON is taken strictly (UTF-8, no NaN, no member twice, no lone surrogates, bounded in values and depth); multipart
stays in memory, since the body as a whole is bounded. Nothing here touches a store.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.errors import ClassmithError, InvalidRequest, TooLarge, UnsupportedMedia
from service.api.errors import from_validation
from service.images import check_total_pixels
from service.settings import Settings

JSON, MULTIPART = "application/json", "multipart/form-data"
MAX_JSON_VALUES = 250_000
"""Commas and opening brackets of a JSON body: bounds the memory its values take before any is built."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_TEXT_PARTS, MAX_TEXT_PART_BYTES = 16, 1_000_000
MAX_FILES = 5_000
UTF_8 = (b"utf-8", b"utf8")
OFF_LOOP_BYTES = 256_000
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """One part of a multipart body. ``is_file``: it came with a file name."""

    name: str
    data: bytes
    is_file: bool
    media_type: str = ""


class _InMemoryParser(MultiPartParser):
    """Starlette's parser, but in memory (the body limit bounds that), and it notices a body that is cut off."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 never rolls over to disk
    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    def close_files(self) -> None:
        """Free what was received."""
        for file in self._files_to_close_on_error:
            file.close()


def media_type(request: Request) -> str:
    """The body's media type, lower case; raises UnsupportedMedia for compressed bodies."""
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed request bodies are not taken; send it without Content-Encoding.")
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(body: bytes, model: type[Model]) -> Model:
    """Strict JSON of a known shape; raises InvalidRequest with the place, or TooLarge."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_JSON_VALUES:
        raise TooLarge(f"The JSON holds more than {MAX_JSON_VALUES:,} values; send fewer at once.")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse_constant)
        if SURROGATE.search(body):  # two that make a pair are fine
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise InvalidRequest(f"The body is not valid JSON: {reason}.") from error
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from error


async def read_json(request: Request, parse: Callable[[bytes], Result]) -> Result:
    """The body through ``parse``, as ``parsed``."""
    return await parsed(await request.body(), parse)


async def parsed(data: bytes, parse: Callable[[bytes], Result]) -> Result:
    """Data through ``parse``: in a thread where there is so much that the event loop would stand still."""
    return parse(data) if len(data) < OFF_LOOP_BYTES else await asyncio.to_thread(parse, data)


async def read_parts(request: Request, *, max_files: int) -> list[Part]:
    """The parts of a multipart body in order; raises UnsupportedMedia, InvalidRequest or TooLarge."""
    _check_charset(request)
    parser = _InMemoryParser(
        request.headers,
        request.stream(),
        max_files=max_files,
        max_fields=MAX_TEXT_PARTS,
        max_part_size=MAX_TEXT_PART_BYTES,
    )
    try:
        parts = [await _part(name, value) for name, value in (await parser.parse()).multi_items()]
    except MultiPartException as error:
        raise _multipart_error(error.message) from error
    except ClassmithError:
        raise
    except Exception as error:
        raise InvalidRequest("The multipart body cannot be read; build it with a client library or curl -F.") from error
    finally:
        parser.close_files()
    if not parser.is_whole:
        raise InvalidRequest("The multipart body ends before its closing boundary; send it whole.")
    return parts


def _check_charset(request: Request) -> None:
    """Raise UnsupportedMedia unless texts are UTF-8: Python's slowest codec takes a minute for a megabyte."""
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8")
    if charset.lower() not in UTF_8:
        said = charset[:40].decode("latin-1")
        raise UnsupportedMedia(f"The texts of a multipart body are UTF-8, not {said!r}; send it so, without a charset.")


async def _part(name: str, value: str | UploadFile) -> Part:
    if isinstance(value, str):
        return Part(name, value.encode("utf-8", "surrogateescape"), is_file=False)
    data = await value.read()  # it is in memory already
    kind = (value.content_type or "").partition(";")[0].strip().lower()
    return Part(name, data, is_file=True, media_type=kind)


async def check_pixels(images: Sequence[bytes], settings: Settings) -> None:
    """Raise TooLarge where a request's encoded images claim too many pixels together."""
    await check_total_pixels(images, max_image=settings.max_image_pixels, max_total=settings.max_request_pixels)


def check_query(request: Request, known: Sequence[str]) -> None:
    """Raise InvalidRequest for a parameter this call does not have, or that comes twice."""
    if not request.scope["query_string"]:
        return
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InvalidRequest(f"This call has no query parameter {name!r}; {takes}.", where=f"query.{name}")
        if name in seen:
            raise InvalidRequest(f"The query parameter {name!r} is given twice.", where=f"query.{name}")
        seen.add(name)


def integer(request: Request, name: str, *, least: int, most: int) -> int | None:
    """A whole number from the query, or None where it is not given; raises InvalidRequest."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    message = f"{name} must be a whole number from {least} to {most}, not {text[:40]!r}."
    raise InvalidRequest(message, where=f"query.{name}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same member twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return str(error).partition(";")[0]


def _multipart_error(message: str) -> ClassmithError:
    if "Too many" in message or "exceeded" in message:
        return TooLarge(f"{message.rstrip('.')}; send fewer at once.")
    return InvalidRequest(f"The multipart body cannot be read: {message.rstrip('.')}.")
