"""What commands share: kinds of values, and groups of options that belong together.

A group is a decorator. It adds its options and hands the function one frozen object with their values:

    @command("write")
    @options.listening(default=8080)
    def command(listening: options.Listening) -> None: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from sidecar.cli import variables

if TYPE_CHECKING:
    from sidecar.volume.gate import Gate

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


class Option(click.Option):
    """An option that does not take the variables of Kubernetes for its own."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value and isinstance(self.envvar, str) and variables.is_service_link(self.envvar, value):
            return None
        return value


class Command(click.Command):
    """A command each of whose options is a variable, too."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        for option in self.params:
            if isinstance(option, Option):
                option.envvar = variables.name(name, option.opts[0].lstrip("-"))
                option.show_envvar = True


def command(name: str) -> Callable[[Function], Command]:
    """Make the function the command of that name; its docstring is the help."""

    def decorate(function: Function) -> Command:
        return click.command(name, cls=Command)(function)

    return decorate


def option(*declarations: str, help: str, **attributes: Any) -> Decorator:  # noqa: A002 (click's word)
    """Add one option. `help` is no choice: an option that nobody explains is of no use."""
    attributes.setdefault("show_default", "default" in attributes)
    return click.option(*declarations, cls=Option, help=help, **attributes)


def size(value: str) -> int:
    """Take a number of bytes, with the suffixes of Kubernetes.

    >>> size("64Mi"), size("10M"), size("1k"), size("512")
    (67108864, 10000000, 1000, 512)
    """
    found = re.fullmatch(r"(\d+) ?([kmg]i?|)b?", value.strip(), re.ASCII | re.IGNORECASE)
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no size: bytes, or a number with k, M, G, Ki, Mi or Gi"
        )
    return int(found[1]) * _BYTES[found[2].lower()]


def seconds(value: str) -> float:
    """Take a time in seconds, or with a unit.

    >>> seconds("0.5"), seconds("500ms"), seconds("10s"), seconds("2m")
    (0.5, 0.5, 10.0, 120.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?(ms|s|m|h|)", str(value).strip(), re.ASCII)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time: seconds, or a number with ms, s, m or h")
    return float(found[1]) * _SECONDS[found[2]]


def some_seconds(value: str) -> float:
    """Take a time that is not zero."""
    time = seconds(value)
    if not time:
        raise click.BadParameter("0 is too short: it must be more")
    return time


def port(value: str) -> int:
    """Take a TCP port, 0 for any free one."""
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise click.BadParameter(
            f"{value!r} is no port: a number from 1 to 65535, or 0 for any free one"
        )
    return int(text)


def mode(value: str) -> int:
    """Take file permissions in octal, as chmod(1) does.

    >>> oct(mode("0644")), oct(mode("640"))
    ('0o644', '0o640')
    """
    found = re.fullmatch(r"(?:0o?)?([0-7]{3})", value.strip(), re.ASCII)
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no file mode: three octal digits, as in 0644 or 640"
        )
    return int(found[1], 8)


def group(value: str) -> int:
    """Take a group by number, or by name where this machine has one of that name."""
    if value.isascii() and value.isdigit():
        return int(value)
    import grp

    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        raise click.BadParameter(
            f"{value!r} is no group of this machine: give its number"
        ) from None


def command_line(value: str) -> tuple[str, ...]:
    """Take a command in one string: split as a shell would, to be run without one."""
    import shlex
    import shutil

    try:
        words = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} cannot be split into words: {str(error).lower()}"
        ) from None
    if not words:
        raise click.BadParameter("the command is empty")
    if shutil.which(words[0]) is None:
        raise click.BadParameter(f"there is no program {words[0]!r} that could be run here")
    return tuple(words)


def http_url(value: str) -> str:
    """Take an address that begins with http:// or https://."""
    if not re.match(r"https?://[^/]", value):
        raise click.BadParameter(f"{value!r} is no address: it must begin with http:// or https://")
    return value


def some_path(value: str) -> str:
    """Take a path that is not empty: what an unset variable of a script leaves would be the working directory."""
    if not value:
        raise click.BadParameter("'' is no path (is a variable of the script not set?)")
    return value


_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

EXISTING_FILE = click.Path(exists=True, dir_okay=False)


@dataclass(frozen=True)
class Listening:
    """Where a server listens, what it bears, and how it ends."""

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


@dataclass(frozen=True)
class Gating:
    """What a content must be, to pass."""

    max_size: int
    format: Literal["text", "json", "yaml", "toml"] | None
    schema: str | None
    check: tuple[str, ...] | None
    check_timeout: float

    def gate(self) -> Gate:
        """Make the gate of these options.

        Raises:
            ConfigError: a schema that cannot be read, or an extra that is not installed.
        """
        from pathlib import Path

        from sidecar.volume.gate import Gate

        return Gate(
            max_size=self.max_size,
            format=self.format,
            schema=Path(self.schema) if self.schema else None,
            check=self.check,
            check_timeout=self.check_timeout,
        )


@dataclass(frozen=True)
class Keeping:
    """What becomes of a content on the volume."""

    mode: int
    group: int | None
    keep: int
    durability: Literal["full", "none"]


@dataclass(frozen=True)
class Watching:
    """How changes are noticed."""

    watch: Literal["auto", "inotify", "watchfiles", "poll"]
    recheck: float
    max_size: int


def path(what: str) -> Decorator:
    """Add `--path`, without a default: what is to be shared is nobody's guess."""
    return option("--path", required=True, type=some_path, metavar="PATH", help=what)


