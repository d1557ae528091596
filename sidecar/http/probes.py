"""Health probes and metrics without aiohttp, for any server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from sidecar.process import arguments, executor, metrics
from sidecar.process.health import OK, Health, ProbeKind, Report
from sidecar.process.prefork import worker

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Probe(NamedTuple):
    """A Kubernetes probe: its path, and the problem that it returns."""

    path: str
    problem: str
    title: str


PROBES: Final[Mapping[ProbeKind, Probe]] = {
    "live": Probe("/livez", "not-live", "Not alive"),
    "ready": Probe("/readyz", "not-ready", "Not ready"),
    "started": Probe("/startupz", "not-started", "Not started yet"),
}
_BY_PATH: Final = {probe.path: kind for kind, probe in PROBES.items()}


def health_asgi(health: Health | None = None) -> AsgiApp:
    """Return an ASGI application with `/livez`, `/readyz`, `/startupz` and `/metrics`: for FastAPI, Starlette, Django.

    It responds as `health_routes` and `metrics_routes` do, with the checks of `health`.
    Mount it, or run it on a port of its own; mounted, its paths are below the mount point.
    Server and event loop are yours: what `sidecar.serve` adds, such as draining, is up to them.

    Raises:
        ConfigError: `health` is not a `Health`.

    >>> from sidecar import Health
    >>> health = Health()
    >>> remove = health.add("settings", ready=lambda: None)
    >>> app = health_asgi(health)
    """
    if health is not None:
        arguments.check_instance("health", health, Health, "a sidecar.Health, or None")
    asked = health or Health()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            status, headers, body = await _answer(asked, scope)
            head = scope["method"] == "HEAD"
            headers |= {"Content-Length": str(len(body)), "Cache-Control": "no-store"}
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": b"" if head else body})
        else:
            await send({"type": "websocket.close", "code": 1000})

    return app


async def report(kind: ProbeKind, own: Report) -> Report:
    """Add the failed checks of the other workers: neither a client nor a probe can choose its worker."""
    if worker.is_single():
        return own
    checks = dict(own.checks)
    try:
        said: dict[str, dict[str, str] | None] = await worker.query_all(kind)
    except worker.NoReply as error:
        checks["workers"] = str(error)
    else:
        del said[str(worker.number())]
        for number, found in said.items():
            if found is None:
                checks[f"worker {number}"] = "it does not answer (is its event loop blocked?)"
            else:
                wrong = {name: text for name, text in found.items() if text != OK}
                checks |= {f"worker {number}: {name}": text for name, text in wrong.items()}
    return Report(all(text == OK for text in checks.values()), checks)


def reason(found: Report) -> str:
    """Return the failed checks in one line."""
    return "; ".join(f"{name}: {said}" for name, said in found.checks.items() if said != OK)


async def exposition() -> tuple[bytes, str]:
    """Return the metrics of all workers in the Prometheus format, and its content type.

    Raises:
        NoReply: the other workers cannot be queried; the metrics of one alone would look like counter resets.
    """
    # In a thread: it reads /proc.
    if worker.is_single():
        return await executor.run_in_thread(metrics.exposition)
    return await executor.run_in_thread(
        metrics.render_families, await worker.query_all(worker.METRICS)
    )


async def _answer(health: Health, scope: Scope) -> tuple[int, dict[str, str], bytes]:
    path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
    if path != "/metrics" and path not in _BY_PATH:
        return _problem(404, "not-found", "There is nothing at this path", path)
    if scope["method"] not in ("GET", "HEAD"):
        status, headers, body = _problem(
            405, "method-not-allowed", "The method is not allowed here", scope["method"]
        )
        return status, {**headers, "Allow": "GET, HEAD"}, body
    if path == "/metrics":
        try:
            written, kind = await exposition()
        except worker.NoReply as error:
            return _problem(503, "not-ready", "Not ready", str(error))
        return 200, {"Content-Type": kind}, written
    name = _BY_PATH[path]
    found = await report(name, health.report(name))
    if found.ok:
        body = _dumps({"status": "ok", "checks": dict(found.checks)})
        return 200, {"Content-Type": "application/json"}, body
    probe = PROBES[name]
    return _problem(503, probe.problem, probe.title, reason(found), checks=dict(found.checks))


def _problem(
    status: int, kind: str, title: str, detail: str, **members: object
) -> tuple[int, dict[str, str], bytes]:
    body = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": detail}
    return status, {"Content-Type": "application/problem+json"}, _dumps(body | members)


def _dumps(value: dict[str, object]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
