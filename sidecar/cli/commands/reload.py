"""`sidecar reload`: an application takes over each version of a file or a set."""

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
        help="Publish the last confirmed version again if the application refuses a version, or does not apply it in time."
        " The refused version is not tried again until another one comes. The volume must be writable.",
    )
    state_file: str | None = declare.flag(
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Where to remember which version was confirmed and which refused."
        " Without it: beside the content, under a hidden name.",
    )
    expand_to: str | None = declare.flag(
        type=param_types.nonempty_path,
        help="Publish each version with ${VARIABLE} and ${file:NAME} expanded to this file, or directory for a set, before the actions.",
    )
    splay: float = declare.flag(
        type=param_types.seconds,
        default=0.0,
        help="Window in seconds in which the Pods take a new version one after the other, by a hash of Pod name and version.",
    )
    stop_url: str | None = declare.flag(
        type=param_types.http_url,
        help="Address that is asked before a new version is taken, and holds it unless it answers 2xx;"
        " it is told by POST when the application has refused one.",
    )
    ca_file: str | None = declare.flag(
        type=param_types.EXISTING_FILE,
        help="Certificates to trust (PEM) in webhooks, --confirm-url and --stop-url; read for each request.",
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


class _Ordered(declare.Command):
    """A command that knows in which order its options were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        ctx.meta[_ORDER] = [one.name for one in order]
        return rest


@declare.command("reload", cls=_Ordered)
@options.path("File to follow, or directory for a set (if it is not there yet: end it with /).")
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
    """Tell an application of each version of the file or directory at PATH, until it has taken it over.

    A set is one version, and told once, not once for each file.
    Actions run in the order of their flags; those of variables come after them, webhooks first.
    One that fails is tried again after growing pauses, until it succeeds or there is a newer version: only the newest counts.
    /readyz says no while the last version has failed.

    A variable that stands for a repeated option holds one value a line.

    It runs until SIGTERM: then a running action ends, and it exits with 0.
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
