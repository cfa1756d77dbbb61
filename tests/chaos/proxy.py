"""A TCP proxy in a thread of the test: delays, cuts, or swallows what goes through it, while it goes through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Weather:
    """What a proxy does to every piece: hold it back for ``delay_s``, or let nothing through at all.

    ``is_cut``: connections are closed and refused. ``is_silent``: they stay open, and nothing arrives (half-open).
    """

    delay_s: float = 0.0
    is_cut: bool = False
    is_silent: bool = False


CLEAR = Weather()


class Proxy:
    """Listens on a free loopback port and connects to ``target_port``; ``weather`` may change at any time."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._weather = CLEAR
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def become(self, weather: Weather) -> None:
        """Change at once, for connections that are open, too."""
        self._call(self._become(weather))

    def close(self) -> None:
        """Close every connection, and end the thread."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _become(self, weather: Weather) -> None:
        was_silent, self._weather = self._weather.is_silent, weather
        if weather.is_cut or was_silent:  # what was swallowed cannot be given back
            self._drop()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _shut(self) -> None:
        self._server.close()
        self._drop()
        pumps = [*self._pumps]
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    def _drop(self) -> None:
        for writer in [*self._writers]:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._weather.is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = self._loop.create_task(self._pump(source, sink, pair))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: set[asyncio.StreamWriter]
    ) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await asyncio.sleep(self._weather.delay_s)
                while self._weather.is_silent:
                    await self._changed.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            for writer in pair:
                writer.transport.abort()
            self._writers -= pair
