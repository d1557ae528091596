"""Routes for operators: health probes, metrics and the API description."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web

from sidecar.http import health_state, probes, problems
from sidecar.http.semantics import bearer_auth, openapi, representation
from sidecar.process import arguments
from sidecar.process.health import CombinedHealth, Health, ProbeKind
from sidecar.process.prefork import worker


def health_routes(health: Health | None = None) -> list[web.RouteDef]:
    """Return the routes `/livez`, `/readyz` and `/startupz` for Kubernetes' probes.

    Each responds with 200, or with 503 and a problem that names the failed check and its remedy;
    never with data derived from a content. `/startupz`: the process and its watches are up.
    `/livez`: its own data path works, which a missing content does not affect. `/readyz`: both, and it does not drain.
    Without an argument they run the checks of the application they are added to,
    to which `sidecar.follow` adds its own. A draining process is not ready.
    They need no token; if tokens are required, only an authenticated request gets details.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> _ = app.add_routes(health_routes())
    """
    if health is not None:
        arguments.check_instance("health", health, Health, "a sidecar.Health, or None")
    return [_probe(kind, health) for kind in probes.PROBES]


def metrics_routes() -> list[web.RouteDef]:
    """Return the route `/metrics`: the metrics of `sidecar` in this process, in the Prometheus format.

    Your own metrics stay in the prometheus-client registry in which you have created them.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> _ = app.add_routes(metrics_routes())
    """
    return [web.get("/metrics", _metrics)]


_GIVEN_HEALTH: Final = "sidecar_given_health"
"""Attribute of the handler of a probe: the checks that it was given, None for those of its application."""

OPS_PATHS: Final = (*(one.path for one in probes.PROBES.values()), "/metrics")


def admin_app(app: web.Application) -> web.Application:
    """Return an application with the probes of `app` and the metrics, for an admin port; `app` no longer serves them.

    The probes run the checks of `app`, of its sub-applications, and of each `Health` that their probes were given.
    It asks for no token, and shows the details of the probes: who reaches that port may see them.
    """
    admin = web.Application(middlewares=[problems.middleware])
    parts = list(_with_subapps(app))
    given = (getattr(route.handler, _GIVEN_HEALTH, None) for route in app.router.routes())
    healths = [health_state.get_health(part) for part in parts] + [one for one in given if one]
    admin[health_state.HEALTH] = CombinedHealth({id(one): one for one in healths}.values())
    admin[health_state.DETAILS] = ChainMap(*map(health_state.get_details, parts))
    admin.add_routes([*health_routes(), *metrics_routes()])
    app[health_state.MOVED_TO_ADMIN_PORT] = True
    return admin


def _with_subapps(app: web.Application) -> Iterator[web.Application]:
    yield app
    for resource in app.router.resources():
        if (part := resource.get_info().get("app")) is not None:
            yield from _with_subapps(part)


def ops_routes(describe: Callable[[], openapi.Object]) -> list[web.RouteDef]:
    """Return the routes of `health_routes`, `/metrics` and `/openapi.json`."""

    async def description(request: web.Request) -> web.Response:
        described = describe()
        paths = described["paths"]
        if health_state.MOVED_TO_ADMIN_PORT in request.config_dict and isinstance(paths, dict):
            described["paths"] = {path: one for path, one in paths.items() if path not in OPS_PATHS}
        return representation.json_answer(described)

    return [
        *health_routes(),
        *metrics_routes(),
        web.get("/openapi.json", description),
    ]


def _probe(kind: ProbeKind, health: Health | None) -> web.RouteDef:
    path, problem, _ = probes.PROBES[kind]

    async def probe(request: web.Request) -> web.Response:
        _check_port(request)
        asked = health or request.config_dict.get(health_state.HEALTH) or Health()
        report = await probes.report(kind, asked.report(kind))
        found: dict[str, object] = {"checks": dict(report.checks)}
        if request.get(bearer_auth.MAY_READ, True):
            details = request.config_dict.get(health_state.DETAILS) or {}
            found["details"] = {name: detail() for name, detail in details.items()}
        if report.ok:
            return representation.json_answer({"status": "ok", **found})
        raise problems.Problem(problem, probes.reason(report), members=found)

    setattr(probe, _GIVEN_HEALTH, health)
    return web.get(path, bearer_auth.public(probe))


def _check_port(request: web.Request) -> None:
    """Return unless probes and metrics are on the admin port alone, and this is another one."""
    if health_state.MOVED_TO_ADMIN_PORT in request.config_dict:
        raise problems.Problem("not-found", f"{request.path} is on the admin port")


async def _metrics(request: web.Request) -> web.Response:
    _check_port(request)
    try:
        body, content_type = await probes.exposition()
    except worker.NoReply as error:
        raise problems.Problem("not-ready", str(error)) from error
    return web.Response(body=body, headers={"Content-Type": content_type})