def listening(*, default: int) -> Decorator:
    """Add where to listen: `--host`, `--port`, `--unix-socket`, TLS, draining, limits and workers."""

    @click.pass_context
    def gather(ctx: click.Context, /, **values: Any) -> Listening:
        given = ctx.get_parameter_source("port") is not click.core.ParameterSource.DEFAULT
        if values["unix_socket"] and not given:
            values["port"] = None
        if values["tls_key"] and not values["tls_cert"]:
            raise click.UsageError("--tls-key is of no use alone: give --tls-cert, too", ctx)
        return Listening(**values)

    return _group(
        "listening",
        gather,
        option("--host", metavar="ADDRESS", default="0.0.0.0", help="Address to listen on."),  # noqa: S104 (a Pod's probes come from outside)
        option(
            "--port", type=port, default=default, help="Port to listen on; 0 takes any free one."
        ),
        option(
            "--unix-socket",
            type=click.Path(),
            help="Listen on this socket, and on a port only if --port is given, too.",
        ),
        option(
            "--tls-cert",
            type=EXISTING_FILE,
            help="Certificate chain (PEM); read again when it changes.",
        ),
        option(
            "--tls-key",
            type=EXISTING_FILE,
            help="Private key of the certificate (PEM), if --tls-cert does not hold it.",
        ),
        option(
            "--drain-delay",
            type=seconds,
            metavar="SECONDS",
            default=1.0,
            help="After SIGTERM, seconds in which requests are still accepted while /readyz says no.",
        ),
        option(
            "--drain-timeout",
            type=seconds,
            metavar="SECONDS",
            default=10.0,
            help="After that, seconds that running requests have to finish.",
        ),
        option(
            "--head-timeout",
            type=some_seconds,
            metavar="SECONDS",
            default=10.0,
            help="Seconds from the first byte of a request to the end of its head; then 408.",
        ),
        option(
            "--max-connections",
            type=click.IntRange(min=1),
            metavar="N",
            default=10_000,
            help="Connections at a time of each worker, if so many files may be open; one more gets 503.",
        ),
        option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            default=1,
            help="Processes that serve, for as many cores: about so many times the requests, and 10 MiB each.",
        ),
    )


def gating() -> Decorator:
    """Add what a content must be: `--max-size`, `--format`, `--schema`, `--check`."""

    def gather(**values: Any) -> Gating:
        return Gating(**values)

    return _group(
        "gating",
        gather,
        _max_size("Largest content that passes."),
        option(
            "--format",
            type=click.Choice(["text", "json", "yaml", "toml"]),
            help="Syntax that a content must have; text is UTF-8.",
        ),
        option("--schema", type=EXISTING_FILE, help="JSON Schema that a content must satisfy."),
        option(
            "--check",
            type=command_line,
            metavar="COMMAND",
            help="Program that gets the path of a content as its last argument, and refuses it by a failing exit.",
        ),
        option(
            "--check-timeout",
            type=some_seconds,
            metavar="SECONDS",
            default=10.0,
            help="Seconds that --check may take.",
        ),
    )


def keeping() -> Decorator:
    """Add what becomes of files: `--mode`, `--group`, `--keep`, `--durability`."""

    def gather(**values: Any) -> Keeping:
        return Keeping(**values)

    return _group(
        "keeping",
        gather,
        option("--mode", type=mode, default="0644", help="Permissions of published files."),
        option("--group", type=group, help="Group of published files, by number or name."),
        option(
            "--keep",
            type=click.IntRange(min=0),
            metavar="N",
            default=10,
            help="Versions to keep for a rollback.",
        ),
        option(
            "--durability",
            type=click.Choice(["full", "none"]),
            default="full",
            help="full: on the disk before it is acknowledged; none: a power cut may take it back, or leave it torn.",
        ),
    )


def watching() -> Decorator:
    """Add how changes are noticed: `--watch`, `--poll`, `--recheck`, `--max-size`."""

    @click.pass_context
    def gather(ctx: click.Context, /, *, poll: bool, watch: Any, **values: Any) -> Watching:
        given = ctx.get_parameter_source("watch") is not click.core.ParameterSource.DEFAULT
        if poll and given and watch != "poll":
            raise click.UsageError(f"--poll contradicts --watch {watch}: give one of them", ctx)
        return Watching(watch="poll" if poll else watch, **values)

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
            type=some_seconds,
            metavar="SECONDS",
            default=1.0,
            help="Seconds between two looks at the files themselves, whatever the hints say.",
        ),
        _max_size("Largest content that is read."),
    )


def token_file() -> Decorator:
    """Add `--token-file`."""
    return option(
        "--token-file",
        type=EXISTING_FILE,
        help="File with the bearer token that requests must carry; read again when it changes.",
    )


def logging(level: str = "info") -> Decorator:
    """Add `--log-level` and `--log-format`, and set logging up before the function is called."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def configured(*, log_level: str, log_format: Literal["text", "json"], **rest: Any) -> Any:
            from sidecar.runtime import logging

            logging.configure(log_level, log_format)
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


def _max_size(what: str) -> Decorator:
    return option("--max-size", type=size, default="64Mi", help=what)


def _group(name: str, gather: Function, *options: Decorator) -> Decorator:
    """Make the decorator that adds `options` and passes what `gather` makes of them as `name`."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def gathered(**values: Any) -> Any:
            own = {key: values.pop(key) for key in names}
            return function(**{name: gather(**own)}, **values)

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
    """Return what click has noted on a function so far."""
    found: Sequence[click.Parameter] = getattr(function, "__click_params__", ())
    return found
