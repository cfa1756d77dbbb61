"""The shortest way for the most frequent request: one image as the body, for a task that is in memory.

Such a request is answered by the protocol itself, without a coroutine, a framework or its layers, which together take
longer than a small network (docs/decisions.md). Whatever is unusual about a request (its headers, where its task is,
that it fails) is left to the application, which then sees it whole and as if for the first time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from models.errors import ClassmithError
from service.api.auth import Caller
from service.api.middleware.context import log
from service.api.predict import ADDRESS, encode
from service.api.rate_limits import Headers
from service.api.state import Served
from service.connections import PatientProtocol
from service.pieces import Prediction
from service.telemetry import choose_request_id, server_timing

PATH = re.compile(ADDRESS.replace("{task_id}", "([0-9a-f]{32})"))
UNUSUAL = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"origin", b"traceparent"})
"""Headers that ask for more than an answer."""
READ = {b"host": "host", b"authorization": "authorization", b"x-request-id": "x-request-id"}


@dataclass(frozen=True)
class Call:
    """A plain prediction, admitted by its head alone. ``limits``: the headers of the caller's rate limit."""

    here: Served
    caller: Caller
    limits: Headers
    task_id: str
    request_id: str
    began_at: float


class DirectProtocol(PatientProtocol):
    """One connection, which answers plain predictions itself."""

    def __init__(self, *arguments: Any, app: FastAPI, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._state = app.state
        self._awaited: tuple[Call, RequestResponseCycle] | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Where the server would call the application: do so, or wait for the body of a plain prediction."""
        call = None if self.flow.write_paused else _plain_call(cycle.scope, self._state.served)
        if call is None:
            super()._start_asgi_task(cycle, app)
            return
        self._awaited = (call, cycle)
        if not cycle.more_body:  # it came while another was answered
            self._predict()

    def on_body(self, body: bytes) -> None:
        """A piece of the body; that of a plain prediction has its limit and is read to its end."""
        super().on_body(body)
        if self._awaited is not None:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        super().on_message_complete()
        if self._awaited is not None:
            self._predict()

    def _predict(self) -> None:
        assert self._awaited is not None
        (call, cycle), self._awaited = self._awaited, None
        answer = partial(self._answer, call, cycle)
        if not call.here.tasks.predict_at_once(call.caller.tenant, call.task_id, bytes(cycle.body), answer):
            self._hand_over(call, cycle)

    def _answer(self, call: Call, cycle: RequestResponseCycle, result: Prediction | BaseException) -> None:
        """Send a prediction; what failed is tried again by the application, which has the words for it."""
        if not isinstance(result, Prediction):
            self._hand_over(call, cycle)
            return
        if not self.transport.is_closing():
            self.transport.write(self._written(call, cycle, result))
            if not cycle.keep_alive:
                self.transport.close()
        seconds = perf_counter() - call.began_at
        call.here.metrics.requests.labels(ADDRESS, "200").inc()
        call.here.metrics.request_seconds.labels(ADDRESS).observe(seconds)
        cycle.response_complete, cycle.body = True, bytearray()
        self.on_response_complete()

    def _written(self, call: Call, cycle: RequestResponseCycle, prediction: Prediction) -> bytes:
        """The answer as the application would give it."""
        body, total_ms = encode(prediction), (perf_counter() - call.began_at) * 1e3
        timing = server_timing(
            queue=prediction.queue_ms, decode=prediction.decode_ms, run=prediction.run_ms, total=total_ms
        )
        lines = [b"HTTP/1.1 200 OK"]
        lines += [name + b": " + value for name, value in self.server_state.default_headers]
        lines += [b"content-length: %d" % len(body), b"content-type: application/json"]
        lines += [name + b": " + value for name, value in call.limits]
        lines += [b"x-request-id: " + call.request_id.encode(), b"server-timing: " + timing.encode()]
        lines += [b"x-content-type-options: nosniff"]
        lines += [] if cycle.keep_alive else [b"connection: close"]
        return b"\r\n".join([*lines, b"", body])

    def _hand_over(self, call: Call, cycle: RequestResponseCycle) -> None:
        """Leave the request to the application, as if nothing had been done about it."""
        call.here.rate_limits.give_back(call.caller)
        super()._start_asgi_task(cycle, self.app)


def _plain_call(scope: Mapping[str, Any], here: Served | None) -> Call | None:
    """The prediction a head asks for; None where there is anything about it that the application had better see."""
    began_at = perf_counter()
    if scope["method"] != "POST" or scope["query_string"] or (address := PATH.fullmatch(scope["path"])) is None:
        return None
    if here is None or here.is_traced or log.isEnabledFor(logging.DEBUG):
        return None
    headers = dict(scope["headers"])
    if len(headers) != len(scope["headers"]) or not UNUSUAL.isdisjoint(headers):
        return None
    if not headers.get(b"content-type", b"").startswith(b"image/") or not _fits(headers, here):
        return None
    sent = {text: headers[name].decode("latin-1") for name, text in READ.items() if name in headers}
    task_id = address[1]
    try:
        caller = here.keyring.caller(sent)
        here.tasks.refuse_if_full(caller.tenant, task_id)
    except ClassmithError:
        return None
    admission = here.rate_limits.take(caller)
    if admission.wait_s:
        return None
    return Call(here, caller, admission.headers, task_id, choose_request_id(sent.get("x-request-id")), began_at)


def _fits(headers: Mapping[bytes, bytes], here: Served) -> bool:
    """Whether the body says how long it is, is not empty and within every limit."""
    settings, length = here.settings, headers.get(b"content-length", b"")
    most = min(settings.max_image_bytes, settings.max_request_bytes)
    if settings.max_image_pixels > settings.max_request_pixels:
        return False
    return length.isdigit() and len(length) < 20 and 0 < int(length) <= most
