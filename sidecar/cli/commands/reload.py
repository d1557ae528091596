"""`sidecar reload`: an application takes over each version of a file or a set."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sidecar.cli import lazy_imports, options, param_types

if TYPE_CHECKING:
    from sidecar.reload.change import Action

_ORDER = "sidecar.reload.order"
_ACTIONS = ("webhook", "exec", "process", "pid_file")


class _Ordered(options.Command):
    """A command that knows in which order its options were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        ctx.meta[_ORDER] = [one.name for one in order]
        return rest


@options.command("reload", cls=_Ordered)
@options.path("File to follow, or directory for a set (if it is not there yet: end it with /).")
@options.option(
    "--webhook",
    type=param_types.Line(param_types.http_url),
    multiple=True,
    metavar="URL",
    help="POST to this address, with the headers Sidecar-Version, ETag and Sidecar-Changed; may be repeated.",
)
@options.option(
    "--exec",
    type=param_types.Line(param_types.command_line),
    multiple=True,
    metavar="COMMAND",
    help="Run this command, without a shell, with SIDECAR_VERSION, SIDECAR_ETAG, SIDECAR_PATH and SIDECAR_CHANGED"
    " in its environment and a JSON object on its standard input; may be repeated.",
)
@options.option(
    "--process",
    type=param_types.Line(str),
    multiple=True,
    metavar="NAME",
    help="Send --signal to the processes of this name, the master and not its workers; needs shareProcessNamespace; may be repeated.",
)
@options.option(
    "--pid-file",
    type=param_types.Line(str),
    multiple=True,
    metavar="FILE",
    help="Send --signal to the process whose number stands in this file; may be repeated.",
)
@options.option("--signal", metavar="NAME", default="HUP", help="Signal to send, as HUP or USR1.")
@options.option(
    "--expect-status",
    type=param_types.words,
    metavar="STATUS[,STATUS…]",
    default="",
    show_default=False,
    help="Statuses that a webhook must answer with; without it 2xx.",
)
@options.option(
    "--timeout",
    type=param_types.some_seconds,
    metavar="SECONDS",
    default=10.0,
    help="Seconds that a webhook or a command may take; what a command has started is killed then.",
)
@options.option(
    "--parallel",
    is_flag=True,
    help="Run the actions side by side, and not in the order in which they are given.",
)
@options.option(
    "--confirm-url",
    type=param_types.http_url,
    metavar="URL",
    help="Address that must answer with the version afterwards, as its ETag or in its body; else all actions run again.",
)
@options.option(
    "--confirm-timeout",
    type=param_types.some_seconds,
    metavar="SECONDS",
    default=10.0,
    help="Seconds until it must.",
)
@options.option(
    "--initial/--no-initial",
    default=True,
    help="Apply the version that is there at the start, too (the default): it may have changed while nobody looked.",
)
@options.option(
    "--once",
    is_flag=True,
    help="Exit with 0 once the present version was applied: for init containers.",
)
@options.option(
    "--drain-timeout",
    type=param_types.seconds,
    metavar="SECONDS",
    default=10.0,
    help="After SIGTERM, seconds that a running action has to end.",
)
@options.watching()
@options.option(
    "--port",
    type=param_types.port,
    help="Answer /livez, /readyz, /startupz and /metrics on this port.",
)
@options.host()
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
    parallel: bool,
    confirm_url: str | None,
    confirm_timeout: float,
    initial: bool,
    once: bool,
    drain_timeout: float,
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
                return reload.webhook(value, expect_status, timeout)
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
            once=once,
            parallel=parallel,
            confirm_url=confirm_url,
            confirm_timeout=confirm_timeout,
            initial=initial,
            drain_timeout=drain_timeout,
            **asdict(watching),
        )
