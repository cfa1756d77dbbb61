"""What the service tells its operators: Prometheus metrics, JSON logs, Server-Timing; never what a user sent.

Metrics are in base units and carry no label whose values grow with use: no task, no tenant, no raw path. Logs carry
the request's id; of an exception only its type and stack are written, since messages may quote a class name.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from models.errors import Unavailable
from service.observability.tracing import trace_context

NAMESPACE = "classmith"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SCRAPE_S = 1.0
"""A scrape waits for Redis no longer, so that it still says that Redis is gone."""
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
SHED_REASONS = (
    "queue_full", "deadline", "expired", "cold_queue_full", "decode_queue_full", "generation_queue_full",
    "explain_queue_full", "export_queue_full", "rate_limit",
)  # fmt: skip
OUTCOMES = ("made", "failed")
LOG_FIELDS = (
    "method", "path", "endpoint", "status", "duration_ms", "n_images", "n_classes", "n_bytes", "task_id", "meta_model",
    "state", "reason", "attempt", "worker", "port", "error_type",
)  # fmt: skip
"""What a log line may carry besides its message, given as ``extra=``; anything else is left out."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request being answered; set by the HTTP layer, read by every log line under it."""

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Metrics:
    """Every metric of one process, in a registry of its own (two applications in one process do not collide)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("request", "HTTP requests answered.", "endpoint", "code")
        self.request_seconds = self._histogram("request_duration_seconds", "HTTP request time.", SECONDS, "endpoint")
        self.shed = self._counter("shed", "Requests refused to protect the others.", "reason")
        self.queue_depth = self._gauge("queue_depth", "Images waiting for a runner.")
        self.queue_seconds = self._histogram("queue_duration_seconds", "A request's wait for a runner.", SECONDS)
        self.decode_seconds = self._histogram("decode_duration_seconds", "Decoding of a request's images.", SECONDS)
        self.infer_seconds = self._histogram("infer_duration_seconds", "One run of a network on a batch.", SECONDS)
        self.batch_size = self._histogram("batch_size", "Images in one run of a network.", IMAGES)
        self.cache_hits = self._counter("cache_hits", "Found in the cache.", "tier")
        self.cache_misses = self._counter("cache_misses", "Not found in the cache.", "tier")
        self.cache_evictions = self._counter("cache_evictions", "Evicted to make room.", "tier")
        self.cache_bytes = self._gauge("cache_bytes", "Size of the cache.", "tier")
        self.session_create_seconds = self._histogram(
            "session_create_seconds", "Making a task's network ready to run.", SECONDS
        )
        self.generation_seconds = self._histogram("generation_duration_seconds", "Writing a task's weights.", SECONDS)
        self.generations = self._counter("generations", "Generations ended.", "outcome")
        self.generations_pending = self._gauge(
            "generations_pending", "Generations that this process does or waits for."
        )
        self._gauge("build_info", "1; the release is in the label.", "version").labels(release()).set(1)
        ProcessCollector(namespace=NAMESPACE, registry=self.registry)
        for reason in SHED_REASONS:  # a series that begins at 0: the first increase of one that appears is lost
            self.shed.labels(reason)
        for outcome in OUTCOMES:
            self.generations.labels(outcome)

    def watch_queue(self, n_jobs: Callable[[], int], n_workers: Callable[[], int]) -> None:
        """Ask the shared queue, at each scrape, how it stands."""
        self.registry.register(_SharedQueue(n_jobs, n_workers))

    def render(self) -> bytes:
        """The text format of Prometheus; its content type is ``CONTENT_TYPE``."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets)


class _SharedQueue(Collector):
    """The queue of generations as it stands; where it does not answer, that alone."""

    def __init__(self, n_jobs: Callable[[], int], n_workers: Callable[[], int]) -> None:
        self._n_jobs, self._n_workers = n_jobs, n_workers

    def describe(self) -> Iterable[Metric]:
        """Names alone, without asking."""
        return self._families(None)

    def collect(self) -> Iterable[Metric]:
        """One round trip or two."""
        try:
            return self._families((self._n_jobs(), self._n_workers()))
        except Unavailable:
            return self._families(None)

    def _families(self, found: tuple[int, int] | None) -> list[Metric]:
        jobs, workers = found or (None, None)
        return [
            GaugeMetricFamily(f"{NAMESPACE}_redis_up", "1 where Redis answers, else 0.", float(found is not None)),
            GaugeMetricFamily(f"{NAMESPACE}_job_queue_depth", "Generations waiting for a worker or under way.", jobs),
            GaugeMetricFamily(f"{NAMESPACE}_workers", "Workers alive.", workers),
        ]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request and trace ids, and the allowed extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """A record -> one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if parent := trace_context.get().get("traceparent"):
            _, line["trace_id"], line["span_id"], _ = parent.split("-")
        line.update({name: record.__dict__[name] for name in LOG_FIELDS if name in record.__dict__})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class LineWriter(logging.Handler):
    """Writes lines from a thread of its own, some together: a slow reader of the log never holds up a request.

    Lines are there within ``GATHER_S``, at the latest at the end of the process. Where the reader is stuck, the oldest
    of ``MAX_LINES`` are dropped; where writing fails (a full disk), what the stream cannot hold is, and it goes on.
    """

    GATHER_S, MAX_LINES = 0.05, 10_000

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=self.MAX_LINES)
        self._writing = threading.Lock()
        self._something, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._write, name="classmith-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; never blocks."""
        try:
            self._lines.append(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
        if not self._something.is_set():
            self._something.set()

    def flush(self) -> None:
        """Write what there is."""
        with self._writing, suppress(OSError, ValueError):  # ValueError: closed meanwhile
            text = "".join(self._lines.popleft() for _ in range(len(self._lines)))
            if text and not self._stream.closed:
                self._stream.write(text)
                self._stream.flush()

    def close(self) -> None:
        """Write what there is and end the thread."""
        self._ended.set()
        self._something.set()
        self.flush()
        super().close()

    def _write(self) -> None:
        while not self._ended.is_set():
            self._something.wait()
            self._ended.wait(self.GATHER_S)
            self._something.clear()
            self.flush()


def configure_logging(level: str = "INFO", *, stream: TextIO | None = None) -> None:
    """Send all logs of the process as JSON lines to ``stream`` (standard error); replaces earlier handlers."""
    handler = LineWriter(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for earlier in root.handlers:
        if isinstance(earlier, LineWriter):
            earlier.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def release() -> str:
    """This release of Classmith; "0" where it runs from a checkout that is not installed."""
    try:
        return version("classmith")
    except PackageNotFoundError:
        return "0"


def choose_request_id(sent: str | None) -> str:
    """The client's ``X-Request-Id`` where it is short and plain, else a new random id."""
    return sent if sent and _SAFE_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}"


def server_timing(**durations_ms: float) -> str:
    """Named milliseconds -> the value of a ``Server-Timing`` header: ``queue;dur=0.41, run;dur=0.33``."""
    return ", ".join(f"{name};dur={value:.2f}" for name, value in durations_ms.items())


def _describe(error: BaseException) -> dict[str, object]:
    """Type and stack of an exception and of its causes, without their messages."""
    stack = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    described: dict[str, object] = {
        "type": type(error).__qualname__,
        "stack": [f"{code.co_filename}:{line} {code.co_name}" for code, line in stack],
    }
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return described | ({"cause": _describe(cause)} if cause else {})
