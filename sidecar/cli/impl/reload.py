"""What `sidecar reload` does, apart from its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sidecar import _errors
from sidecar.cli.impl import probe_server
from sidecar.process import lifecycle
from sidecar.reload.runner import Reloader

if TYPE_CHECKING:
    from sidecar.reload.change import Action


def webhook(
    url: str,
    expect_status: Sequence[str],
    timeout: float,
    ca_file: str | None,
    token_file: str | None,
) -> Action:
    """Make a webhook.

    Raises:
        ConfigError: a status that is none.
    """
    from sidecar.reload.webhook import Webhook

    wrong = [one for one in expect_status if not (one.isascii() and one.isdecimal())]
    if wrong:
        raise _errors.ConfigError(f"--expect-status: {wrong[0]!r} is no status: it is a number")
    return Webhook(url, tuple(map(int, expect_status)), timeout, ca_file, token_file)


def command(words: Sequence[str], timeout: float) -> Action:
    """Make a command."""
    from sidecar.reload.command import Command

    return Command(words, timeout)


def signal(name: str, kind: str, value: str) -> Action:
    """Make a signal to a process by its name, or by a file.

    Raises:
        ConfigError: there is no such signal.
    """
    from sidecar.reload.signals import Signal

    return Signal(name, **{kind: value})


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
    lifecycle.run(work)
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
