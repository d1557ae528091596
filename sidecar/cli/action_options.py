"""Options that say what is done for each version: those of `sidecar reload`, and of `sidecar mirror`, which can do it itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import click

from sidecar.cli import declare, param_types

_ORDER = "sidecar.actions.order"
_KINDS = ("webhook", "exec", "process", "pid_file")


class ActionCommand(declare.EnvCommand):
    """A command that records the order of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        ctx.meta[_ORDER] = [one.name for one in order]
        return rest


@dataclass(frozen=True)
class ServerAccess:
    """How servers are reached. `{servers}` in a help is replaced by `acting`."""

    ca_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="CA certificates (PEM) for {servers}; read for each request.",
    )
    token_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="File with a bearer token for {servers}, unless the address has credentials; read for each request.",
    )
    user: str | None = declare.flag(
        metavar="NAME", help="User (Basic) for {servers}, with --password-file."
    )
    password_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="File with the password of --user; read for each request.",
    )


@dataclass(frozen=True)
class Actions:
    """The actions of a command line, in their order, and what is common to them."""

    chosen: Sequence[tuple[str, Any]]
    """The kind of each, and its value."""
    signal: str
    expect_status: tuple[str, ...]
    timeout: float
    access: ServerAccess


def acting(*, timeout: str, servers: str = "webhooks") -> declare.Decorator:
    """Add the options of actions, and pass them as `actions`.

    `timeout` is the flag of the time limit of one; `servers` are those for which certificates and credentials are.
    The command must be of the class `ActionCommand`.
    """
    own = timeout.lstrip("-").replace("-", "_")

    def decorate(function: declare.Function) -> declare.Function:
        @click.pass_context
        @wraps(function)
        def gathered(
            ctx: click.Context,
            /,
            *,
            signal: str,
            expect_status: tuple[str, ...],
            access: ServerAccess,
            **given: Any,
        ) -> Any:
            if expect_status and not given["webhook"]:
                raise click.UsageError("--expect-status needs --webhook", ctx)
            if (access.user is None) != (access.password_file is None):
                raise click.UsageError("--user and --password-file go together", ctx)
            values = {kind: list(given.pop(kind)) for kind in _KINDS}
            named = [kind for kind in ctx.meta[_ORDER] if kind in _KINDS]
            late = [kind for kind in _KINDS if kind not in named for _ in values[kind]]
            chosen = [(kind, values[kind].pop(0)) for kind in (*named, *late)]
            actions = Actions(chosen, signal, expect_status, given.pop(own), access)
            return function(actions=actions, **given)

        return declare.add(
            gathered,
            *_options(timeout),
            declare.group("access", ServerAccess, **_name_servers(servers)),
        )

    return decorate


def _name_servers(servers: str) -> dict[str, dict[str, str]]:
    helps = {one.name: str(one.metadata["help"]) for one in fields(ServerAccess)}
    return {name: {"help": text.format(servers=servers)} for name, text in helps.items()}


def _options(timeout: str) -> Sequence[declare.Decorator]:
    return (
        declare.repeated(
            "--webhook",
            "URL",
            param_types.http_url.parse,
            help="POST to this address, with the headers Sidecar-Version, ETag and Sidecar-Changed; may be repeated.",
        ),
        declare.repeated(
            "--exec",
            "COMMAND",
            param_types.command_line.parse,
            help="Run this command, without a shell, with SIDECAR_VERSION, SIDECAR_ETAG, SIDECAR_PATH and SIDECAR_CHANGED"
            " in its environment and a JSON object on its standard input; may be repeated.",
        ),
        declare.repeated(
            "--process",
            "NAME",
            help="Send --signal to the processes of this name, the master and not its workers; needs shareProcessNamespace; may be repeated.",
        ),
        declare.repeated(
            "--pid-file",
            "FILE",
            help="Send --signal to the process whose PID this file contains; may be repeated.",
        ),
        declare.option(
            "--signal", metavar="NAME", default="HUP", help="Signal to send, as HUP or USR1."
        ),
        declare.option(
            "--expect-status",
            type=param_types.words,
            metavar="STATUS[,STATUS…]",
            default="",
            show_default=False,
            help="Status codes that count as success of a webhook. Without it: 2xx.",
        ),
        declare.option(
            timeout,
            type=param_types.positive_seconds,
            default=10.0,
            help="Maximum seconds for a webhook or a command; a command is then killed with its child processes.",
        ),
    )
