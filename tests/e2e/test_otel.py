"""OTLP as it leaves real processes: one trace through service, Redis and worker, and the metrics of /metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tests.e2e.processes import Service, serve, worker
from tests.redis_server import free_port
from tests.service import centroids
from tests.service.processes import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, and keeps it by the name of the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.metrics: list[tuple[str, Metric]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in self.spans if span.name == name]

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                self.spans.extend((_service(resource), span) for span in spans)
        else:
            assert path == "/v1/metrics"
            for sent in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                found = [metric for scope in sent.scope_metrics for metric in scope.metrics]
                self.metrics.extend((_service(sent), metric) for metric in found)


def _service(sent: Any) -> str:
    (name,) = (one.value.string_value for one in sent.resource.attributes if one.key == "service.name")
    return str(name)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found
        found.shutdown()
        thread.join()


def test_a_task_made_by_a_worker_is_one_trace(
    tmp_path: Path, collector: Collector, shared: dict[str, object], redis_client: Redis
) -> None:
    centroids.meta_model(tmp_path / "meta-models")
    with serve(**shared) as service, worker(redis_client, shared):
        made = service.http.post("/tasks", json=centroids.task_json(), headers={"traceparent": PARENT})
        assert made.status_code == 201
        until(lambda: bool(collector.named("job")) and bool(collector.named("POST /tasks")))
    ((api, request),) = collector.named("POST /tasks")
    ((_, generation),) = collector.named("generation")
    ((worker_, job),) = collector.named("job")
    ((_, generate),) = collector.named("generate")
    assert (api, worker_) == ("classmith-api", "classmith-worker")
    assert [span.trace_id.hex() for span in (request, generation, job, generate)] == [TRACE] * 4
    assert generation.parent_span_id == request.span_id
    assert job.parent_span_id == generation.span_id
    assert generate.parent_span_id == job.span_id


def test_the_metrics_sent_are_those_of_a_scrape(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    centroids.meta_model(tmp_path / "meta-models")
    with serve(meta_models=tmp_path / "meta-models", state_dir=tmp_path / "state") as service:
        made = service.http.post("/tasks", json=centroids.task_json())
        assert made.status_code == 201
        scraped = text_string_to_metric_families(service.http.get("/metrics").text)
        names = {family.name + "_total" * (family.type == "counter") for family in scraped}
        assert stopped(service) == 0
    sent = {metric.name: metric for service_name, metric in collector.metrics if service_name == "mine"}
    assert {name for name in names if not name.endswith("_created")} == set(sent)
    (point,) = sent["classmith_generation_duration_seconds"].histogram.data_points
    assert (point.count, sum(point.bucket_counts), len(point.bucket_counts)) == (1, 1, len(point.explicit_bounds) + 1)
    points = sent["classmith_generations_total"].sum.data_points
    assert {point.attributes[0].value.string_value: point.as_double for point in points} == {"made": 1, "failed": 0}


def test_a_collector_that_is_not_there_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    centroids.meta_model(tmp_path / "meta-models")
    with serve(meta_models=tmp_path / "meta-models", state_dir=tmp_path / "state") as service:
        assert service.http.post("/tasks", json=centroids.task_json()).status_code == 201
        assert stopped(service) == 0


def stopped(service: Service) -> int:
    service.http.close()
    return service.stop()
