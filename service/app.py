"""The composition root: settings in, a FastAPI application out.

``create_app`` opens nothing; the lifespan builds every part, hands it on, and at the end drains and closes it in the
opposite order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from models import quantised
from models.device import providers_on
from models.errors import ClassmithError
from models.text import Encoders
from service.api import (
    errors,
    explain,
    health,
    meta_models,
    open_inference,
    open_inference_models,
    openapi,
    page,
    predict,
    tasks,
)
from service.api.auth import Keyring
from service.api.middleware.body_limit import BodyLimit
from service.api.middleware.context import RequestContext
from service.api.rate_limits import RateLimits
from service.api.state import Served
from service.catalogue import Catalogue, nothing_in, read_catalogue
from service.descriptions import DescriptionReader, prepare_encoders
from service.explaining import Explainer
from service.exporting import Exporter
from service.generation.pending import PendingGenerations
from service.images import Intake
from service.observability.siblings import Siblings
from service.observability.telemetry import Metrics, release
from service.observability.tracing import NO_TRACING, TracedGeneration, Tracing, traced_load
from service.ports import Generation, TaskRecord, TaskStore
from service.prediction.batching import Batcher
from service.prediction.loading import Loader
from service.prediction.session_cache import SessionCache
from service.prediction.sessions import Placement, SharedNetworks
from service.registration import Registration
from service.requests import Specifier
from service.settings import Settings
from service.storage import open_storage
from service.tasks import Tasks

N_STORE_THREADS = 8
DESCRIPTION = "Image classifiers on demand: a network made for exactly your classes, in one forward pass."
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own spans and logs carry paths, queries and messages of exceptions, which may quote a class name."""
log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    tracing: Tracing = NO_TRACING,
    siblings: Siblings | None = None,
) -> FastAPI:
    """The application; raises InvalidSettings where the API keys cannot be read."""
    keyring, metrics = Keyring(settings.keys()), metrics or Metrics()
    limits = RateLimits(settings.rate_per_s, settings.rate_burst)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            tasks = await _build(stack, settings, metrics, tracing)
            if siblings:
                await stack.enter_async_context(siblings.answering(metrics))
            app.state.served = Served(
                settings, tasks, keyring, metrics, limits, siblings, is_traced=tracing is not NO_TRACING
            )
            stack.callback(app.state.served.stopping.set)
            yield
        app.state.served = None

    app = FastAPI(
        title="Classmith",
        description=DESCRIPTION,
        version=release(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to whatever Host a request names
        telemetry=NO_TELEMETRY,
    )
    app.state.served = None
    parts = (predict, open_inference_models, open_inference, tasks, meta_models, explain, health, page)
    for part in parts:  # flat, the hot one first
        app.router.routes.extend(part.router.routes)
    errors.install(app)
    openapi.install(app, with_keys=bool(settings.api_keys or settings.api_keys_file))
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing)
    return app


def _placement(settings: Settings, catalogue: Catalogue) -> Placement:
    """Where networks run; in 8-bit integers only where the processor is made for it."""
    providers = providers_on(settings.device)
    if not settings.int8:
        return Placement(providers)
    if not quantised.is_worthwhile():
        log.warning("CLASSMITH_INT8 is left aside: this processor has no instructions for 8-bit integers")
        return Placement(providers)
    return Placement(providers, catalogue.quantised())


async def _build(stack: AsyncExitStack, settings: Settings, metrics: Metrics, tracing: Tracing) -> Tasks:
    """Every part, in the order they need each other; the stack takes them apart."""
    pool = ThreadPoolExecutor(N_STORE_THREADS, "classmith-store")
    stack.callback(pool.shutdown)
    catalogue = await asyncio.to_thread(read_catalogue, settings.meta_models)
    if not catalogue.names:  # tasks of before are still listed and deleted, and /readyz says what is missing
        log.error("%s", nothing_in(settings.meta_models))
    encoders = Encoders(settings.text_encoder, download=settings.download_encoder)
    storage = await asyncio.to_thread(open_storage, settings, catalogue, metrics, encoders, tracing)
    stack.callback(storage.close)
    pool.submit(storage.prepare)
    if settings.text_encoder_at_start:
        pool.submit(prepare_encoders, catalogue.text_encoders, encoders)
    generation = TracedGeneration(storage.generation, tracing)
    networks = SharedNetworks(_placement(settings, catalogue))
    loader = Loader(storage.tasks, storage.bundles, generation, catalogue, networks)
    exporter = Exporter(loader, metrics)
    stack.callback(exporter.close)
    sessions = SessionCache(
        traced_load(tracing, loader.session),
        loader.exists,
        max_bytes=settings.session_bytes,
        min_residency_s=settings.min_residency_s,
        revalidate_s=settings.revalidate_s,
        metrics=metrics,
    )
    stack.push_async_callback(sessions.close)
    batcher = _batcher(settings, metrics)
    stack.push_async_callback(batcher.drain)
    intake = Intake(
        n_threads=settings.n_runners,
        max_pixels=settings.max_image_pixels,
        max_queue=settings.max_queue,
        metrics=metrics,
    )
    stack.callback(intake.close)
    pending = _pending(stack, settings, generation, storage.tasks, metrics, _Warmer(sessions))
    specifier = Specifier(settings, catalogue, intake, DescriptionReader(encoders))
    explainer = Explainer(loader, storage.generator, encoders, max_pixels=settings.max_image_pixels, metrics=metrics)
    stack.callback(explainer.close)
    registration = Registration(storage.tasks, storage.keys, specifier, loader, pending, pool)
    return Tasks(
        storage.tasks, storage.bundles, registration, loader, pending, sessions, batcher, explainer, exporter, pool
    )


def _batcher(settings: Settings, metrics: Metrics) -> Batcher:
    return Batcher(
        n_runners=settings.n_runners,
        max_batch=settings.max_batch,
        max_queue_images=settings.max_queue,
        deadline_s=settings.deadline_s,
        batch_s=settings.batch_s,
        max_pixels=settings.max_image_pixels,
        metrics=metrics,
    )


def _pending(
    stack: AsyncExitStack,
    settings: Settings,
    generation: Generation,
    store: TaskStore,
    metrics: Metrics,
    on_ready: Callable[[TaskRecord], None],
) -> PendingGenerations:
    pending = PendingGenerations(
        generation,
        store,
        n_threads=settings.n_generations,
        max_pending=settings.max_pending_generations,
        recover_s=settings.lease_s,
        min_age_s=settings.lease_s if settings.redis_url else 0.0,
        on_ready=on_ready,
        metrics=metrics,
    )
    stack.push_async_callback(pending.close)
    pending.start_recovery()
    return pending


class _Warmer:
    """Makes the session of a task that was just made, so that its first prediction does not wait for it."""

    def __init__(self, sessions: SessionCache) -> None:
        self._sessions = sessions
        self._warming: set[asyncio.Task[None]] = set()

    def __call__(self, record: TaskRecord) -> None:
        warming = asyncio.create_task(self._warm(record))
        self._warming.add(warming)
        warming.add_done_callback(self._warming.discard)

    async def _warm(self, record: TaskRecord) -> None:
        try:
            async with self._sessions.lease(record.tenant, record.id):
                pass
        except ClassmithError as error:
            log.info("a new task could not be warmed", extra={"task_id": record.id, "error_type": type(error).__name__})
