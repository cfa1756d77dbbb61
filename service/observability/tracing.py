"""Traces: what became of one request on its way through threads, the queue and the workers (W3C Trace Context).

The context is two short headers in a context variable. It reaches logs, jobs and workers whether or not spans are
recorded; recording needs OpenTelemetry (``otel``). Names and attributes of spans are ours: no text, no image and no
address that a user sent, and of an exception its type only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from service.ports import Generation, TaskRecord

TraceContext = Mapping[str, str]
"""``traceparent`` and perhaps ``tracestate``, as they travel; empty where there is no trace."""
Attributes = Mapping[str, str | int | float | bool]
NO_ATTRIBUTES: Attributes = {}
Kind = Literal["internal", "server", "consumer"]
Result = TypeVar("Result")

NO_TRACE: TraceContext = {}
trace_context: ContextVar[TraceContext] = ContextVar("trace_context", default=NO_TRACE)
"""Where in which trace this thread or coroutine is; read by logs and by the queue of jobs."""

_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(r"[\x20-\x7e]{1,512}")


class Span(Protocol):
    """One piece of work, while it is done."""

    def name(self, name: str) -> None:
        """Call it something else: an address is known only once it is found."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it; numbers, and words of ours."""

    def fail(self, kind: str) -> None:
        """It did not succeed, for a reason of this kind."""


class Tracing(Protocol):
    """Records spans, or does not; ``span`` makes its span the parent of what is done in the block."""

    def span(self, name: str, kind: Kind = "internal", attributes: Attributes = ...) -> AbstractContextManager[Span]:
        """A span around a block; an exception that leaves the block fails it."""


class _NoSpan:
    def name(self, name: str) -> None:
        """Nothing."""

    def set(self, attributes: Attributes) -> None:
        """Nothing."""

    def fail(self, kind: str) -> None:
        """Nothing."""


class NoTracing:
    """Records nothing; contexts that came with a request travel on all the same."""

    _block: AbstractContextManager[Span] = nullcontext(_NoSpan())

    def span(
        self, name: str, kind: Kind = "internal", attributes: Attributes = NO_ATTRIBUTES
    ) -> AbstractContextManager[Span]:
        """Nothing around a block."""
        return self._block


NO_TRACING = NoTracing()


def parse(headers: Iterable[tuple[str, str]]) -> TraceContext:
    """The trace context among header or job fields; empty where there is none, or none by the W3C's rules."""
    found = {name: value for name, value in headers if name in ("traceparent", "tracestate")}
    if not _PARENT.fullmatch(found.get("traceparent", "")):
        return NO_TRACE
    if "tracestate" in found and not _STATE.fullmatch(found["tracestate"]):
        del found["tracestate"]
    return found


@contextmanager
def under(context: TraceContext) -> Iterator[None]:
    """Do a block as part of this trace."""
    token = trace_context.set(context)
    try:
        yield
    finally:
        trace_context.reset(token)


@dataclass(frozen=True)
class TracedGeneration:
    """A Generation whose runs are spans: queueing, waiting for a worker, and making."""

    generation: Generation
    tracing: Tracing

    def run(self, tenant: str, task_id: str) -> TaskRecord:
        """As the generation it wraps."""
        with self.tracing.span("generation", attributes={"classmith.task_id": task_id}) as span:
            record = self.generation.run(tenant, task_id)
            span.set({"classmith.state": record.state})
            if record.state == "failed":
                span.fail("generation_failed")
            return record

    def check_room(self) -> None:
        """As the generation it wraps."""
        self.generation.check_room()

    def close(self) -> None:
        """As the generation it wraps."""
        self.generation.close()


def traced_load(tracing: Tracing, load: Callable[[str, str], Result]) -> Callable[[str, str], Result]:
    """``load(tenant, task_id)`` with a span around it."""

    def loaded(tenant: str, task_id: str) -> Result:
        with tracing.span("load", attributes={"classmith.task_id": task_id}):
            return load(tenant, task_id)

    return loaded
