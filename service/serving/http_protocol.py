"""HTTP/1.1 as uvicorn speaks it with httptools, with bounds on what comes before a request's body.

The parser keeps a header until it is whole, however long it grows, and waits for it however long it takes. Here a head
(the request line and all headers) has a size and a time, and what the parser refuses is answered with a problem
document as everything else is.
"""

from __future__ import annotations

import asyncio
import json

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 65_536
HEAD_TIMEOUT_S = 30.0
BAD_REQUEST = (400, "Bad Request", "This is not an HTTP/1.1 request; use an HTTP client.")
HEAD_TOO_LARGE = (
    431,
    "Request Header Fields Too Large",
    f"The request line and headers are over the limit of {MAX_HEAD_BYTES} bytes; send less before the body.",
)


class HttpProtocol(HttpToolsProtocol):
    """One connection. A client that is silent or slow before a body is let go of after ``HEAD_TIMEOUT_S``."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_in_head = True
        self._n_head_bytes = self._n_new_bytes = 0
        self._refusal = BAD_REQUEST
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count it where a head is not whole yet."""
        self._n_new_bytes = len(data)
        super().data_received(data)
        if not self._is_in_head:
            self._stop_timer()
            if self.cycle.response_complete and self.timeout_keep_alive_task is None:  # between requests, still idle
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif not self.transport.is_closing():
            self._n_head_bytes += self._n_new_bytes
            if self._n_head_bytes > MAX_HEAD_BYTES:
                self._refusal = HEAD_TOO_LARGE
                self.send_400_response("")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_in_head = True
        self._n_head_bytes = self._n_new_bytes = 0  # how much of this data came before is not known
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole: refuse it (an exception ends the parsing), or let the application begin."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = HEAD_TOO_LARGE
            raise ValueError(HEAD_TOO_LARGE[1])
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError(BAD_REQUEST[1])
        super().on_headers_complete()  # refuses, too: a target that is none
        self._is_in_head, self._n_head_bytes = False, 0

    def send_400_response(self, msg: str) -> None:
        """Answer with why the request is refused, and close; ``msg`` is the server's own wording of a parser error."""
        status, title, detail = self._refusal
        kind = f"urn:classmith:problem:{title.lower().replace(' ', '-')}"
        body = json.dumps({"type": kind, "title": title, "status": status, "detail": detail}).encode()
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n"
            f"x-content-type-options: nosniff\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
