"""The health of an application: what its probes ask, and what they report beside it.

The parts of an application add their checks here, and `/livez`, `/readyz`, `/startupz` and the workers of a prefork server read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from aiohttp import web

from sidecar.process.health import Health

HEALTH: web.AppKey[Health] = web.AppKey("sidecar.health", Health)
"""The checks of an application; `follow` and the writer add theirs to it."""

Detail: TypeAlias = Callable[[], Mapping[str, object]]

DETAILS: web.AppKey[dict[str, Detail]] = web.AppKey("sidecar.details", dict)
"""What the probes report beside the checks, for people: the mode of a watch, why a content is stale."""


def get_health(app: web.Application) -> Health:
    """Return the checks of an application, made when they are first asked for."""
    if HEALTH not in app:
        app[HEALTH] = Health()
    return app[HEALTH]


def get_details(app: web.Application) -> dict[str, Detail]:
    """Return the details of an application, made when they are first asked for."""
    if DETAILS not in app:
        app[DETAILS] = {}
    return app[DETAILS]
