"""`sidecar reload`: make an application load each new version of a file or a set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from sidecar.cli import declare, lazy_imports, options, param_types

if TYPE_CHECKING:
    from sidecar.reload.change import Action

_ORDER = "sidecar.reload.order"
_ACTIONS = ("webhook", "exec", "process", "pid_file")


@dataclass(frozen=True)
class _ApplyOptions:
    """How a version is applied: arguments of `sidecar.reload.run`."""

    parallel: bool = declare.flag(
        is_flag=True, help="Run the actions in parallel instead of in their order."
    )
    confirm_url: str | None = declare.flag(
        type=param_types.http_url,
        help="Address that must answer with the version afterwards, as its ETag or in its body; otherwise all actions run again.",
    )
    confirm_timeout: float = declare.flag(
        type=param_types.positive_seconds,
        default=10.0,
        help="Maximum seconds until it answers with the version; with --rollback-on-failure also until a version is applied.",
    )
    rollback_on_failure: bool = declare.flag(
        is_flag=True,
        help="Publish the last confirmed version again if the application rejects a version, or does not apply it in time."
        " The rejected version is not retried until another one exists. The volume must be writable.",
    )
    state_file: str | None = declare.flag(
        type=param_types.NEW_FILE,
        help="File that stores which versions were confirmed and which were rejected."
        " Default: next to the content, under a hidden name.",
    )
    expand_to: str | None = declare.flag(
        type=param_types.nonempty_path,
        help="Publish each version with ${VARIABLE} and ${file:NAME} expanded to this file, or directory for a set, before the actions.",
    )
    splay: float = declare.flag(
        type=param_types.seconds,
        default=0.0,
        help="Length in seconds of the window over which the Pods spread a new version, each by a hash of its name and the version.",
    )
    stop_url: str | None = declare.flag(
        type=param_types.http_url,
        help="Address that is requested before a new version is applied; the version waits unless the response is 2xx."
        " When the application has rejected a version, it gets a POST request.",
    )
    ca_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="CA certificates (PEM) for webhooks, --confirm-url and --stop-url; read for each request.",
    )
    token_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="File with a bearer token for these requests, unless the address has credentials; read for each request.",
    )
    once: bool = declare.flag(
        is_flag=True,
        help="Exit with 0 once the present version is applied: for init containers.",
    )
    drain_timeout: float = declare.flag(
        type=param_types.seconds,
        default=10.0,
        help="After SIGTERM: seconds for a running action to end.",
    )


class _Ordered(declare.EnvCommand):
    """A command that records the order of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        ctx.meta[_ORDER] = [one.name for one in order]
        return rest


@declare.command("reload", cls=_Ordered)
@options.path(
    "File to follow, or directory for a set (end a directory that does not exist yet with /)."
)
@declare.repeated(
    "--webhook",
    "URL",
    param_types.http_url.parse,
    help="POST to this address, with the headers Sidecar-Version, ETag and Sidecar-Changed; may be repeated.",
)
@declare.repeated(
    "--exec",
    "COMMAND",
    param_types.command_line.parse,
    help="Run this command, without a shell, with SIDECAR_VERSION, SIDECAR_ETAG, SIDECAR_PATH and SIDECAR_CHANGED"
    " in its environment and a JSON object on its standard input; may be repeated.",
)
@declare.repeated(
    "--process",
    "NAME",
    help="Send --signal to the processes of this name, the master and not its workers; needs shareProcessNamespace; may be repeated.",
)
@declare.repeated(
    "--pid-file",
    "FILE",
    help="Send --signal to the process whose PID this file contains; may be repeated.",
)
@declare.option("--signal", metavar="NAME", default="HUP", help="Signal to send, as HUP or USR1.")
@declare.option(
    "--expect-status",
    type=param_types.words,
    metavar="STATUS[,STATUS…]",
    default="",
    show_default=False,
    help="Status codes that count as success of a webhook. Without it: 2xx.",
)
@declare.option(
    "--timeout",
    type=param_types.positive_seconds,
    default=10.0,
    help="Maximum seconds for a webhook or a command; a command is then killed with its child processes.",
)
@declare.group("applying", _ApplyOptions)
@declare.option(
    "--initial/--no-initial",
    default=True,
    help="Apply the version that exists at the start, too (the default): it may have changed while the command was not running.",
)
@options.keeping
@options.watching
@options.probes
@options.logging()
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    path: str,
    expect_status: tuple[str, ...],
    signal: str,
    timeout: float,
    applying: _ApplyOptions,
    initial: bool,
    keeping: options.StorageOptions,
    watching: options.WatchOptions,
    host: str,
    port: int | None,
    **given: tuple[Any, ...],
) -> int:
    """Notify an application of each new version of the file or directory at PATH, until the application has applied it.

    A set is one version: the actions run once, not once for each file.
    Actions run in the order of their flags; actions from variables follow, webhooks first.
    A failed action is retried with exponential backoff until it succeeds or a newer version exists: only the newest version counts.
    /readyz answers 503 while the last version has failed.

    The variable of a repeated option has one value a line.

    Runs until SIGTERM: then it lets a running action finish, and exits with 0.
    """
    with lazy_imports.server_alone():
        from sidecar.cli.impl import reload

        def make(kind: str, value: Any) -> Action:
            if kind == "webhook":
                return reload.webhook(
                    value, expect_status, timeout, applying.ca_file, applying.token_file
                )
            if kind == "exec":
                return reload.command(value, timeout)
            return reload.signal(signal, kind, value)

        if applying.state_file and not applying.rollback_on_failure:
            raise click.UsageError("--state-file needs --rollback-on-failure", ctx)
        if expect_status and not given["webhook"]:
            raise click.UsageError("--expect-status needs --webhook", ctx)
        values = {kind: list(given[kind]) for kind in _ACTIONS}
        named = [kind for kind in ctx.meta[_ORDER] if kind in _ACTIONS]
        late = [kind for kind in _ACTIONS if kind not in named for _ in values[kind]]
        actions = [make(kind, values[kind].pop(0)) for kind in (*named, *late)]
        if not actions:
            raise click.UsageError(
                "there is nothing to do: give --webhook, --exec, --process or --pid-file", ctx
            )
        return reload.run(
            path,
            actions,
            host=host,
            port=port,
            initial=initial,
            storage=asdict(keeping) | {"max_size": watching.max_size},
            **asdict(applying),
            **asdict(watching),
        )
