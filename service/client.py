"""The command line's side of the HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
Json = dict[str, Any]
Upload = tuple[str, tuple[str, bytes, str]]


class RequestFailed(Exception):
    """The service said no; the message is its own."""


class Unreachable(Exception):
    """No service answers at the address."""


class UnusableFile(Exception):
    """A file or folder given on the command line."""


class Client:
    """Calls one service. ``key``: an API key, where the service has keys."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 300.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    def create(self, uploads: list[Upload], described: Json, *, wait_s: float | None) -> Json:
        """Make a task from files and the optional JSON part."""
        files = [*uploads, ("task", ("task.json", json.dumps(described).encode(), "application/json"))]
        headers = {"Prefer": f"wait={wait_s:g}"} if wait_s is not None else {}
        return self._json("POST", "/tasks", files=files, headers=headers)

    def tasks(self) -> Iterable[Json]:
        """All tasks, newest first, page by page."""
        address: str | None = "/tasks?limit=100"
        while address:
            found = self._json("GET", address)
            yield from found["tasks"]
            address = found["next"]

    def task(self, ident: str) -> Json:
        """One task."""
        return self._json("GET", f"/tasks/{quote(ident, safe='')}")

    def delete(self, ident: str) -> None:
        """Delete a task."""
        self._call("DELETE", f"/tasks/{quote(ident, safe='')}")

    def export(self, ident: str) -> bytes:
        """The classifier as an ONNX file."""
        return self._call("GET", f"/tasks/{quote(ident, safe='')}/model.onnx").content

    def predict(self, ident: str, images: list[Path], top_k: int | None) -> Json:
        """Decisions on image files."""
        query = {"top_k": top_k} if top_k is not None else {}
        uploads = [upload("image", path) for path in images]
        return self._json("POST", f"/tasks/{quote(ident, safe='')}/predict", files=uploads, params=query)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _json(self, method: str, address: str, **options: Any) -> Json:
        answer: Json = self._call(method, address, **options).json()
        return answer

    def _call(self, method: str, address: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, address, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            remedy = "start one with `classmith serve`, or name another with --url or CLASSMITH_URL"
            raise Unreachable(f"No service answers at {self._url} ({error}); {remedy}.") from error
        if response.is_success:
            return response
        raise RequestFailed(_problem(response))


def upload(name: str, path: Path) -> Upload:
    """A file as a multipart field; raises UnusableFile."""
    try:
        return name, (path.name, path.read_bytes(), MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"))
    except OSError as error:
        raise UnusableFile(f"{path} cannot be read ({error.strerror}).") from error


def folder_uploads(folder: Path) -> list[Upload]:
    """The images of a folder of class folders; files of an ``unlabeled`` folder belong to no stated class."""
    if not folder.is_dir():
        raise UnusableFile(f"{folder} is not a folder; give a folder with one folder of images for each class.")
    found = [
        upload(below.name, path)
        for below in sorted(folder.iterdir())
        if below.is_dir()
        for path in sorted(below.iterdir())
        if path.suffix.lower() in MEDIA_TYPES
    ]
    if not found:
        raise UnusableFile(f"{folder} has no JPEG, PNG or WebP files in folders named after their classes.")
    return found


def _problem(response: httpx.Response) -> str:
    try:
        problem = response.json()
        places = [error["where"] for error in problem.get("errors", [])]
        return f"{problem['title']}: {problem['detail']}" + (f" ({', '.join(places)})" if places else "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The answer was {response.status_code}, from something that is not Classmith."
