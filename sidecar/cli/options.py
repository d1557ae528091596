"""Shared building blocks of commands: a command whose options are also variables, and groups of related options.

A group is a decorator. It adds its options and passes their values to the function as one frozen object:

    @command("write")
    @options.listening(default=8080)
    def command(listening: options.ServerOptions) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from sidecar.cli import envvars, escape, param_types
from sidecar.volume.content import filters

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sidecar.volume.validation.gate import Gate

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


class Option(click.Option):
    """An option that ignores the service variables of Kubernetes."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value and isinstance(self.envvar, str) and envvars.is_service_link(self.envvar, value):
            return None
        return value


class Command(click.Command):
    """A command whose options can also be set by variables."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        for option in self.params:
            if isinstance(option, Option):
                option.envvar = envvars.name(name, option.opts[0].lstrip("-"))
                option.show_envvar = True

    def get_help(self, ctx: click.Context) -> str:
        return escape.fit_marks(super().get_help(ctx))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. A surplus argument is reported before a missing option: it may be its value."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            _, stray, _ = self.make_parser(ctx).parse_args(given)
            if not stray or not isinstance(error.param, Option):
                raise
            flag = error.param.opts[0]
            raise click.UsageError(
                f"there is an argument too many: {stray[0]!r}, and {flag} is missing"
                f" (did you mean {flag} {stray[0]}?)",
                ctx,
            ) from error


def command(name: str, cls: type[Command] = Command) -> Callable[[Function], Command]:
    """Turn a function into the command `name`; its docstring is the help."""

    def decorate(function: Function) -> Command:
        return click.command(name, cls=cls)(function)

    return decorate


def option(*declarations: str, help: str, **attributes: Any) -> Decorator:  # noqa: A002 (click's word)
    """Add an option. `help` is required."""
    attributes.setdefault("show_default", "default" in attributes)
    return click.option(*declarations, cls=Option, help=help, **attributes)


@dataclass(frozen=True)
class ServerOptions:
    """Addresses, limits and shutdown of a server."""

    host: str
    port: int | None
    unix_socket: str | None
    tls_cert: str | None
    tls_key: str | None
    drain_delay: float
    drain_timeout: float
    head_timeout: float
    max_connections: int
    workers: int
    access_log: bool


@dataclass(frozen=True)
class ValidationOptions:
    """Validation of contents."""

    max_size: int
    format: Literal["text", "json", "yaml", "toml"] | None
    schema: str | None
    check: tuple[str, ...] | None
    check_timeout: float

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

    mode: int
    group: int | None
    keep: int
    keep_bytes: int
    keep_deleted: int
    volume_budget: int | None
    durability: Literal["full", "none"]


@dataclass(frozen=True)
class WatchOptions:
    """Detection of changes."""

    watch: Literal["auto", "inotify", "watchfiles", "poll"]
    recheck: float
    max_size: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    quiet: float | None


def path(what: str) -> Decorator:
    """Add `--path`. It has no default."""
    return option(
        "--path",
        required=True,
        type=param_types.some_path,
        metavar="PATH",
        shell_complete=complete_path,
        help=what,
    )


def complete_path(
    ctx: click.Context,  # noqa: ARG001 (click's arguments)
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    """Let the shell complete file names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def listening(*, default: int) -> Decorator:
    """Add the options of a server: `--host`, `--port`, `--unix-socket`, TLS, draining, limits and workers."""

    @click.pass_context
    def gather(ctx: click.Context, /, **chosen: Any) -> ServerOptions:
        given = ctx.get_parameter_source("port") is not click.core.ParameterSource.DEFAULT
        if chosen["unix_socket"] and not given:
            chosen["port"] = None
        if chosen["tls_key"] and not chosen["tls_cert"]:
            raise click.UsageError("--tls-key is of no use alone: give --tls-cert, too", ctx)
        return ServerOptions(**chosen)

    return _group(
        "listening",
        gather,
        host(),
        option(
            "--port",
            type=param_types.port,
            default=default,
            help="Port to listen on; 0 takes any free one.",
        ),
        option(
            "--unix-socket",
            type=click.Path(),
            help="Listen on this socket, and on a port only if --port is given, too.",
        ),
        option(
            "--tls-cert",
            type=param_types.EXISTING_FILE,
            help="Certificate chain (PEM); read again when it changes.",
        ),
        option(
            "--tls-key",
            type=param_types.EXISTING_FILE,
            help="Private key of the certificate (PEM), if --tls-cert does not hold it.",
        ),
        option(
            "--drain-delay",
            type=param_types.seconds,
            metavar="SECONDS",
            default=1.0,
            help="After SIGTERM, seconds in which requests are still accepted while /readyz says no.",
        ),
        option(
            "--drain-timeout",
            type=param_types.seconds,
            metavar="SECONDS",
            default=10.0,
            help="After that, seconds that running requests have to finish.",
        ),
        option(
            "--head-timeout",
            type=param_types.some_seconds,
            metavar="SECONDS",
            default=10.0,
            help="Seconds from the first byte of a request to the end of its head; then 408.",
        ),
        option(
            "--max-connections",
            type=click.IntRange(min=1),
            metavar="N",
            default=10_000,
            help="Connections at a time of each worker, if so many files may be open; then idle ones give way, or the next gets 503.",
        ),
        option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            default=1,
            help="Processes that serve, for as many cores: about so many times the requests, and 10 MiB each.",
        ),
        option(
            "--access-log",
            is_flag=True,
            help="Log one line for each request; no answer comes from memory then.",
        ),
    )


