"""What processes that share a port know of each other: any of them tells the metrics of all, each under its number.

A scrape reaches one process at random. It asks the others over sockets in a folder that only they know, and gives every
sample the label ``process``; whoever does not answer (it is being replaced) is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.observability.telemetry import SCRAPE_S, Metrics

ANSWER_S = 3 * SCRAPE_S
"""Longer than another waits for a silent Redis before it tells the rest."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Siblings:
    """Process ``index`` of ``n``, and the folder of their sockets."""

    folder: Path
    n: int
    index: int

    @asynccontextmanager
    async def answering(self, metrics: Metrics) -> AsyncIterator[None]:
        """Tell the others this process's metrics during the block."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await asyncio.to_thread(metrics.render))
            await writer.drain()
            writer.close()

        own = self._socket(self.index)
        own.unlink(missing_ok=True)  # of the one that this process replaces
        server = await asyncio.start_unix_server(tell, own)
        try:
            yield
        finally:
            server.close()

    async def render(self, metrics: Metrics) -> bytes:
        """The metrics of all, in the text format of Prometheus."""
        others = [i for i in range(self.n) if i != self.index]
        told = await asyncio.gather(*(self._ask(i) for i in others))
        found = {i: text for i, text in zip(others, told, strict=True) if text is not None}
        return await asyncio.to_thread(lambda: merged({self.index: metrics.render().decode(), **found}))

    async def _ask(self, index: int) -> str | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(index))
                try:
                    return (await reader.read()).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            log.warning("a process did not tell its metrics", extra={"error_type": type(error).__name__})
            return None

    def _socket(self, index: int) -> Path:
        return self.folder / str(index)


def merged(texts: Mapping[int, str]) -> bytes:
    """Metrics of processes by their numbers -> those of all, with the label ``process``."""
    families: dict[str, Metric] = {}
    for index, text in sorted(texts.items()):
        for found in text_string_to_metric_families(text):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [s._replace(labels={**s.labels, "process": str(index)}) for s in found.samples]
    return generate_latest(_Collected(families.values()))


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
