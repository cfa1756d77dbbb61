"""What needs the OpenTelemetry SDK: spans sent in batches, and the metrics' registry as OTLP data."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_METRIC_EXPORT_INTERVAL
from opentelemetry.sdk.metrics import export as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

from service.observability.tracing import NO_ATTRIBUTES, Attributes, Kind, Tracing, trace_context, under

NAME = "classmith"
INTERVAL_MS = 60_000.0
FLUSH_S = 2.0
KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "consumer": trace.SpanKind.CONSUMER,
}
CUMULATIVE = otlp.AggregationTemporality.CUMULATIVE
Labels = tuple[tuple[str, str], ...]


@contextmanager
def spans_exported(service: str) -> Iterator[Tracing]:
    """Spans go to where the standard variables say, sampled as they say, from a thread of their own."""
    provider, exporter = TracerProvider(resource=_resource(service), shutdown_on_exit=False), OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OtelTracing(provider)
    finally:
        with _retries_ended(exporter):
            provider.shutdown()


@contextmanager
def metrics_exported(registry: CollectorRegistry, service: str) -> Iterator[None]:
    """What ``registry`` holds is sent every ``OTEL_METRIC_EXPORT_INTERVAL`` milliseconds, and at the end."""
    exporter, resource, ended = OTLPMetricExporter(), _resource(service), threading.Event()
    interval_s = float(os.environ.get(OTEL_METRIC_EXPORT_INTERVAL) or INTERVAL_MS) / 1e3

    def send() -> None:
        while not ended.wait(interval_s):
            exporter.export(metrics_data(registry.collect(), resource))
        exporter.export(metrics_data(registry.collect(), resource))

    thread = threading.Thread(target=send, name="classmith-otlp-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        with _retries_ended(exporter):
            thread.join()
            exporter.shutdown()


@contextmanager
def _retries_ended(exporter: OTLPSpanExporter | OTLPMetricExporter) -> Iterator[None]:
    """At the end of the process a collector that is not there is not waited for longer than ``FLUSH_S``."""
    timer = threading.Timer(FLUSH_S, exporter.shutdown)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class OtelTracing:
    """Spans of a provider; the context travels in ``service.observability.tracing.trace_context`` alone."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, kind: Kind = "internal", attributes: Attributes = NO_ATTRIBUTES) -> Iterator[OtelSpan]:
        """A span around a block; of an exception that leaves it only the type is kept."""
        parent = self._propagator.extract(trace_context.get())
        began = self._tracer.start_span(name, parent, KINDS[kind], attributes, record_exception=False)
        here: dict[str, str] = {}
        self._propagator.inject(here, trace.set_span_in_context(began))
        span = OtelSpan(began)
        try:
            with under(here):
                yield span
        except BaseException as error:
            span.fail(type(error).__qualname__)
            raise
        finally:
            began.end()


class OtelSpan:
    """A span of ours over one of OpenTelemetry's."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def name(self, name: str) -> None:
        """Call it something else."""
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""
        self._span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        """It did not succeed."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)


def metrics_data(families: Iterable[Metric], resource: Resource) -> otlp.MetricsData:
    """A registry's families as OTLP: the same names, labels and values; cumulative, with the registry's own starts."""
    now_ns = time.time_ns()
    found = [metric for family in families if (metric := _metric(family, now_ns)) is not None]
    scope = otlp.ScopeMetrics(InstrumentationScope(NAME), found, "")
    return otlp.MetricsData([otlp.ResourceMetrics(resource, [scope], "")])


def _metric(family: Metric, now_ns: int) -> otlp.Metric | None:
    groups: dict[Labels, list[Sample]] = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        groups.setdefault(labels, []).append(sample)
    if family.type == "histogram":
        points = [_histogram(labels, samples, now_ns) for labels, samples in groups.items()]
        return otlp.Metric(family.name, family.documentation, "", otlp.Histogram(points, CUMULATIVE))
    numbers = [_number(labels, samples, now_ns) for labels, samples in groups.items()]
    if family.type == "counter":
        total = f"{family.name}_total"
        return otlp.Metric(total, family.documentation, "", otlp.Sum(numbers, CUMULATIVE, is_monotonic=True))
    if family.type in ("gauge", "unknown"):
        return otlp.Metric(family.name, family.documentation, "", otlp.Gauge(numbers))
    return None


def _number(labels: Labels, samples: list[Sample], now_ns: int) -> otlp.NumberDataPoint:
    value = next(sample.value for sample in samples if not sample.name.endswith("_created"))
    return otlp.NumberDataPoint(dict(labels), _created_ns(samples, now_ns), now_ns, value)


def _histogram(labels: Labels, samples: list[Sample], now_ns: int) -> otlp.HistogramDataPoint:
    """Prometheus counts every bucket with those below it, OTLP each alone."""
    below = sorted((float(s.labels["le"]), int(s.value)) for s in samples if s.name.endswith("_bucket"))
    counts = [count - before for (_, count), (_, before) in zip(below, [(0.0, 0), *below], strict=False)]
    total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
    bounds, n = [bound for bound, _ in below[:-1]], below[-1][1]
    start_ns = _created_ns(samples, now_ns)
    no_min: Any = None  # Prometheus keeps no least and no greatest value, and OTLP may leave them out
    return otlp.HistogramDataPoint(dict(labels), start_ns, now_ns, n, total, counts, bounds, no_min, no_min)


def _created_ns(samples: list[Sample], now_ns: int) -> int:
    return next((int(sample.value * 1e9) for sample in samples if sample.name.endswith("_created")), now_ns)


def _resource(service: str) -> Resource:
    """What the standard variables say, and where they say nothing: which service, and which process of it."""
    given = Resource.create()
    ours = {"service.instance.id": uuid.uuid4().hex, **given.attributes}
    if str(ours.get("service.name", "")).startswith("unknown_service"):
        ours["service.name"] = service
    return Resource(ours)
