"""What `sidecar reload` does, apart from its options."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sidecar import _errors
from sidecar.cli.impl import probe_server
from sidecar.process import lifecycle
from sidecar.reload.runner import Reloader

if TYPE_CHECKING:
    from sidecar.cli.action_options import Actions
    from sidecar.reload.change import Action


def make_actions(actions: Actions) -> list[Action]:
    """Make the actions of a command line.

    Raises:
        ConfigError: a status, a signal, an address or a file that is none.
    """
    return [_make_action(kind, value, actions) for kind, value in actions.chosen]


def _make_action(kind: str, value: Any, actions: Actions) -> Action:
    """Make an action. Modules of other kinds are not imported."""
    if kind == "webhook":
        from sidecar.reload.webhook import Webhook

        wrong = [one for one in actions.expect_status if not (one.isascii() and one.isdecimal())]
        if wrong:
            raise _errors.ConfigError(f"--expect-status: {wrong[0]!r} is no status: it is a number")
        statuses = tuple(map(int, actions.expect_status))
        return Webhook(value, statuses, actions.timeout, **asdict(actions.access))
    if kind == "exec":
        from sidecar.reload.command import Command

        return Command(value, actions.timeout)
    from sidecar.reload.signals import Signal

    return Signal(actions.signal, **{kind: value})


def run(
    path: str,
    actions: Sequence[Action],
    *,
    host: str,
    port: int | None,
    once: bool,
    **settings: Any,
) -> int:
    """Apply versions until SIGTERM, or the present one; return the exit code."""
    reloader = Reloader(path, actions, once=once, **settings)
    work = reloader.run()
    if port is not None:
        work = probe_server.beside(work, _probed(reloader), host, port)
    # A few requests a minute and the probes: uvloop's 3 MB would buy nothing.
    lifecycle.run(work, loop_factory=asyncio.new_event_loop)
    if once and reloader.version is None:
        # An init container that was stopped has not succeeded.
        why = f": {reloader.problem}" if reloader.problem else ""
        click.echo(f"sidecar: stopped before {path} was applied{why}", err=True)
        return 1
    return 0


def _probed(reloader: Reloader) -> probe_server.Probed:
    return probe_server.Probed(
        "reload",
        "sidecar reload",
        "Whether the application has the last version.",
        "Has the last version been applied?",
        {
            "live": lambda: reloader.failure,
            "ready": lambda: reloader.problem,
            "started": lambda: (
                None if reloader.started else "the first scan of the path is running"
            ),
        },
    )
