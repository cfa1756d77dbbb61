"""What a running application serves requests with, and who a request is from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from models.errors import Unavailable
from service.api.auth import Keyring
from service.settings import Settings
from service.tasks import Tasks
from service.telemetry import Metrics


@dataclass(frozen=True)
class Served:
    """Built at the start by ``service.app``. ``stopping`` is set once the process was told to stop."""

    settings: Settings
    tasks: Tasks
    keyring: Keyring
    metrics: Metrics
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def running(request: Request) -> Served:
    """The application's parts; raises Unavailable before it has started and after it has stopped."""
    found: Served | None = getattr(request.app.state, "served", None)
    if found is None:
        raise Unavailable("The service is not started; try again in a moment.")
    return found


def served(request: Request) -> tuple[Served, str]:
    """The parts and the request's tenant; raises Unauthenticated or Forbidden before anything of the body is read."""
    found = running(request)
    return found, found.keyring.tenant(request)
