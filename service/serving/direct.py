"""The shortest way for the most frequent request: one image as the body, for a task that is in memory.

Such a request is answered by the protocol itself, without a coroutine, a framework or its layers, which cost a third of
what the event loop spends on a request (docs/decisions.md); and so is a prediction that there is no room for, since
under overload refusing is most of the work. Whatever is unusual about a request (its headers, where its task is, that
it fails) is left to the application, which then sees it whole and as if for the first time.
"""

from __future__ import annotations

import logging
import re
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from models.errors import Busy, ClassmithError
from service.api.auth import Caller
from service.api.bodies import JSON
from service.api.errors import CLIENT_WENT_AWAY, refusal
from service.api.middleware.context import log, record
from service.api.predict import ADDRESS, encode
from service.api.rate_limits import Headers
from service.api.state import Served
from service.observability.telemetry import choose_request_id, request_id, server_timing
from service.prediction.loading import TASK_ID
from service.prediction.pieces import Prediction, Request
from service.serving.connections import PatientProtocol

PATH = re.compile(ADDRESS.replace("{task_id}", f"({TASK_ID.pattern})"))
UNUSUAL = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"origin", b"traceparent"})
"""Headers that ask for more than an answer."""
READ = {b"host": "host", b"authorization": "authorization", b"x-request-id": "x-request-id"}


@dataclass(frozen=True)
class Call:
    """A prediction as its head asks for it, by a caller who may. ``limits``: the headers of the caller's rate limit.

    ``is_plain``: the body is one image, of a size within the limits.
    """

    here: Served
    caller: Caller
    limits: Headers
    task_id: str
    request_id: str
    is_plain: bool
    began_at: float


class DirectProtocol(PatientProtocol):
    """One connection, which answers plain predictions itself."""

    def __init__(self, *arguments: Any, app: FastAPI, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._state = app.state
        self._awaited: tuple[Call, RequestResponseCycle] | None = None
        self._running: Request | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End a prediction that is under way: nobody reads its answer, and others wait behind it."""
        super().connection_lost(exc)
        if self._awaited is not None:
            (call, cycle), self._awaited = self._awaited, None
            self._give_up(call, cycle)
        if self._running is not None:
            self._state.served.tasks.withdraw(self._running)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Where the server would call the application: do so, or refuse, or wait for the body of a plain prediction."""
        is_alone = not self.pipeline and not self.flow.write_paused  # so no answer leads to the next one's, and so on
        call = _call(cycle.scope, self._state.served) if is_alone else None
        if call is None:
            super()._start_asgi_task(cycle, app)
            return
        try:
            call.here.tasks.refuse_if_full(call.caller.tenant, call.task_id)
        except Busy as error:
            self._turn_away(call, cycle, error)
            return
        if not call.is_plain:
            self._hand_over(call, cycle)
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
        image, tasks = bytes(cycle.body), call.here.tasks
        self._running = tasks.predict_at_once(call.caller.tenant, call.task_id, image, answer)
        if self._running is None:
            self._hand_over(call, cycle)

    def _answer(self, call: Call, cycle: RequestResponseCycle, result: Prediction | BaseException) -> None:
        """Send a prediction; what failed is tried again by the application, which has the words for it."""
        self._running = None
        if isinstance(result, Prediction):
            timings = {"queue": result.queue_ms, "decode": result.decode_ms, "run": result.run_ms}
            self._send(call, cycle, Response(encode(result), media_type=JSON), timings)
        elif isinstance(result, CancelledError):
            self._give_up(call, cycle)
        else:
            self._hand_over(call, cycle)

    def _turn_away(self, call: Call, cycle: RequestResponseCycle, error: Busy) -> None:
        """Send a refusal; a body that is still on its way is dropped as it arrives."""
        with _known_by(call):
            self._send(call, cycle, refusal(cycle.scope["path"], error), {})

    def _give_up(self, call: Call, cycle: RequestResponseCycle) -> None:
        """Count a request whose client has left before its answer."""
        with _known_by(call):
            record(call.here.metrics, cycle.scope, ADDRESS, CLIENT_WENT_AWAY, perf_counter() - call.began_at)

    def _send(self, call: Call, cycle: RequestResponseCycle, response: Response, timings: Mapping[str, float]) -> None:
        """Answer as the application would, header by header."""
        total_s = perf_counter() - call.began_at
        if not self.transport.is_closing():
            own = [
                (b"x-request-id", call.request_id.encode()),
                (b"server-timing", server_timing(**timings, total=total_s * 1e3).encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            closing = [] if cycle.keep_alive else [(b"connection", b"close")]
            headers = [*self.server_state.default_headers, *response.raw_headers, *call.limits, *own, *closing]
            lines = [b"%s: %s\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body]))
            if not cycle.keep_alive:
                self.transport.close()
        record(call.here.metrics, cycle.scope, ADDRESS, response.status_code, total_s)
        cycle.response_complete, cycle.body = True, bytearray()
        self.on_response_complete()

    def _hand_over(self, call: Call, cycle: RequestResponseCycle) -> None:
        """Leave the request to the application, as if nothing had been done about it."""
        call.here.rate_limits.give_back(call.caller)
        super()._start_asgi_task(cycle, self.app)


@contextmanager
def _known_by(call: Call) -> Iterator[None]:
    """Around what is logged of a request: by its id."""
    token = request_id.set(call.request_id)
    try:
        yield
    finally:
        request_id.reset(token)


def _call(scope: Mapping[str, Any], here: Served | None) -> Call | None:
    """The prediction a head asks for; None where there is anything about it that the application had better see."""
    began_at = perf_counter()
    if scope["method"] != "POST" or scope["query_string"] or (address := PATH.fullmatch(scope["path"])) is None:
        return None
    if here is None or here.is_traced or log.isEnabledFor(logging.DEBUG):
        return None
    headers = dict(scope["headers"])
    if len(headers) != len(scope["headers"]) or not UNUSUAL.isdisjoint(headers):
        return None
    length = headers.get(b"content-length", b"")
    if not (length.isdigit() and len(length) < 20 and int(length) <= here.settings.max_request_bytes):
        return None
    sent = {text: headers[name].decode("latin-1") for name, text in READ.items() if name in headers}
    try:
        caller = here.keyring.caller(sent)
    except ClassmithError:
        return None
    admission = here.rate_limits.take(caller)
    if admission.wait_s:
        return None
    is_image = headers.get(b"content-type", b"").startswith(b"image/")
    is_plain = is_image and _is_within(here, int(length))
    ident = choose_request_id(sent.get("x-request-id"))
    return Call(here, caller, admission.headers, address[1], ident, is_plain, began_at)


def _is_within(here: Served, n_bytes: int) -> bool:
    """Whether one image of this size passes every limit that does not ask for its pixels."""
    settings = here.settings
    return 0 < n_bytes <= settings.max_image_bytes and settings.max_image_pixels <= settings.max_request_pixels
