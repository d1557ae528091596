"""Traces, by OpenTelemetry: off, and nothing of it imported, unless the environment asks for them.

A command calls `request`, and `lifecycle.run` exports while the program runs, as the variables `OTEL_*` say
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
A program that has set a tracer provider of its own gets the spans there.
What is wrong with these variables is one warning, and never stops a program: they are often set for a whole Pod.

Spans hold no contents, no credentials and no messages of errors, which may quote both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from sidecar._version import __version__

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Tracer

    Span: TypeAlias = trace.Span

_log = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool | None]

DRAIN_TIMEOUT = 2.0
"""Seconds that the last spans have at the end of a program."""
_MAX_CHARACTERS = 1024
"""Maximum length of an attribute: spans wait in memory for the collector, and a client chooses its paths and headers."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_OFF: AbstractContextManager[None] = contextlib.nullcontext()


class _TracingState:
    """State of the process."""

    service: str | None = None
    """The name of the service whose spans are to be exported."""
    parent: str | None = None
    """The trace context of the program."""
    tracer: Tracer | None = None


def request(service: str, parent: str | None = None) -> None:
    """Have `lifecycle.run` export the spans of this process, if the environment asks for it.

    `service` is the name of the service where neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES has one,
    `parent` the trace context (W3C) that the spans of the program belong to.
    """
    exporters = _exporters()
    if not exporters:
        return
    unknown = [one for one in exporters if one not in ("otlp", "console")]
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), _PROTOCOL)
    if unknown:
        said = f"OTEL_TRACES_EXPORTER is {unknown[0]}, and there are otlp, console and none"
    elif "otlp" in exporters and protocol != _PROTOCOL:
        said = f"the protocol of OTLP is set to {protocol}, and there is {_PROTOCOL}"
    elif not _is_installed():
        said = "the extra is not installed: pip install 'podsidecar[otel]'"
    else:
        _TracingState.service, _TracingState.parent = service, parent
        return
    _log.warning("no traces are exported: %s", said)


def is_on() -> bool:
    """Return whether there are spans, now or once the program runs."""
    return _TracingState.service is not None or _tracer() is not None


@contextmanager
def exporting() -> Iterator[None]:
    """Export spans while the block runs, if that was requested; the last ones within `DRAIN_TIMEOUT`. Not before a fork."""
    if _TracingState.service is None:
        yield
        return
    try:
        from sidecar.process import span_export

        provider = span_export.make_provider(_TracingState.service, _exporters())
    except Exception as error:  # noqa: BLE001 (whatever the SDK raises for a value, or for a version that does not fit)
        _log.warning("no traces are exported: %s", error)
        _TracingState.service = None
        yield
        return
    _TracingState.tracer = provider.get_tracer("sidecar", __version__)
    context = context_of(_TracingState.parent)
    if context is not None:
        _attach(context)
    try:
        yield
    finally:
        _TracingState.tracer = None
        span_export.drain(provider, DRAIN_TIMEOUT)


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    context: Context | None = None,
    link: str | None = None,
    start: float | None = None,
) -> AbstractContextManager[Span | None]:
    """Return a context in which a new span is the current one; it is None if there are no spans.

    Its parent is the current span, or that in `context`. `link` is the trace context (W3C) of another trace that led to it.
    Attributes that are None are left out. It starts now, or at `start` in Unix seconds, and ends with the block.
    """
    tracer = _tracer()
    if tracer is None:
        return _OFF
    return _span(tracer, name, attributes or {}, kind=kind, context=context, link=link, start=start)


def set_attributes(span: Span | None, attributes: Attributes) -> None:
    """Add attributes to a span; those that are None are left out."""
    if span is not None:
        span.set_attributes(_clean(attributes))


def set_error(span: Span | None, kind: str) -> None:
    """Mark a span as failed. `kind` is a class of errors or a status, with few values: no message."""
    if span is not None:
        from opentelemetry.trace import StatusCode

        span.set_attribute("error.type", kind)
        span.set_status(StatusCode.ERROR)


def traceparent() -> str | None:
    """Return the trace context (W3C) of the current span; None if there is none."""
    if _tracer() is None:
        return None
    from opentelemetry.trace import get_current_span

    found = get_current_span().get_span_context()
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def context_of(traceparent: str | None) -> Context | None:
    """Return what a trace context (W3C) stands for as the parent of a span: of a new trace, if it is None."""
    if _tracer() is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def context_of_request(headers: Mapping[str, str]) -> Context | None:
    """Return the context of a request, in the formats that OTEL_PROPAGATORS names."""
    if _tracer() is None:
        return None
    from opentelemetry import propagate
    from opentelemetry.context import Context

    return propagate.extract({name.lower(): headers[name] for name in headers}, Context())


def _attach(context: Context) -> None:
    """Make a context the current one, until the process ends."""
    from opentelemetry.context import attach

    attach(context)


def _exporters() -> list[str]:
    """Return the exporters that the environment asks for; none if it does not."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named:
        return ["otlp"] if any(os.environ.get(name) for name in _ENDPOINTS) else []
    exporters = [one.strip() for one in named.split(",") if one.strip()]
    return [] if exporters == ["none"] else exporters


def _is_installed() -> bool:
    from importlib import util

    with contextlib.suppress(ModuleNotFoundError):
        names = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
        return all(util.find_spec(name) is not None for name in names)
    return False


def _tracer() -> Tracer | None:
    if _TracingState.tracer is not None or _TracingState.service is not None:
        return _TracingState.tracer
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider):
        return None
    _TracingState.tracer = provider.get_tracer("sidecar", __version__)
    return _TracingState.tracer


@contextmanager
def _span(
    tracer: Tracer,
    name: str,
    attributes: Attributes,
    *,
    kind: Kind,
    context: Context | None,
    link: str | None,
    start: float | None,
) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind, use_span

    started = tracer.start_span(
        name,
        context,
        SpanKind[kind.upper()],
        _clean(attributes),
        _links(link),
        None if start is None else int(start * 1e9),
    )
    # Errors are said by their class: messages may quote contents.
    with use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield started


def _links(traceparent: str | None) -> list[Link]:
    from opentelemetry.trace import Link, get_current_span

    context = context_of(traceparent)
    found = get_current_span(context).get_span_context() if context is not None else None
    return [Link(found)] if found is not None and found.is_valid else []


def _clean(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {
        name: value[:_MAX_CHARACTERS] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }
