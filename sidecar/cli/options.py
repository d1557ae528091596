"""Options that several commands have, in groups; `declare` has the words they are declared with.

A group is a frozen dataclass, whose fields declare the options.
As a decorator, it adds its options and passes their values as one object:

    @declare.command("write")
    @options.listening(default=8080)
    def command(listening: options.ServerOptions) -> None: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from sidecar.cli import param_types
from sidecar.cli.declare import Decorator, Function, add, flag, group, option
from sidecar.volume.content import filters

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sidecar.volume.validation.gate import Gate


def complete_path(
    ctx: click.Context,  # noqa: ARG001 (click's arguments)
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Let the shell complete file names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def path(what: str) -> Decorator:
    """Add `--path`. It has no default."""
    kind = param_types.nonempty_path
    return option("--path", required=True, type=kind, shell_complete=complete_path, help=what)


HOST: Mapping[str, Any] = {
    "metavar": "ADDRESS",
    "default": "",
    "show_default": False,
    "help": "Address to listen on. Without it: all addresses, IPv6 and IPv4. 0.0.0.0: IPv4 only.",
}
MAX_SIZE: Mapping[str, Any] = {"type": param_types.size, "default": "64Mi"}
VERIFY_KEY: Mapping[str, Any] = {
    "type": param_types.Lines(param_types.nonempty_path.parse),
    "multiple": True,
    "metavar": "FILE",
}
INCLUDE: Mapping[str, Any] = {
    "type": param_types.words,
    "metavar": "PATTERN[,PATTERN…]",
    "default": "",
    "show_default": False,
    "help": "Loose files of a directory to include, for example *.conf,sites/*. Without it: all.",
}
EXCLUDE: Mapping[str, Any] = {
    "type": param_types.words,
    "metavar": "PATTERN[,PATTERN…]",
    "default": ",".join(filters.EDITORS),
    "help": "Loose files to exclude, and directories to skip."
    " The default excludes the temporary files of editors; '' excludes nothing.",
}


@dataclass(frozen=True)
class ServerOptions:
    """Addresses, limits and shutdown of a server."""

    host: str = flag(**HOST)
    port: int | None = flag(
        type=param_types.port, help="Port to listen on; 0 selects any free port."
    )
    admin_port: int | None = flag(
        type=param_types.port,
        help="Serve /livez, /readyz, /startupz and /metrics on this port alone, by plain HTTP and without a token.",
    )
    admin_host: str = flag(
        **{**HOST, "help": "Address to listen on with --admin-port. Without it: all addresses."}
    )
    unix_socket: str | None = flag(
        type=click.Path(),
        help="Listen on this Unix socket; also on a port only if --port is set.",
    )
    tls_cert: str | None = flag(
        type=param_types.EXISTING_FILE,
        help="Certificate chain (PEM); reloaded when it changes.",
    )
    tls_key: str | None = flag(
        type=param_types.EXISTING_FILE,
        help="Private key (PEM), if --tls-cert does not contain it.",
    )
    drain_delay: float = flag(
        type=param_types.seconds,
        default=1.0,
        help="After SIGTERM: seconds during which requests are still accepted while /readyz answers 503.",
    )
    drain_timeout: float = flag(
        type=param_types.seconds,
        default=10.0,
        help="After that: seconds for running requests to finish.",
    )
    head_timeout: float = flag(
        type=param_types.positive_seconds,
        default=10.0,
        help="Seconds from the first byte of a request to the end of its head; then 408.",
    )
    max_connections: int = flag(
        type=click.IntRange(min=1),
        metavar="N",
        default=10_000,
        help="Maximum connections of each worker, if the limit of open files allows it."
        " Beyond it, idle connections are closed; if there are none, the new one gets 503.",
    )
    workers: int = flag(
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        help="Processes that serve. Throughput grows with them up to the number of cores; each takes 10 MiB.",
    )
    access_log: bool = flag(
        is_flag=True,
        help="Log one line for each request. Responses are then not served from the fast path.",
    )


@dataclass(frozen=True)
class ValidationOptions:
    """Validation of contents."""

    max_size: int = flag(**MAX_SIZE, help="Maximum size of a content.")
    format: Literal["text", "json", "yaml", "toml"] | None = flag(
        type=click.Choice(["text", "json", "yaml", "toml"]),
        help="Required syntax of a content; text means UTF-8.",
    )
    schema: str | None = flag(
        type=param_types.EXISTING_FILE,
        help="JSON Schema that a content must satisfy.",
    )
    check: tuple[str, ...] | None = flag(
        type=param_types.command_line,
        help="Command that validates a content: it gets the path as its last argument; a non-zero exit status rejects the content.",
    )
    check_timeout: float = flag(
        type=param_types.positive_seconds,
        default=10.0,
        help="Maximum seconds for validation: by --format and --schema, and by --check.",
    )
    verify_key: tuple[str, ...] = flag(
        **VERIFY_KEY,
        help="Public keys (PEM, ed25519): accept only content that one of them has signed. Reloaded when the file changes; may be repeated.",
    )

    def gate(self) -> Gate:
        """Return the gate for these options.

        Raises:
            ConfigError: the schema cannot be read, or an extra is not installed.
        """
        from pathlib import Path

        from sidecar.volume.validation.gate import Gate

        return Gate(
            max_size=self.max_size,
            format=self.format,
            schema=Path(self.schema) if self.schema else None,
            check=self.check,
            check_timeout=self.check_timeout,
        )


@dataclass(frozen=True)
class StorageOptions:
    """Storage of contents on the volume."""

    mode: int = flag(type=param_types.mode, default="0644", help="Permissions of published files.")
    group: int | None = flag(
        type=param_types.group, help="Group of published files, by number or name."
    )
    keep: int = flag(
        type=click.IntRange(min=0),
        metavar="N",
        default=10,
        help="Number of versions to keep for a rollback.",
    )
    keep_bytes: int = flag(
        type=param_types.size,
        default="256Mi",
        help="Maximum bytes of older versions of all files together; the oldest are removed first.",
    )
    keep_deleted: int = flag(
        type=click.IntRange(min=0),
        metavar="N",
        default=10,
        help="Number of deleted files whose older versions are kept; those published longest ago are removed first.",
    )
    volume_budget: int | None = flag(
        type=param_types.positive_size,
        help="Maximum disk usage of the directory in bytes, with history and temporary files. If removing history"
        " is not enough, a write gets 507. Set it below the `sizeLimit` of an emptyDir.",
    )
    durability: Literal["full", "none"] = flag(
        type=click.Choice(["full", "none"]),
        default="full",
        help="full: synced to disk before it is acknowledged. none: a power failure may undo or corrupt it.",
    )


@dataclass(frozen=True)
class WatchOptions:
    """Detection of changes."""

    watch: Literal["auto", "inotify", "watchfiles", "poll"] = flag(
        type=click.Choice(["auto", "inotify", "watchfiles", "poll"]),
        default="auto",
        help="Source of change events; auto selects one that works on the file system.",
    )
    recheck: float = flag(
        type=param_types.positive_seconds,
        default=1.0,
        help="Seconds between two scans without an event.",
    )
    max_size: int = flag(**MAX_SIZE, help="Maximum size of a content that is read.")
    include: tuple[str, ...] = flag(**INCLUDE)
    exclude: tuple[str, ...] = flag(**EXCLUDE)
    quiet: float | None = flag(
        type=param_types.positive_seconds,
        help="Quiet period: show a change of a directory of loose files after this many seconds without another change."
        " Without it, only in-place writes are delayed, by 0.1 s.",
    )
    verify_key: tuple[str, ...] = flag(
        **VERIFY_KEY,
        help="Public keys (PEM, ed25519): use only content that one of them has signed. Reloaded when the file changes; may be repeated.",
    )


gating = group("gating", ValidationOptions)
"""Add the validation options."""
keeping = group("keeping", StorageOptions)
"""Add the storage options."""


def listening(*, default: int) -> Decorator:
    """Add the options of a server that listens on the port `default`."""

    def decorate(function: Function) -> Function:
        @click.pass_context
        @wraps(function)
        def checked(ctx: click.Context, /, *, listening: ServerOptions, **chosen: Any) -> Any:
            if listening.unix_socket and not _is_set(ctx, "port"):
                listening = replace(listening, port=None)
            if listening.tls_key and not listening.tls_cert:
                raise click.UsageError("--tls-key is of no use alone: give --tls-cert, too", ctx)
            return function(listening=listening, **chosen)

        return group("listening", ServerOptions, port={"default": default})(checked)

    return decorate


def watching(function: Function) -> Function:
    """Add the watch options, and `--poll`."""

    @option("--poll", is_flag=True, help="Same as --watch poll.")
    @click.pass_context
    @wraps(function)
    def checked(ctx: click.Context, /, *, watching: WatchOptions, poll: bool, **chosen: Any) -> Any:
        if poll and _is_set(ctx, "watch") and watching.watch != "poll":
            raise click.UsageError(
                f"--poll contradicts --watch {watching.watch}: give one of them", ctx
            )
        return function(watching=replace(watching, watch="poll") if poll else watching, **chosen)

    return group("watching", WatchOptions)(checked)


def patterns(function: Function) -> Function:
    """Add the filters of loose files in a directory: `--include`, `--exclude`."""
    return add(function, option("--include", **INCLUDE), option("--exclude", **EXCLUDE))


def probes(function: Function) -> Function:
    """Add `--port` and `--host` of a command that serves nothing but probes and metrics."""
    what = "Serve /livez, /readyz, /startupz and /metrics on this port."
    return add(
        function, option("--port", type=param_types.port, help=what), option("--host", **HOST)
    )


def tokens(function: Function) -> Function:
    """Add `--token-file` and `--read-token-file` of a server."""
    return add(
        function,
        option(
            "--token-file",
            type=param_types.EXISTING_PATH,
            help="File with the bearer tokens that requests must carry, one a line, TOKEN or NAME: TOKEN;"
            " or directory with a file for each name. Reloaded when it changes.",
        ),
        option(
            "--read-token-file",
            type=param_types.EXISTING_PATH,
            help="The same for tokens that may only read: a write with one of them gets 403.",
        ),
    )


allowed_hosts = option(
    "--allowed-hosts",
    type=param_types.words,
    metavar="NAME[,NAME…]",
    default="",
    show_default=False,
    help="Host names that requests may use, against DNS rebinding; .example.com includes all subdomains."
    " IP addresses and localhost are always allowed. Without it: any name.",
)
allowed_origins = option(
    "--allowed-origins",
    type=param_types.words,
    metavar="ORIGIN[,ORIGIN…]",
    default="",
    show_default=False,
    help="Origins whose pages may send writes, for example https://admin.example.com. Without it: only the server's own.",
)


def ui(what: str) -> Decorator:
    """Add `--ui` and `--no-ui`."""
    return option("--ui/--no-ui", default=True, help=what)


def logging(level: str = "info", *, reports_failure: bool = False) -> Decorator:
    """Add `--log-level` and `--log-format`, and configure logging before the function is called.

    With `reports_failure` the command ends with the error message of its one change, and the log does not repeat it.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def configured(*, log_level: str, log_format: Literal["text", "json"], **rest: Any) -> Any:
            from sidecar.process import logging

            logging.configure(log_level, log_format)
            if reports_failure:
                logging.leave_out_failures("sidecar.volume.change_log")
            return function(**rest)

        return add(
            configured,
            option(
                "--log-level",
                type=click.Choice(["debug", "info", "warning", "error"]),
                default=level,
                help="Minimum severity to log; debug adds tracebacks.",
            ),
            option(
                "--log-format",
                type=click.Choice(["text", "json"]),
                default="text",
                help="Plain text, or one JSON object a line.",
            ),
        )

    return decorate


def _is_set(ctx: click.Context, name: str) -> bool:
    """Return whether a flag or a variable sets the option."""
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
