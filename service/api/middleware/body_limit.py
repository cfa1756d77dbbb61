"""No request body grows past the limit, whatever its headers say: the bytes are counted as they arrive."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import TooLarge

DISCARDED_AT_MOST = 4
"""Bodies up to this many times the limit are read to their end and dropped, so that plain clients see the answer."""


class BodyLimit:
    """Raises TooLarge inside the application, where it becomes a 413 problem document."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self.app(scope, receive, send)
            return
        declared = _declared_bytes(scope)
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            if declared is not None and declared > self.max_bytes:
                raise self._too_large()
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self.max_bytes:
                raise self._too_large()
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 413:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        is_endless = declared is None or declared > DISCARDED_AT_MOST * self.max_bytes
        await self.app(scope, counted, closing if is_endless else send)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is over the limit of {self.max_bytes / 1e6:g} MB a request; send fewer or smaller images."
        )


def _declared_bytes(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else None
    return None
