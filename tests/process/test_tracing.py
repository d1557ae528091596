"""Traces are off unless the environment asks for them, and what is wrong with a collector holds nobody up."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from sidecar._version import __version__
from sidecar.process import metrics, span_export, tracing
from support import WaitFor, environment

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins in a process that nobody has asked for traces."""
    monkeypatch.setattr(tracing._TracingState, "service", None)
    monkeypatch.setattr(tracing._TracingState, "tracer", None)
    loggers = [logging.getLogger("opentelemetry")]
    levels = [one.level for one in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, None),
        (ENDPOINT, "sidecar-x"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1/v1/traces"}, "sidecar-x"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "sidecar-x"),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, "sidecar-x"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
    ],
)
def test_the_variables_of_opentelemetry_switch_it_on_and_off(
    variables: dict[str, str], service: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is as good as none; OTEL_SDK_DISABLED is true in any case (SDK environment variables)."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.request("sidecar-x")
    assert tracing._TracingState.service == service
    assert tracing.is_on() == (service is not None)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is zipkin"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "is set to grpc, and there is http"),
        ({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "many"),
        ({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "8"}, "max_export_batch_size"),
    ],
)
def test_a_variable_that_makes_no_sense_is_a_warning_and_the_program_runs(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """They are often set for all containers of a Pod, and must not end this one."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.request("sidecar-x")
    with tracing.exporting(), tracing.span("a") as span:
        assert span is None
    assert said in caplog.text
    assert "no traces are exported" in caplog.text


def test_a_library_that_does_not_fit_is_a_warning_and_the_program_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An import of the SDK that fails ends no program."""
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.delattr("sidecar.process.span_export")
    monkeypatch.setitem(sys.modules, "sidecar.process.span_export", None)
    tracing.request("sidecar-x")
    with tracing.exporting(), tracing.span("a") as span:
        assert span is None
    assert "no traces are exported" in caplog.text


def test_without_the_extra_a_warning_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing, and how to get it."""
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing.request("sidecar-x")
    assert not tracing.is_on()
    assert "pip install 'podsidecar[otel]'" in caplog.text


def test_when_it_is_off_nothing_of_it_is_imported(tmp_path: Path) -> None:
    """Who wants no traces pays nothing for them: neither memory nor time."""
    program = (
        "import sys; from sidecar.cli.main import run; from sidecar.http.apps import writer;"
        f"from sidecar.cli.impl import reload; run(['publish', {__file__!r}, '--path', '{tmp_path}/a']);"
        "print('with', *(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", program],
        env=environment() | {"OTEL_SDK_DISABLED": "true", **ENDPOINT},
        text=True,
    )
    assert output.splitlines()[-1] == "with"
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize("variable", ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", None])
def test_the_name_of_the_service_is_that_of_the_environment_or_ours(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SERVICE_NAME goes before OTEL_RESOURCE_ATTRIBUTES, and both before ours."""
    if variable is not None:
        value = "theirs" if variable == "OTEL_SERVICE_NAME" else "service.name=theirs,a=b"
        monkeypatch.setenv(variable, value)
    resource = span_export._resource("ours")
    assert resource.attributes["service.name"] == ("ours" if variable is None else "theirs")
    assert resource.attributes["service.version"] == __version__


class Collector(SpanExporter):
    """One that hangs until it is let go, and then takes what it gets, or not."""

    def __init__(self) -> None:
        self.hangs, self.let_go = threading.Event(), threading.Event()
        self.result = SpanExportResult.SUCCESS
        self.names: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.hangs.set()
        self.let_go.wait(60)
        self.names += [span.name for span in spans]
        return self.result

    def shutdown(self) -> None:
        pass


@pytest.fixture
def counted() -> Callable[[], dict[str, float]]:
    """`counted()`: what `sidecar_spans_total` has grown by, by result."""

    def now() -> dict[str, float]:
        return {
            result: metrics.REGISTRY.get_sample_value("sidecar_spans_total", {"result": result})
            or 0
            for result in metrics.SPAN_RESULTS
        }

    before = now()
    return lambda: {result: value - before[result] for result, value in now().items()}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector with a queue of eight spans before it, four of which are taken at a time."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    made = Collector()
    monkeypatch.setattr(span_export, "_make_exporter", lambda name: made)
    yield made
    made.let_go.set()


def end_spans(provider: TracerProvider, *names: str) -> None:
    for name in names:
        provider.get_tracer("x").start_span(name).end()


def test_a_collector_that_hangs_holds_nobody_up_and_what_waits_for_it_is_bounded(
    collector: Collector, counted: Callable[[], dict[str, float]], wait_for: WaitFor
) -> None:
    """The oldest spans give way; each is counted, as one that was exported or one that was dropped."""
    provider = span_export.make_provider("x", ["otlp"])
    end_spans(provider, *"abcd")
    assert collector.hangs.wait(30)
    end_spans(provider, *(str(number) for number in range(100)))
    assert counted() == {"exported": 0, "failed": 0, "dropped": 92}
    collector.let_go.set()
    wait_for(lambda: counted()["exported"] == 12, timeout=30)
    assert collector.names == [*"abcd", *(str(number) for number in range(92, 100))]
    provider.shutdown()


def test_at_the_end_the_last_spans_are_exported(
    collector: Collector, counted: Callable[[], dict[str, float]]
) -> None:
    """Without a wait for the next batch."""
    collector.let_go.set()
    provider = span_export.make_provider("x", ["otlp"])
    end_spans(provider, "a", "b")
    span_export.drain(provider, 30)
    assert collector.names == ["a", "b"]
    assert counted()["exported"] == 2


def test_a_collector_that_hangs_does_not_hold_up_the_end(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """The program ends without them, and says so."""
    provider = span_export.make_provider("x", ["otlp"])
    end_spans(provider, "a")
    span_export.drain(provider, 0.05)
    assert not collector.names
    assert "the last spans were not exported within 0.05 s" in caplog.text


def test_a_collector_that_fails_is_said_once_and_so_is_its_return(
    collector: Collector, counted: Callable[[], dict[str, float]], wait_for: WaitFor,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """And not for each batch: with an outage of an hour that would be thousands of lines."""
    collector.let_go.set()
    collector.result = SpanExportResult.FAILURE
    with caplog.at_level(logging.INFO, "sidecar.process.span_export"):
        provider = span_export.make_provider("x", ["otlp"])
        for batch in (1, 2, 3):
            end_spans(provider, *"abcd")
            wait_for(lambda batch=batch: counted()["failed"] == 4 * batch)
        collector.result = SpanExportResult.SUCCESS
        end_spans(provider, *"abcd")
        wait_for(lambda: "takes traces again" in caplog.text)
    assert caplog.text.count("the collector does not take traces") == 1
    provider.shutdown()


def test_credentials_of_the_collector_are_in_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library says the address of each failed try: a status or a class of errors is what is left of it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://ada:secret@127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    provider = span_export.make_provider("x", ["otlp"])
    end_spans(provider, "a")
    span_export.drain(provider, 30)
    assert "the collector does not take traces: it is not reached" in caplog.text
    assert "secret" not in caplog.text


def test_a_header_of_the_collector_that_is_none_is_not_quoted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """As people write it: with a colon. The SDK ignores it, and says all of it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer secret")
    tracing.request("sidecar-test")
    with tracing.exporting():
        pass
    assert "OTEL_EXPORTER_OTLP_HEADERS" in caplog.text
    assert "secret" not in caplog.text


def test_attributes_are_bounded_and_errors_are_said_by_their_class(
    spans: Callable[[], dict[str, ReadableSpan]],
) -> None:
    """A client chooses its headers, and a message may quote a content."""
    with contextlib.suppress(ValueError), tracing.span("a", {"x": "y" * 10_000}) as span:
        tracing.set_error(span, "ValueError")
        raise ValueError("content")
    ended = spans()["a"]
    assert ended.attributes == {"x": "y" * 1024, "error.type": "ValueError"}
    assert not ended.events
    assert not ended.status.description


def test_a_span_has_the_parent_the_link_and_the_start_that_it_is_given(
    spans: Callable[[], dict[str, ReadableSpan]],
) -> None:
    """And `traceparent` hands its own context on, in the form of W3C Trace Context."""
    with tracing.span("child", context=tracing.context_of(CONTEXT), start=12.5):
        handed_on = tracing.traceparent()
    with tracing.span("root", context=tracing.context_of(None), link=CONTEXT):
        pass
    child, root = spans()["child"], spans()["root"]
    assert child.parent is not None
    assert f"{child.parent.span_id:016x}" == CONTEXT[36:52]
    assert child.start_time == 12_500_000_000
    assert child.context is not None
    assert handed_on == f"{CONTEXT[:36]}{child.context.span_id:016x}-01"
    assert root.parent is None
    assert [f"{link.context.span_id:016x}" for link in root.links] == [CONTEXT[36:52]]


def test_a_program_that_has_a_provider_of_its_own_gets_the_spans_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library sets up no SDK: that is for the program to decide."""
    assert not tracing.is_on()
    provider = TracerProvider(sampler=sampling.ALWAYS_ON, shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    assert tracing.is_on()
    with tracing.span("a") as span:
        assert span is not None
        assert span.is_recording()
