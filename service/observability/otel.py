"""OpenTelemetry over OTLP: spans, and the metrics of /metrics under the same names (pip install 'classmith[otel]').

Off unless the standard variables ask for it: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or one for traces or metrics alone), or
``OTEL_TRACES_EXPORTER`` / ``OTEL_METRICS_EXPORTER`` = ``otlp``; ``none``, or ``OTEL_SDK_DISABLED=true``, keep it off.
Everything else (headers, sampler, resource, intervals) the SDK reads by itself. No provider is made global, so that no
library records spans of its own into ours: theirs carry paths, queries and the messages of exceptions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from service.observability.telemetry import Metrics
from service.observability.tracing import NO_TRACING, Tracing

PROTOCOLS = ("", "http/protobuf")
log = logging.getLogger(__name__)


def asked_for(signal: str, environ: Mapping[str, str]) -> bool:
    """Whether the environment wants ``signal`` ("TRACES" or "METRICS") exported."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return exporter == "otlp" or (exporter == "" and any(environ.get(name) for name in endpoints))


@contextmanager
def exported(environ: Mapping[str, str], metrics: Metrics, service: str) -> Iterator[Tracing]:
    """Export what the environment asks for during the block; what is pending is sent at its end.

    Never a reason not to serve: where it cannot be done the log says why, and nothing is exported.
    """
    wanted = [signal for signal in ("TRACES", "METRICS") if asked_for(signal, environ)]
    with ExitStack() as stack:
        tracing: Tracing = NO_TRACING
        try:
            if wanted:
                tracing = _begin(stack, wanted, environ, metrics, service)
        except (ImportError, ValueError) as error:
            log.warning("OpenTelemetry is asked for and stays off: %s", error)
        yield tracing


def _begin(
    stack: ExitStack, wanted: Sequence[str], environ: Mapping[str, str], metrics: Metrics, service: str
) -> Tracing:
    _check_protocol(wanted, environ)
    try:
        from service.observability import otel_sdk
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'classmith[otel]'") from error
    if "METRICS" in wanted:
        stack.enter_context(otel_sdk.metrics_exported(metrics.registry, service))
    return stack.enter_context(otel_sdk.spans_exported(service)) if "TRACES" in wanted else NO_TRACING


def _check_protocol(wanted: Sequence[str], environ: Mapping[str, str]) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", *(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL" for signal in wanted)):
        if environ.get(name, "").strip().lower() not in PROTOCOLS:
            raise ValueError(f"{name} must be http/protobuf, or not be set; no other protocol is spoken here")
