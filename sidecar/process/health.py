"""Health checks of the process: components register them, probes report the result.

Kubernetes has three probes with three consequences:
not alive is restarted, not ready gets no traffic, not started gets more time
(https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/).
So a check belongs under `live` only if a restart would resolve what it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Literal, TypeAlias

from sidecar.process import lifecycle

Check: TypeAlias = Callable[[], str | None]
"""Returns None if healthy, else the problem and its remedy.

It is called at each probe, on the event loop: it must not block or wait.
"""

ProbeKind: TypeAlias = Literal["live", "ready", "started"]

OK = "ok"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a probe: the overall result, and that of each check (`"ok"`, or the problem)."""

    ok: bool
    checks: Mapping[str, str]


class Health:
    """The checks of one process.

    >>> health = Health()
    >>> remove = health.add("volume", ready=lambda: "nothing published in /shared yet")
    >>> health.report("ready")
    Report(ok=False, checks=mappingproxy({'volume': 'nothing published in /shared yet'}))
    >>> remove()
    >>> health.report("ready").ok
    True
    """

    def __init__(self) -> None:
        self._checks: dict[str, dict[ProbeKind, Check]] = {}

    def __repr__(self) -> str:
        return f"<Health of {', '.join(self._checks) or 'nothing'}>"

    def add(
        self,
        name: str,
        *,
        live: Check | None = None,
        ready: Check | None = None,
        started: Check | None = None,
    ) -> Callable[[], None]:
        """Add the checks of a component; returns a function that removes them (may be called twice).

        If the name is taken, the component is reported as `name#2`, `name#3`, ….
        """
        given: dict[ProbeKind, Check | None] = {"live": live, "ready": ready, "started": started}
        free = next(one for one in _numbered(name) if one not in self._checks)
        checks = {kind: check for kind, check in given.items() if check is not None}
        self._checks[free] = checks

        def remove() -> None:
            if self._checks.get(free) is checks:
                del self._checks[free]

        return remove

    def report(self, kind: ProbeKind) -> Report:
        """Run all checks of this kind. A draining process is not ready, whatever they return.

        A check that raises has failed: its error is reported and logged.
        """
        found = {
            name: _ask(name, checks[kind])
            for name, checks in self._checks.items()
            if kind in checks
        }
        if kind == "ready" and lifecycle.draining():
            found["process"] = "draining: it was asked to stop and finishes running work"
        return Report(all(said == OK for said in found.values()), MappingProxyType(found))


class CombinedHealth(Health):
    """The checks of several others, and its own.

    >>> one, other = Health(), Health()
    >>> remove = one.add("a", ready=lambda: None), other.add("a", ready=lambda: "away")
    >>> dict(CombinedHealth([one, other]).report("ready").checks)
    {'a': 'ok', 'a#2': 'away'}
    """

    def __init__(self, parts: Iterable[Health]) -> None:
        super().__init__()
        self._parts = tuple(parts)

    def report(self, kind: ProbeKind) -> Report:
        """Run all checks of this kind, those of the others as well."""
        found: dict[str, str] = {}
        for checks in (
            super().report(kind).checks,
            *(one.report(kind).checks for one in self._parts),
        ):
            for name, said in checks.items():
                free = next(one for one in _numbered(name) if found.get(one, said) == said)
                found[free] = said
        return Report(all(said == OK for said in found.values()), MappingProxyType(found))


def _ask(name: str, check: Check) -> str:
    try:
        return check() or OK
    except Exception as error:  # noqa: BLE001 (a probe must be answered)
        _log.exception(
            "the health check of %s failed", name, extra={"event": "health.check_failed"}
        )
        return f"the check itself failed: {type(error).__name__}: {error}"


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}#{number}" for number in count(2))