def host() -> Decorator:
    """Add `--host`."""
    return option(
        "--host",
        metavar="ADDRESS",
        default="",
        show_default=False,
        help="Address to listen on; without it all, of IPv6 and IPv4. 0.0.0.0 is IPv4 alone.",
    )


def gating() -> Decorator:
    """Add the validation options: `--max-size`, `--format`, `--schema`, `--check`."""

    def gather(**chosen: Any) -> ValidationOptions:
        return ValidationOptions(**chosen)

    return _group(
        "gating",
        gather,
        max_size("Largest content that passes."),
        option(
            "--format",
            type=click.Choice(["text", "json", "yaml", "toml"]),
            help="Syntax that a content must have; text is UTF-8.",
        ),
        option(
            "--schema",
            type=param_types.EXISTING_FILE,
            help="JSON Schema that a content must satisfy.",
        ),
        option(
            "--check",
            type=param_types.command_line,
            metavar="COMMAND",
            help="Program that gets the path of a content as its last argument, and refuses it by a failing exit.",
        ),
        option(
            "--check-timeout",
            type=param_types.some_seconds,
            metavar="SECONDS",
            default=10.0,
            help="Seconds that an examination may take: by --format and --schema, and by --check.",
        ),
    )


def keeping() -> Decorator:
    """Add the storage options: permissions, limits of the history and of the volume, `--durability`."""

    def gather(**chosen: Any) -> StorageOptions:
        return StorageOptions(**chosen)

    return _group(
        "keeping",
        gather,
        option(
            "--mode", type=param_types.mode, default="0644", help="Permissions of published files."
        ),
        option(
            "--group", type=param_types.group, help="Group of published files, by number or name."
        ),
        option(
            "--keep",
            type=click.IntRange(min=0),
            metavar="N",
            default=10,
            help="Versions to keep for a rollback.",
        ),
        option(
            "--keep-bytes",
            type=param_types.size,
            metavar="SIZE",
            default="256Mi",
            help="Bytes of older versions to keep on the volume, of all files together; the oldest go first.",
        ),
        option(
            "--keep-deleted",
            type=click.IntRange(min=0),
            metavar="N",
            default=10,
            help="Deleted files of which older versions are kept; those that were published longest ago go first.",
        ),
        option(
            "--volume-budget",
            type=param_types.some_size,
            metavar="SIZE",
            help="Bytes on the disk that the directory may take, with history and temporary files: beyond it 507,"
            " once the history has given way. Set it below the `sizeLimit` of an emptyDir.",
        ),
        option(
            "--durability",
            type=click.Choice(["full", "none"]),
            default="full",
            help="full: on the disk before it is acknowledged; none: a power cut may take it back, or leave it torn.",
        ),
    )


