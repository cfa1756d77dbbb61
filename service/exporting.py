"""Classifiers as ONNX files that run anywhere, made in threads of their own, so that they keep no store's from others.

Of a large network that is tens of megabytes, and a bundle that was lost is made again first. Few may wait, and tenants
take turns.
"""

from __future__ import annotations

from time import perf_counter

from models.errors import Busy
from models.graph import self_contained
from service.backpressure import jittered
from service.fair_pool import FairPool
from service.observability.telemetry import Metrics
from service.prediction.loading import Loader

N_THREADS, MAX_WAITING = 2, 8
TYPICAL_EXPORT_S = 0.2


class Exporter:
    """Exports tasks that are ready; used from one event loop."""

    def __init__(self, loader: Loader, metrics: Metrics) -> None:
        self._loader, self._shed = loader, metrics.shed.labels("export_queue_full")
        self._pool = FairPool(N_THREADS, "classmith-export")
        self._export_s = TYPICAL_EXPORT_S

    def close(self) -> None:
        """Let the files being made end."""
        self._pool.shutdown()

    async def export(self, tenant: str, task_id: str) -> bytes:
        """A task's file; raises Busy where MAX_WAITING run or wait, each tenant its share, and what loading raises."""
        if not self._pool.has_room(tenant, MAX_WAITING):
            self._shed.inc()
            wait_s = jittered(self._pool.n_work * self._export_s / N_THREADS)
            raise Busy("Too many classifiers are being exported; try again in a moment.", retry_after_s=wait_s)
        return await self._pool.run(tenant, lambda: self._file(tenant, task_id))

    def _file(self, tenant: str, task_id: str) -> bytes:
        began_at, record = perf_counter(), self._loader.record(tenant, task_id)
        bundle = self._loader.bundle(record)
        made = self_contained(self._loader.catalogue.get(record.meta_model), bundle.header, bundle.tensors)
        self._export_s = 0.8 * self._export_s + 0.2 * (perf_counter() - began_at)
        return made
