"""`sidecar reload`: make an application load each new version of a file or a set."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click

from sidecar.cli import action_options, declare, lazy_imports, options, param_types


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
    once: bool = declare.flag(
        is_flag=True,
        help="Exit with 0 once the present version is applied: for init containers.",
    )
    drain_timeout: float = declare.flag(
        type=param_types.seconds,
        default=10.0,
        help="After SIGTERM: seconds for a running action to end.",
    )


@declare.command("reload", cls=action_options.ActionCommand)
@options.path(
    "File to follow, or directory for a set (end a directory that does not exist yet with /)."
)
@action_options.acting(timeout="--timeout", servers="webhooks, --confirm-url and --stop-url")
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
def command(
    *,
    path: str,
    actions: action_options.Actions,
    applying: _ApplyOptions,
    initial: bool,
    keeping: options.StorageOptions,
    watching: options.WatchOptions,
    host: str,
    port: int | None,
) -> int:
    """Notify an application of each new version of the file or directory at PATH, until the application has applied it.

    A set is one version: the actions run once, not once for each file.
    Actions run in the order of their flags; actions from variables follow, webhooks first.
    A failed action is retried with exponential backoff until it succeeds or a newer version exists: only the newest version counts.
    /readyz answers 503 while the last version has failed.

    The variable of a repeated option has one value a line.

    Runs until SIGTERM: then it lets a running action finish, and exits with 0.
    """
    if applying.state_file and not applying.rollback_on_failure:
        raise click.UsageError("--state-file needs --rollback-on-failure")
    if not actions.chosen:
        raise click.UsageError(
            "there is nothing to do: give --webhook, --exec, --process or --pid-file"
        )
    with lazy_imports.server_alone():
        from sidecar.cli.impl import reload
        from sidecar.process import tracing

        tracing.request("sidecar-reload")
        return reload.run(
            path,
            reload.make_actions(actions),
            host=host,
            port=port,
            initial=initial,
            storage=asdict(keeping) | {"max_size": watching.max_size},
            **asdict(actions.access),
            **asdict(applying),
            **asdict(watching),
        )
