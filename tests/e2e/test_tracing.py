"""One trace over three processes and a real collector, from the request that writes to the reader's memory and the reload."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from aiohttp import web

from support import Eventually, FreePorts, StartProcess
from support.collector import attributes, running_rotel

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The example of W3C Trace Context, section 3.2."""


async def test_a_write_its_loads_and_its_reload_are_one_trace_in_a_real_collector(
    free_ports: FreePorts,
    start_process: StartProcess,
    sidecar_process: StartProcess,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """PUT → file → reader and reload: the context travels with the content, through two workers of the writer, too."""
    told: list[str] = []

    async def hook(request: web.Request) -> web.Response:
        told.append(request.headers.get("traceparent", ""))
        return web.Response()

    writer, reader, application = free_ports(3)
    app = web.Application()
    app.router.add_post("/reload", hook)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", application).start()
    path = tmp_path / "shared" / "config"
    path.parent.mkdir()
    async with running_rotel(free_ports, start_process, tmp_path) as (port, behind):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=web-0",
        }
        processes = [
            sidecar_process(
                *("write", "--path", path, "--port", writer, "--workers", 2, "--drain-delay", 0),
                env=env,
            ),
            sidecar_process(
                *("read", "--path", path, "--port", reader, "--drain-delay", 0), env=env
            ),
            sidecar_process(
                *("reload", "--path", path, "--webhook", f"http://127.0.0.1:{application}/reload"),
                env=env,
            ),
        ]
        for process, ready in zip(processes[:2], (writer, reader), strict=True):
            await asyncio.to_thread(process.wait_until, f"http://127.0.0.1:{ready}/readyz")
        # What the writer publishes at its start is applied: the next version is no first one of anybody.
        await eventually(lambda: told)
        async with aiohttp.ClientSession(headers={"traceparent": CLIENT}) as client:
            put = client.put(f"http://127.0.0.1:{writer}/files/config", data=b"top-secret")
            async with put as answer:
                assert answer.status == 204
                version = answer.headers["ETag"].strip('"')
        await eventually(lambda: len(told) > 1)
        for process in processes:
            process.popen.terminate()
        for process in processes:
            assert await asyncio.to_thread(process.popen.wait, 20) == 0
        trace = bytes.fromhex(CLIENT[3:35])

        def found() -> list[tuple[str, str, bytes, bytes]]:
            """Service, name, id and parent of each span of the trace."""
            spans = [(about["service.name"], s) for about, s in behind.spans if s.trace_id == trace]
            return sorted((service, s.name, s.span_id, s.parent_span_id) for service, s in spans)

        await eventually(lambda: len(found()) == 6)
    await runner.cleanup()
    command = {(service, name): (own, parent) for service, name, own, parent in found()}
    server, publish = ("sidecar-write", "PUT /files/{name}"), ("sidecar-write", "publish")
    read, load = ("sidecar-read", "load"), ("sidecar-reload", "load")
    took, hooked = ("sidecar-reload", "reload"), ("sidecar-reload", "webhook")
    assert command[server][1].hex() == CLIENT[36:52]
    for child, parent in ((publish, server), (read, publish), (load, publish), (took, load), (hooked, took)):  # fmt: skip
        assert command[child][1] == command[parent][0], (child, parent)
    assert told[-1] == f"00-{trace.hex()}-{command[hooked][0].hex()}-01"
    assert {about["k8s.pod.name"] for about, _ in behind.spans} == {"web-0"}
    of_write = {
        span.name: attributes(span) for about, span in behind.spans if span.trace_id == trace
    }
    assert of_write["PUT /files/{name}"]["http.response.status_code"] == 204
    assert of_write["publish"]["sidecar.version"] == version
    assert "top-secret" not in str(behind.spans)
