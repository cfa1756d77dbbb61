"""What a running application serves requests with, and who a request is from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from models.errors import RateLimited, Unavailable
from service.api.auth import Keyring
from service.api.rate_limits import HEADERS, RateLimits
from service.observability.siblings import Siblings
from service.observability.telemetry import Metrics
from service.settings import Settings
from service.tasks import Tasks


@dataclass(frozen=True)
class Served:
    """Built at the start by ``service.app``. ``stopping`` is set once the process was told to stop.

    ``siblings``: the other processes on this port, where there are any. ``is_traced``: spans are recorded.
    """

    settings: Settings
    tasks: Tasks
    keyring: Keyring
    metrics: Metrics
    rate_limits: RateLimits
    siblings: Siblings | None = None
    is_traced: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def running(request: Request) -> Served:
    """The application's parts; raises Unavailable before it has started and after it has stopped."""
    found: Served | None = getattr(request.app.state, "served", None)
    if found is None:
        raise Unavailable("The service is not started; try again in a moment.")
    return found


def served(request: Request) -> tuple[Served, str]:
    """The parts and the request's tenant, whose rate it counts against.

    Raises Unauthenticated, Forbidden or RateLimited before anything of the body is read.
    """
    found = running(request)
    caller = found.keyring.caller(request.headers)
    admission = found.rate_limits.take(caller)
    request.scope[HEADERS] = admission.headers
    if admission.wait_s:
        found.metrics.shed.labels("rate_limit").inc()
        message = "Your requests come faster than your limit; wait as Retry-After says."
        raise RateLimited(message, retry_after_s=admission.wait_s)
    return found, caller.tenant


def max_tasks(request: Request) -> int | None:
    """The most tasks that the caller of an admitted request may keep; None: no limit."""
    here = running(request)
    own = here.keyring.caller(request.headers).grant.max_tasks
    return here.settings.max_tasks if own is None else own
