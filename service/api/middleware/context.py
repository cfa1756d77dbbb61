"""Around every request: an id, how long it took (``Server-Timing``), metrics, one line of log, safe headers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import CLIENT_WENT_AWAY, unexpected_problem
from service.api.rate_limits import HEADERS
from service.observability.telemetry import Metrics, choose_request_id, request_id, server_timing
from service.observability.tracing import NO_TRACE, NO_TRACING, Span, TraceContext, Tracing, parse, trace_context

TIMINGS = "classmith.timings"
INFER = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/1/infer")
HEALTH = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
UNLOGGED = frozenset({"/tasks/{task_id}/predict", *INFER, *HEALTH})
"""Frequent calls, which the metrics count: when they went well they are logged at the level "debug" only."""
log = logging.getLogger("classmith.access")


class RequestContext:
    """Takes the client's ``X-Request-Id`` where it is a plain one, else makes one, and answers with it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing = NO_TRACING) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = perf_counter()
        ident = choose_request_id(_header(scope, b"x-request-id"))
        request_id.set(ident)  # the server runs each request in a context of its own
        timings: dict[str, float] = {}
        scope[TIMINGS] = timings
        status = CLIENT_WENT_AWAY

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = server_timing(**timings, total=(perf_counter() - start) * 1e3)
                message["headers"] = [
                    *message["headers"],
                    *scope.get(HEADERS, ()),
                    (b"x-request-id", ident.encode()),
                    (b"server-timing", timing.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        trace_context.set(_trace_of(scope))
        tracing = NO_TRACING if scope["path"] in HEALTH else self.tracing
        with tracing.span(scope["method"], "server") as span:
            try:
                await self.app(scope, receive, send_with_headers)
            except Exception as error:
                if status == CLIENT_WENT_AWAY:  # nothing was sent yet: answered here, where it is counted
                    response = await unexpected_problem(Request(scope), error)
                    await response(scope, receive, send_with_headers)
                raise
            finally:
                record(self.metrics, scope, _endpoint(scope), status, perf_counter() - start)
                _describe(span, scope, status, ident)


def record(metrics: Metrics, scope: Mapping[str, Any], endpoint: str, status: int, seconds: float) -> None:
    """Count an answered request, and log it."""
    metrics.requests.labels(endpoint, str(status)).inc()
    metrics.request_seconds.labels(endpoint).observe(seconds)
    level = logging.DEBUG if endpoint in UNLOGGED and status == 200 else logging.INFO
    if log.isEnabledFor(level):
        fields = {"method": scope["method"], "path": scope["path"], "endpoint": endpoint, "status": status}
        log.log(level, "request", extra={**fields, "duration_ms": round(seconds * 1e3, 2)})


def add_timings(scope: Scope, **durations_ms: float) -> None:
    """Report parts of the time in this request's ``Server-Timing`` header."""
    scope[TIMINGS].update(durations_ms)


def _endpoint(scope: Scope) -> str:
    """The address's template: one value for all tasks, and nothing that a caller chose."""
    return getattr(scope.get("route"), "path", "unknown")


def _describe(span: Span, scope: Scope, status: int, ident: str) -> None:
    """What OpenTelemetry's conventions ask of a server's span, without path and query, and where the time went."""
    endpoint = _endpoint(scope)
    span.name(f"{scope['method']} {endpoint}")
    span.set({"http.request.method": scope["method"], "http.route": endpoint, "http.response.status_code": status})
    span.set({"url.scheme": scope["scheme"], "classmith.request_id": ident})
    span.set({f"classmith.{stage}.duration_ms": value for stage, value in scope[TIMINGS].items()})
    if status >= 500:
        span.fail(str(status))


def _trace_of(scope: Scope) -> TraceContext:
    if _header(scope, b"traceparent") is None:
        return NO_TRACE
    return parse((key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"])


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
