"""A real collector of OpenTelemetry: `rotel` (Rust, inside a wheel of PyPI), and what stands behind it."""

from __future__ import annotations

import gzip
import importlib.util
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from support import FreePorts, StartProcess


class Behind:
    """What the collector hands on to, as protobuf: log records and spans, each with its resource beside it."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.resources: list[Any] = []
        self.spans: list[tuple[dict[str, Any], Any]] = []

    async def take_logs(self, request: web.Request) -> web.Response:
        message = logs_service_pb2.ExportLogsServiceRequest.FromString(await _body(request))
        for resource in message.resource_logs:
            for scope in resource.scope_logs:
                self.records += scope.log_records
                self.resources += [resource.resource] * len(scope.log_records)
        return _answer(logs_service_pb2.ExportLogsServiceResponse())

    async def take_traces(self, request: web.Request) -> web.Response:
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(await _body(request))
        for resource in message.resource_spans:
            about = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans += [(about, span) for span in scope.spans]
        return _answer(trace_service_pb2.ExportTraceServiceResponse())

    @property
    def texts(self) -> list[str]:
        return [record.body.string_value for record in self.records]


def attributes(of: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


async def _body(request: web.Request) -> bytes:
    body = await request.read()
    packed = request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b"
    return gzip.decompress(body) if packed else body


def _answer(message: Any) -> web.Response:
    return web.Response(body=message.SerializeToString(), content_type="application/x-protobuf")


@asynccontextmanager
async def running_rotel(
    free_ports: FreePorts, start_process: StartProcess, directory: Path
) -> AsyncIterator[tuple[int, Behind]]:
    """Start a collector; the port on which it takes OTLP over HTTP, and what stands behind it."""
    found = importlib.util.find_spec("rotel")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).parent / "rotel-agent"
    http, grpc, behind_port = free_ports(3)
    behind = Behind()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/logs", behind.take_logs)
    app.router.add_post("/v1/traces", behind.take_traces)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", behind_port).start()
    try:
        start_process(
            program,
            "start",
            *("--otlp-http-endpoint", f"127.0.0.1:{http}"),
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"),
            *("--exporter", "otlp"),
            *("--otlp-exporter-endpoint", f"http://127.0.0.1:{behind_port}"),
            *("--otlp-exporter-protocol", "http"),
            *("--pid-file", directory / "pid"),
            *("--log-file", directory / "log"),
            # It is linked to the library of the Python that it was made for, wherever that lies.
            env={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
            until=f"http://127.0.0.1:{http}/",
        )
        yield http, behind
    finally:
        await runner.cleanup()