def watching() -> Decorator:
    """Add the watch options: `--watch`, `--poll`, `--recheck`, `--max-size`, `--include`, `--exclude`, `--quiet`."""

    @click.pass_context
    def gather(ctx: click.Context, /, *, poll: bool, watch: Any, **chosen: Any) -> WatchOptions:
        given = ctx.get_parameter_source("watch") is not click.core.ParameterSource.DEFAULT
        if poll and given and watch != "poll":
            raise click.UsageError(f"--poll contradicts --watch {watch}: give one of them", ctx)
        return WatchOptions(watch="poll" if poll else watch, **chosen)

    return _group(
        "watching",
        gather,
        option(
            "--watch",
            type=click.Choice(["auto", "inotify", "watchfiles", "poll"]),
            default="auto",
            help="Where hints of changes come from; auto takes what the file system can be trusted with.",
        ),
        option("--poll", is_flag=True, help="Short for --watch poll."),
        option(
            "--recheck",
            type=param_types.some_seconds,
            metavar="SECONDS",
            default=1.0,
            help="Seconds between two looks at the files themselves, whatever the hints say.",
        ),
        max_size("Largest content that is read."),
        *_patterns(),
        option(
            "--quiet",
            type=param_types.some_seconds,
            metavar="SECONDS",
            help="Show a change of a directory of loose files once nothing more has changed for so long;"
            " without it only what is written in place waits, for 0.1 s.",
        ),
    )


def patterns() -> Decorator:
    """Add the filters of loose files in a directory: `--include`, `--exclude`."""

    def decorate(function: Function) -> Function:
        return _add(function, *_patterns())

    return decorate


def _patterns() -> tuple[Decorator, ...]:
    return (
        option(
            "--include",
            type=param_types.words,
            metavar="PATTERN[,PATTERN…]",
            default="",
            show_default=False,
            help="Loose files of a directory that count, as in *.conf,sites/*; without it all do.",
        ),
        option(
            "--exclude",
            type=param_types.words,
            metavar="PATTERN[,PATTERN…]",
            default=",".join(filters.EDITORS),
            help="Loose files that do not count, and directories that are not looked into;"
            " the default is what editors leave beside their files. '' for none.",
        ),
    )


def token_file() -> Decorator:
    """Add `--token-file`."""
    return option(
        "--token-file",
        type=param_types.EXISTING_FILE,
        help="File with the bearer token that requests must carry; read again when it changes.",
    )


def allowed_hosts() -> Decorator:
    """Add `--allowed-hosts`."""
    return option(
        "--allowed-hosts",
        type=param_types.words,
        metavar="NAME[,NAME…]",
        default="",
        show_default=False,
        help="Names by which it may be asked, against DNS rebinding; .example.com stands for all beneath it."
        " Addresses and localhost always are. Without it: any.",
    )


def allowed_origins() -> Decorator:
    """Add `--allowed-origins`."""
    return option(
        "--allowed-origins",
        type=param_types.words,
        metavar="ORIGIN[,ORIGIN…]",
        default="",
        show_default=False,
        help="Origins whose pages may make a browser write, as https://admin.example.com. Without it: its own pages alone.",
    )


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

        return _add(
            configured,
            option(
                "--log-level",
                type=click.Choice(["debug", "info", "warning", "error"]),
                default=level,
                help="Least severity to log; debug also shows where an error came from.",
            ),
            option(
                "--log-format",
                type=click.Choice(["text", "json"]),
                default="text",
                help="Lines for people, or one JSON object a line.",
            ),
        )

    return decorate


def max_size(what: str) -> Decorator:
    """Add `--max-size`."""
    return option("--max-size", type=param_types.size, default="64Mi", help=what)


def _group(name: str, gather: Function, *options: Decorator) -> Decorator:
    """Return a decorator that adds `options` and passes the result of `gather` as `name`."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def gathered(**chosen: Any) -> Any:
            own = {key: chosen.pop(key) for key in names}
            return function(**{name: gather(**own)}, **chosen)

        already = len(_params(gathered))
        added = _add(gathered, *options)
        names = [param.name for param in _params(added)[already:]]
        return added

    return decorate


def _add(function: Function, *options: Decorator) -> Function:
    for decorate in reversed(options):
        function = decorate(function)
    return function


def _params(function: Function) -> Sequence[click.Parameter]:
    """Return the parameters that click has recorded on a function."""
    found: Sequence[click.Parameter] = getattr(function, "__click_params__", ())
    return found
