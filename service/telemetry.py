"""What the service tells its operators: Prometheus metrics, JSON logs, Server-Timing; never what a user sent.

Metrics are in base units and carry no label whose values grow with use: no task, no tenant, no raw path. Logs carry
the request's id; of an exception only its type and stack are written, since messages may quote a class name.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from contextvars import ContextVar
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

NAMESPACE = "classmith"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
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
        ProcessCollector(namespace=NAMESPACE, registry=self.registry)

    def render(self) -> bytes:
        """The text format of Prometheus; its content type is ``CONTENT_TYPE``."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request id, and the allowed extra fields."""

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
        line.update({name: record.__dict__[name] for name in LOG_FIELDS if name in record.__dict__})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class LineWriter(logging.Handler):
    """Writes lines from a thread of its own, some together: a slow reader of the log never holds up a request.

    Lines are there within ``GATHER_S``, at the latest at the end of the process. Where the reader is stuck, the oldest
    of ``MAX_LINES`` are dropped.
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
        with self._writing:
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


def choose_request_id(sent: str | None) -> str:
    """The client's ``X-Request-Id`` where it is short and plain, else a new random id."""
    return sent if sent and _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex


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
