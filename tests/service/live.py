"""The application behind real HTTP: uvicorn in a thread of the test's process, on a free loopback port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from models.bundle import Bundle
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.task import TaskSpec
from service.api.state import Served
from service.app import create_app
from service.observability.tracing import NO_TRACING, Tracing
from service.serving.connections import Limits
from service.serving.direct import DirectProtocol
from service.serving.server import KEEP_ALIVE_S
from service.settings import Settings


@dataclass
class Live:
    """A running application and a client of it."""

    url: str
    http: httpx.Client
    served: Served
    state_dir: Path = field(default_factory=Path)

    def task(self, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Make a task that must succeed."""
        response = self.http.post("/tasks", json=body, headers=headers)
        assert response.status_code in (200, 201), response.text
        made: dict[str, Any] = response.json()
        return made


class _Server(uvicorn.Server):
    """Says when it is up, or that it never will be."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.decided = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.decided.set()


@contextmanager
def live(settings: Settings, tracing: Tracing = NO_TRACING) -> Iterator[Live]:
    app = create_app(settings, tracing=tracing)
    config = uvicorn.Config(
        app,
        http=partial(DirectProtocol, app=app, limits=Limits(10_000, body_s=600, stall_s=600)),
        ws="none",
        lifespan="on",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,  # longer than the client's, so that it never sends on a closing connection
        timeout_graceful_shutdown=60,
    )
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            assert server.decided.wait(240)
            assert server.started
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=240, trust_env=False) as http:
                yield Live(url, http, app.state.served, settings.state_dir)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def held_generations() -> Iterator[threading.Event]:
    """Generations of this process wait for the event, which is set at the latest at the end of the block."""
    go_on, generate = threading.Event(), OnnxGenerator.generate

    def held(self: OnnxGenerator, meta_model: MetaModel, spec: TaskSpec, **options: Any) -> Bundle:
        assert go_on.wait(240)
        return generate(self, meta_model, spec, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxGenerator, "generate", held)
        try:
            yield go_on
        finally:
            go_on.set()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal, checked for what every one must have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"].endswith(".")
    assert found["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) is (status in (429, 503))
    return found


def places(problem: dict[str, Any]) -> list[str]:
    return [error["where"] for error in problem.get("errors", [])]
