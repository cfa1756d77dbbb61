"""The HTTP calls as values: what the client sends, for those that wait and those that await alike."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx

from service.client.errors import UnusableInput, unreachable

LOCAL_URL = "http://127.0.0.1:8000"
SCHEMES = ("http", "https")
KEY = re.compile(r"[\x21-\x7e]+")
PAGE = 100
LONGEST_STAY_S = 30.0
"""What the service waits by itself; whoever has more time follows the task."""


@dataclass(frozen=True)
class Call:
    """One request; ``options`` are httpx's. ``patience_s``: for its tries and the waits between them together.

    ``stay_s``: so long the answer may wait for what was asked for, in whole seconds; None: it never does.
    """

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    patience_s: float = math.inf
    stay_s: float | None = None

    def within(self, left_s: float) -> dict[str, Any]:
        """The options of a try for which so much time is left."""
        if self.stay_s is None:
            return self.options
        stay_s = min(self.stay_s, left_s)
        prefer = f"wait={int(stay_s)}" if stay_s >= 1 else "respond-async"
        return {**self.options, "headers": {**self.options["headers"], "Prefer": prefer}}


def create(body: Mapping[str, Any], *, stay_s: float, patience_s: float = math.inf) -> Call:
    """Make a task; every try has the same key, so it makes one."""
    headers = {"Idempotency-Key": str(uuid4())}
    return Call("POST", "/tasks", {"json": dict(body), "headers": headers}, patience_s, stay_s)


def stay_s(timeout_s: float, read_s: float | None) -> float:
    """How long the answer to ``create`` may wait. ``read_s``: how long it is listened for, None: without end.

    Half of that, because the service begins to count when it has read and checked the images.
    """
    return min(timeout_s, LONGEST_STAY_S, math.inf if read_s is None else read_s / 2)


def page(after: str | None) -> Call:
    """One page of tasks; ``after``: where it begins, as the page before says."""
    return Call("GET", "/tasks", {"params": {"limit": PAGE, **({"after": after} if after else {})}})


def meta_models() -> Call:
    """What classifiers can be made by."""
    return Call("GET", "/meta-models")


def show(ident: str) -> Call:
    """One task."""
    return Call("GET", _of(ident))


def delete(ident: str) -> Call:
    """Delete a task."""
    return Call("DELETE", _of(ident))


def export(ident: str) -> Call:
    """The classifier as an ONNX file."""
    return Call("GET", f"{_of(ident)}/model.onnx")


def predict(ident: str, images: Sequence[bytes], top_k: int | None) -> Call:
    """Classify encoded images."""
    params = {} if top_k is None else {"top_k": top_k}
    return Call("POST", f"{_of(ident)}/predict", {"files": _files(images), "params": params})


def explain(ident: str, image: bytes) -> Call:
    """What carried the decision on an encoded image."""
    return Call("POST", f"{_of(ident)}/explain", {"files": _files([image])})


def adaptation(ident: str) -> Call:
    """How far the task changed each layer."""
    return Call("GET", f"{_of(ident)}/adaptation")


def events(ident: str) -> Call:
    """Follow a task while it is made."""
    return Call("GET", f"{_of(ident)}/events")


def save(model: bytes, path: str | PathLike[str]) -> Path:
    """Write a file; raises UnusableInput where that place cannot be written."""
    place = Path(os.path.expanduser(path))
    try:
        place.write_bytes(model)
    except OSError as error:
        raise UnusableInput(f"{place} cannot be written ({error.strerror}).") from error
    return place


def connection_options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """The arguments of an httpx client; between this machine and itself lies no proxy.

    Raises UnusableInput where the address has no scheme, or another, or where no header can carry the key; Unreachable
    where the address is none at all.
    """
    if api_key and not KEY.fullmatch(api_key):
        raise UnusableInput("A key is visible ASCII without spaces; copy it again, without a line break.")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        place = urlsplit(url)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise unreachable(url, error) from error
    if place.scheme not in SCHEMES:
        raise UnusableInput(f"The address {url!r} does not begin with http:// or https://; write it like {LOCAL_URL}.")
    is_local = place.hostname in ("localhost", "127.0.0.1", "::1")
    return {"base_url": url, "headers": headers, "timeout": timeout_s, "trust_env": not is_local}


def _files(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (str(i), data, "application/octet-stream")) for i, data in enumerate(images)]


def _of(ident: str) -> str:
    """The path of a task; raises UnusableInput for what would be another path, or none."""
    if not (isinstance(ident, str) and ident.strip(".") and ident.isprintable()):
        raise UnusableInput(f"A task's id is a string of 32 hexadecimal digits, not {ident!r}.")
    return f"/tasks/{quote(ident, safe='')}"
