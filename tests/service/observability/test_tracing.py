"""Traces: a request is one trace, from its caller to the generator, and no span holds what a user sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from redis import Redis

from service.demo.alphabet import drawing
from service.generation.jobs import JobQueue
from service.observability.otel import asked_for, exported
from service.observability.otel_sdk import OtelTracing
from service.observability.telemetry import Metrics
from service.observability.tracing import NO_TRACING, parse, trace_context, under
from service.settings import Settings
from tests.e2e.processes import ROOT
from tests.service import centroids
from tests.service.live import Live, live
from tests.service.processes import until

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
SECRET = "grandmothers-secret-recipe"


class Recorded:
    """A service whose spans are kept here."""

    def __init__(self, service: Live, exporter: InMemorySpanExporter) -> None:
        self.http, self.service, self._exporter = service.http, service, exporter

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        """The one span of that name, once it has ended."""
        until(lambda: any(span.name == name for span in self.all()))
        (found,) = (span for span in self.all() if span.name == name)
        return found


@pytest.fixture
def recorded(settings: Settings) -> Iterator[Recorded]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with live(settings, OtelTracing(provider)) as service:
        yield Recorded(service, exporter)


def parent_id(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent else ""


def span_id(span: ReadableSpan) -> str:
    return f"{span.get_span_context().span_id:016x}"


def test_a_new_task_is_one_trace_from_the_caller_to_the_generator(recorded: Recorded) -> None:
    task = recorded.service.task(centroids.task_json(), traceparent=PARENT, tracestate="vendor=1")
    request, generation, generate = (recorded.named(name) for name in ("POST /tasks", "generation", "generate"))
    assert parent_id(request) == CALLER
    assert parent_id(generation) == span_id(request)
    assert parent_id(generate) == span_id(generation)
    assert {span.get_span_context().trace_id for span in (request, generation, generate)} == {int(TRACE, 16)}
    assert request.get_span_context().trace_state.get("vendor") == "1"
    assert dict(generation.attributes or {}) == {"classmith.task_id": task["id"], "classmith.state": "ready"}
    assert (generate.attributes or {})["classmith.n_classes"] == len(task["classes"])


def test_a_prediction_says_where_its_time_went(recorded: Recorded) -> None:
    task = recorded.service.task(centroids.task_json())
    answer = recorded.http.post(
        f"/tasks/{task['id']}/predict", content=drawing(1, 0), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 200
    attributes = dict(recorded.named("POST /tasks/{task_id}/predict").attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["classmith.request_id"] == answer.headers["x-request-id"]
    for stage in ("queue", "decode", "run"):
        assert f"{stage};dur={attributes[f'classmith.{stage}.duration_ms']:.2f}" in answer.headers["server-timing"]


def test_no_span_holds_what_a_user_sent(recorded: Recorded) -> None:
    body = centroids.task_json()
    body["classes"][0]["name"] = SECRET
    recorded.service.task(body)
    body["classes"][1]["name"] = SECRET  # refused, in words that quote it
    refused = recorded.http.post("/tasks", json=body)
    assert refused.status_code == 422
    assert SECRET in refused.text
    recorded.http.get(f"/{SECRET}?q={SECRET}", headers={"User-Agent": SECRET, "Host": f"{SECRET}.localhost"})
    recorded.http.post(f"/tasks/{SECRET}/predict", content=SECRET.encode(), headers={"Content-Type": "image/png"})
    recorded.named("generate")
    recorded.named("POST /tasks/{task_id}/predict")
    recorded.named("GET unknown")
    assert not [span.name for span in recorded.all() if SECRET in span.to_json()]


GLOBAL_PROVIDER = """
import pathlib, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service.settings import Settings
from tests.service.live import live

exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with live(Settings(state_dir=pathlib.Path(sys.argv[1]), meta_models=pathlib.Path(sys.argv[1]))) as service:
    service.http.get("/private?q=private")
print([span.name for span in exporter.get_finished_spans()])
"""


def test_the_framework_records_nothing_where_somebody_made_a_provider_global(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GLOBAL_PROVIDER, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_type_of_an_exception_is_kept_and_not_its_message() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(ValueError, match=SECRET), OtelTracing(provider).span("load"):
        raise ValueError(SECRET)
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert SECRET not in span.to_json()
    assert trace_context.get() == {}


def test_probes_and_scrapes_are_not_traced(recorded: Recorded) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert recorded.http.get(path).status_code == 200
    recorded.http.get("/tasks")
    recorded.named("GET /tasks")
    assert [span.name for span in recorded.all()] == ["GET /tasks"]


def test_a_trace_that_is_not_sampled_travels_on() -> None:
    tracing_ = OtelTracing(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    with under({"traceparent": PARENT}), tracing_.span("generation"):
        here = trace_context.get()["traceparent"]
    assert here.split("-")[1] == TRACE
    assert here.endswith("-00")


def test_a_job_is_part_of_the_trace_of_whoever_asked(redis_client: Redis, redis_prefix: str) -> None:
    queue = JobQueue(redis_client, prefix=redis_prefix)
    assert queue.take("w", wait_s=0.01) is None  # makes the group
    context = {"traceparent": PARENT, "tracestate": "vendor=1"}
    with under(context):
        queue.put("ann", "a1")
    queue.put("ann", "a2")
    first, second = queue.take("w", wait_s=1), queue.take("w", wait_s=1)
    assert first is not None
    assert (first.task_id, first.trace) == ("a1", context)
    assert second is not None
    assert (second.task_id, second.trace) == ("a2", {})


@pytest.mark.parametrize(
    "sent",
    [
        "", "00", PARENT + "-", PARENT.upper(), "ff" + PARENT[2:], PARENT.replace(TRACE, "0" * 32),
        PARENT.replace(CALLER, "0" * 16), PARENT + "\n", PARENT[:-1], "00-" + SECRET,
    ],
)  # fmt: skip
def test_what_is_no_traceparent_begins_no_trace(sent: str) -> None:
    assert parse([("traceparent", sent), ("tracestate", "vendor=1")]) == {}


def test_a_tracestate_without_end_is_left_out() -> None:
    assert parse([("traceparent", PARENT), ("tracestate", "v=" + "x" * 600)]) == {"traceparent": PARENT}
    assert parse([("tracestate", "vendor=1")]) == {}


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, False, False),
        ({ENDPOINT: "http://c:4318"}, True, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, False, True),
        ({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False, False),
        ({"OTEL_SERVICE_NAME": "x"}, False, False),
    ],
)
def test_it_is_off_unless_the_standard_variables_ask(environ: dict[str, str], traces: bool, metrics: bool) -> None:
    assert (asked_for("TRACES", environ), asked_for("METRICS", environ)) == (traces, metrics)


@pytest.mark.parametrize(
    ("environ", "said"),
    [({}, "pip install 'classmith[otel]'"), ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "must be http/protobuf")],
)
def test_what_cannot_be_exported_is_no_reason_not_to_serve(
    environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "service.observability.otel_sdk", None)  # as where the extra is not installed
    monkeypatch.delattr("service.observability.otel_sdk", raising=False)
    with exported({ENDPOINT: "http://127.0.0.1:1", **environ}, Metrics(), "classmith-api") as found:
        assert found is NO_TRACING
    assert said in caplog.text


def test_no_exporter_is_imported_where_nobody_asks() -> None:
    code = "import sys, json, service.serving.server, service.generation.worker; print(json.dumps([*sys.modules]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules: list[str] = json.loads(printed)
    assert "service.observability.otel" in modules
    assert not [
        name for name in modules if name.startswith(("service.observability.otel_sdk", "opentelemetry.exporter"))
    ]
