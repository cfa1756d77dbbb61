"""The stores and the generation that a service has: embedded, or shared through Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.bundle import Bundle
from models.device import providers_on
from models.errors import Unavailable
from models.generator import Codes, OnnxGenerator
from models.metamodel import MetaModel
from models.task import TaskSpec
from models.text import Encoders
from service.catalogue import Catalogue
from service.generation.jobs import JobQueue
from service.generation.once import LocalGeneration
from service.generation.queued import QueuedGeneration
from service.idempotency import IdempotencyStore, RedisIdempotencyStore, SqliteIdempotencyStore
from service.observability.telemetry import SCRAPE_S, Metrics
from service.observability.tracing import NO_TRACING, Attributes, Tracing
from service.ports import BundleStore, Generation, TaskStore
from service.settings import Settings
from service.stores.files import FileBundleStore
from service.stores.in_use import use
from service.stores.redis import RedisTaskStore
from service.stores.redis_bundles import RedisBundleStore
from service.stores.redis_client import connect, durability_problems
from service.stores.sqlite import SqliteTaskStore
from service.stores.sqlite_schema import KEYS_FILE, TASKS_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """Where tasks, bundles and idempotency keys are, and what makes the bundles. ``close`` closes all of it.

    ``prepare`` loads the generators that "auto" chooses, so that their tasks need not wait for it: some tenths of a
    second each. The others are loaded, and take memory, when they are first asked for.
    """

    tasks: TaskStore
    bundles: BundleStore
    keys: IdempotencyStore
    generation: Generation
    prepare: Callable[[], None]
    closers: tuple[Callable[[], None], ...]
    generator: OnnxGenerator
    """The one of this process."""

    def close(self) -> None:
        """Close in order: who uses a store before the store."""
        for close in self.closers:
            close()


class MeasuredGenerator(OnnxGenerator):
    """The generator, with its times and ends in the metrics, and a span of each."""

    def __init__(
        self,
        metrics: Metrics,
        encoders: Encoders,
        tracing: Tracing = NO_TRACING,
        *,
        providers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(providers=providers, encoders=encoders)
        self._seconds, self._ends, self._tracing = metrics.generation_seconds, metrics.generations, tracing

    def generate(self, meta_model: MetaModel, spec: TaskSpec, *, codes: Codes | None = None) -> Bundle:
        """One task's bundle."""
        outcome = "failed"
        try:
            with self._tracing.span("generate", attributes=_attributes(meta_model, spec)), self._seconds.time():
                written = super().generate(meta_model, spec, codes=codes)
            outcome = "made"
            return written
        finally:
            self._ends.labels(outcome).inc()


def _attributes(meta_model: MetaModel, spec: TaskSpec) -> Attributes:
    n_images = sum(len(one.images) for one in spec.classes)
    return {
        "classmith.meta_model": meta_model.name,
        "classmith.n_classes": len(spec.classes),
        "classmith.n_images": n_images,
    }


def open_storage(
    settings: Settings, catalogue: Catalogue, metrics: Metrics, encoders: Encoders, tracing: Tracing = NO_TRACING
) -> Storage:
    """Redis where one is configured, else files below ``state_dir``."""
    generator = MeasuredGenerator(metrics, encoders, tracing, providers=providers_on(settings.device))
    if settings.redis_url:
        return _shared(settings, catalogue, generator, metrics)
    return _embedded(settings, catalogue, generator)


def _embedded(settings: Settings, catalogue: Catalogue, generator: OnnxGenerator) -> Storage:
    folder = settings.state_dir
    used = use(folder)
    tasks = SqliteTaskStore(folder / TASKS_FILE)
    bundles = FileBundleStore(folder / "bundles", settings.bundle_bytes)
    keys = SqliteIdempotencyStore(folder / KEYS_FILE, keep_s=settings.idempotency_s)
    generation = LocalGeneration(tasks, bundles, catalogue.by_name, lease_s=settings.lease_s, generator=generator)
    return Storage(
        tasks,
        bundles,
        keys,
        generation,
        _preparation(generator, catalogue),
        (generation.close, bundles.close, tasks.close, used.close),
        generator,
    )


def _shared(settings: Settings, catalogue: Catalogue, generator: OnnxGenerator, metrics: Metrics) -> Storage:
    client, prefix = connect(settings.redis_url), settings.redis_prefix
    tasks, bundles = RedisTaskStore(client, prefix), RedisBundleStore(client, settings.bundle_ttl_s, prefix=prefix)
    keys = RedisIdempotencyStore(client, keep_s=settings.idempotency_s, prefix=prefix)
    local = LocalGeneration(tasks, bundles, catalogue.by_name, lease_s=settings.lease_s, generator=generator)
    queue = JobQueue(client, alive_s=settings.lease_s, prefix=prefix)
    watching = connect(settings.redis_url, timeout_s=SCRAPE_S)
    watched = JobQueue(watching, alive_s=settings.lease_s, prefix=prefix)
    metrics.watch_queue(watched.n_jobs, watched.n_workers)
    generation = QueuedGeneration(queue, tasks, local, max_jobs=settings.max_pending_generations)
    try:
        for problem in durability_problems(client):
            log.warning(problem)
    except Unavailable as error:  # it may come up later; /readyz says no until then
        log.warning(error.message)
    closers = (generation.close, bundles.close, tasks.close, client.close, watching.close)
    return Storage(tasks, bundles, keys, generation, _preparation(generator, catalogue), closers, generator)


def _preparation(generator: OnnxGenerator, catalogue: Catalogue) -> Callable[[], None]:
    def prepare() -> None:
        for meta_model in catalogue.first_choices:
            try:
                generator.prepare(meta_model)
            except Exception:  # said again, to its user, by the first task that needs it
                log.exception("a generator cannot be loaded", extra={"meta_model": meta_model.name})

    return prepare
