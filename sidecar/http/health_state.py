"""The health checks of an application, and the details that its probes report.

The components of an application add their checks here; `/livez`, `/readyz`, `/startupz` and the workers of a prefork server read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TypeAlias

from aiohttp import web

from sidecar.process.health import Health

HEALTH: web.AppKey[Health] = web.AppKey("sidecar.health", Health)
"""The checks of an application; `follow` and the writer add theirs."""

Detail: TypeAlias = Callable[[], Mapping[str, object]]

DETAILS: web.AppKey[MutableMapping[str, Detail]] = web.AppKey("sidecar.details")
"""Details that the probes report for operators: the mode of a watch, why a content is stale."""

MOVED_TO_ADMIN_PORT: web.AppKey[bool] = web.AppKey("sidecar.moved_to_admin_port", bool)
"""Set in an application whose probes and metrics are served on the admin port alone."""


def get_health(app: web.Application) -> Health:
    """Return the checks of an application, created on first use."""
    if HEALTH not in app:
        app[HEALTH] = Health()
    return app[HEALTH]


def get_details(app: web.Application) -> MutableMapping[str, Detail]:
    """Return the details of an application, created on first use."""
    if DETAILS not in app:
        app[DETAILS] = {}
    return app[DETAILS]
