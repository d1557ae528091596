"""The span of a request that writes: the HTTP conventions of OpenTelemetry, and nothing of a content."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

import sidecar
from sidecar.volume.publish import store

Client = TestClient[web.Request, web.Application]
Spans = Callable[[], Mapping[str, ReadableSpan]]
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def client(spans: Spans, tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a writer that has spans."""
    app = sidecar.writer_app(tmp_path / "config", gate=sidecar.Gate(format="json"))
    async with TestClient(TestServer(app)) as made:
        yield made


async def test_a_write_has_a_server_span_and_the_publish_below_it(
    client: Client, spans: Spans, tmp_path: Path
) -> None:
    """Names and attributes as the conventions say; the context of the publish is stored with the content."""
    headers = {"traceparent": CONTEXT, "User-Agent": "kubectl/1.31"}
    answer = await client.put("/files/a.json?dry_run=0", data=b"[1]", headers=headers)
    assert answer.status == 201
    server, publish = spans()["PUT /files/{name}"], spans()["publish"]
    assert (server.kind, publish.kind) == (SpanKind.SERVER, SpanKind.PRODUCER)
    assert server.attributes == {
        "http.request.method": "PUT",
        "http.route": "/files/{name}",
        "http.response.status_code": 201,
        "url.scheme": "http",
        "url.path": "/files/a.json",
        "url.query": "dry_run=0",
        "server.address": "127.0.0.1",
        "server.port": client.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "kubectl/1.31",
    }
    assert publish.attributes == {
        "file.path": f"{tmp_path}/a.json",
        "file.size": 3,
        "sidecar.version": answer.headers["ETag"].strip('"'),
        "sidecar.result": "published",
    }
    assert server.parent is not None
    assert f"{server.parent.trace_id:032x}-{server.parent.span_id:016x}" == CONTEXT[3:52]
    assert publish.parent == server.context
    stored = (await sidecar.Volume(tmp_path).read("a.json")).metadata
    assert stored is not None
    assert publish.context is not None
    assert stored.traceparent == f"{CONTEXT[:36]}{publish.context.span_id:016x}-01"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "result"),
    [
        ("GET", "/?content=%22secret%22", None, 200, "published"),
        ("GET", "/?content=secret", None, 422, "refused"),
        ("GET", "/?secret", None, 400, None),
        ("PUT", "/files/a?secret=secret", b"secret", 422, "refused"),
        ("PUT", "/files/a", b'"secret"', 412, "conflict"),
        ("PUT", "/files/a", b"[]", 507, "failed"),
        ("DELETE", "/files/a", None, 404, "missing"),
        ("POST", "/rollback", b'{"to": "secret"}', 404, "missing"),
        ("PUT", "/elsewhere", b"secret", 404, None),
    ],
)  # fmt: skip
async def test_outcomes_are_attributes_and_contents_are_in_none(
    method: str, path: str, body: bytes | None, status: int, result: str | None,
    client: Client, spans: Spans, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An error of the server is one of the span, one of the client is not (HTTP spans, status)."""
    if status == 507:

        def full(*_: object) -> None:
            raise sidecar.VolumeFull(28, "no space for secret")

        monkeypatch.setattr(store.Store, "put", full)
    headers = {"If-Match": '"0"'} if status in (412, 507) else {}
    answer = await client.request(method, path, data=body, headers=headers)
    assert answer.status == status
    found = spans()
    server = next(span for span in found.values() if span.kind == SpanKind.SERVER)
    assert server.attributes is not None
    assert server.attributes["http.response.status_code"] == status
    assert (server.status.status_code == StatusCode.ERROR) == (status >= 500)
    assert server.attributes.get("error.type") == ("507" if status == 507 else None)
    change = found.get("publish", found.get("delete"))
    assert (None if change is None else (change.attributes or {})["sidecar.result"]) == result
    assert "secret" not in " ".join(span.to_json() for span in found.values())


async def test_reads_and_probes_have_no_span(client: Client, spans: Spans) -> None:
    """There are thousands of them, and they change nothing."""
    for path in ("/files", "/readyz", "/metrics", "/versions"):
        assert (await client.get(path)).status == 200
    assert not spans()
