"""The SDK of OpenTelemetry, set up as the variables `OTEL_*` say. `tracing` imports this only if spans are exported.

The queue of spans is bounded (OTEL_BSP_MAX_QUEUE_SIZE), and a thread of the SDK empties it: whoever ends a span never waits.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)

from sidecar._version import __version__
from sidecar.process import metrics
from sidecar.process.logging import rate_limited

_log = logging.getLogger(__name__)
_REMINDER_SECONDS = 60.0
_QUEUE_SIZE = 2048
"""Spans in the queue where the environment says nothing: the default of the specification."""
_UNKNOWN = "unknown_service"
"""What the SDK calls a service without a name, or how that name begins."""


def make_provider(service: str, exporters: Sequence[str]) -> TracerProvider:
    """Return a provider that exports in a thread of its own.

    Its sampler, its limits, its resource and the addresses, headers, certificates and timeouts of the exporter
    are as the variables of OpenTelemetry say.
    """
    for result in metrics.SPAN_RESULTS:
        metrics.SPANS_TOTAL.labels(result)
    logging.getLogger("opentelemetry.util.re").addFilter(_hide_header)
    provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(_CountingProcessor(_CountingExporter(_make_exporter(exporter))))
    # The SDK logs each failed try, of which there is one each few seconds; from here on `_CountingExporter` says it.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return provider


def drain(provider: TracerProvider, timeout: float) -> None:
    """Export what is in the queue, within `timeout` seconds; what is left then is lost."""
    ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    ending.start()
    ending.join(timeout)
    if ending.is_alive():
        _log.warning(
            "the last spans were not exported within %g s (is the collector away?)", timeout
        )


def _resource(service: str) -> Resource:
    own = Resource(
        {
            "service.version": __version__,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    resource = own.merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith(_UNKNOWN):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    return resource


def _make_exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(None) + "\n")
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    return trace_exporter.OTLPSpanExporter()


def _hide_header(record: logging.LogRecord) -> bool:
    """Say that a header of the exporter is invalid: the message of the SDK quotes it, and it may hold a credential."""
    if record.args:
        _log.warning(
            "a header of the collector is invalid, and is not sent: each is NAME=VALUE, percent-encoded"
            " (see OTEL_EXPORTER_OTLP_HEADERS)"
        )
    return False


class _LastReason(logging.Filter):
    """Keeps why an exporter has failed last, and lets none of its records pass.

    It is a status or a class of errors: the message has the address of the collector, which may hold a credential.
    """

    reason = "it is not reached, or does not answer in time"

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        for argument in arguments:
            if isinstance(argument, BaseException):
                self.reason = type(argument).__name__
            elif isinstance(argument, int):
                self.reason = f"status {int(argument)}"
        return False


class _CountingExporter(SpanExporter):
    """Counts what an exporter does, and says when it begins to fail and when it works again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False
        self._last = _LastReason()
        logger = logging.getLogger(type(exporter).__module__)
        logger.setLevel(logging.WARNING)
        logger.addFilter(self._last)
        self._reminder = rate_limited(_log, _REMINDER_SECONDS)
        self.taken = 0
        """Spans that have left the queue."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        done = False
        try:
            done = self._exporter.export(spans) is SpanExportResult.SUCCESS
        finally:
            metrics.SPANS_TOTAL.labels("exported" if done else "failed").inc(len(spans))
            self._note(done=done)
        return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _note(self, *, done: bool) -> None:
        if not done:
            self._reminder.warning(
                "the collector does not take traces: %s (see OTEL_EXPORTER_OTLP_ENDPOINT)",
                self._last.reason,
            )
        elif self._fails:
            _log.info("the collector takes traces again")
        self._fails = not done


class _CountingProcessor(BatchSpanProcessor):
    """Counts spans that find the queue full: each replaces the oldest one."""

    def __init__(self, exporter: _CountingExporter) -> None:
        self._size = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or _QUEUE_SIZE)
        super().__init__(exporter, self._size)
        self._counting = exporter
        self._lock = threading.Lock()
        self._ended = 0
        self._dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            self._ended += 1
            if self._ended - self._dropped - self._counting.taken > self._size:
                self._dropped += 1
                metrics.SPANS_TOTAL.labels("dropped").inc()
        super().on_end(span)
