"""Parameter types of click: each parses a value from the command line or a variable, or explains what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from sidecar.process import quantities

T = TypeVar("T")

EXISTING_FILE = click.Path(exists=True, dir_okay=False)
EXISTING_PATH = click.Path(exists=True)
NEW_FILE = click.Path(dir_okay=False)


class Parsed(click.ParamType[T]):
    """A type that is a function from a string to a value. Usage lines show it as `name`."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self.parse = parse

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> T:
        return self.parse(str(value))


class Lines(Parsed[T]):
    """The type of a repeated option: a variable has one value a line, because values may contain spaces."""

    def __init__(self, parse: Callable[[str], T]) -> None:
        super().__init__("text", lambda value: parse(value.strip("\r\n")))

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.splitlines() if line.strip()]


def named(name: str) -> Callable[[Callable[[str], T]], Parsed[T]]:
    """Return a decorator that turns a parser into a type."""
    return lambda parse: Parsed(name, parse)


@named("SIZE")
def size(value: str) -> int:
    """Parse a number of bytes, with the suffixes of Kubernetes."""
    with _usage_errors():
        return quantities.size(value)


@named("SIZE")
def positive_size(value: str) -> int:
    """Parse a number of bytes that is not zero."""
    count = size.parse(value)
    if not count:
        raise click.BadParameter("0 is too small: it must be more")
    return count


@named("SECONDS")
def seconds(value: str) -> float:
    """Parse a time in seconds, or with a unit."""
    with _usage_errors():
        return quantities.seconds(value)


@named("SECONDS")
def positive_seconds(value: str) -> float:
    """Parse a time that is not zero."""
    time = seconds.parse(value)
    if not time:
        raise click.BadParameter("0 is too short: it must be more")
    return time


@named("PORT")
def port(value: str) -> int:
    """Parse a TCP port; 0 means any free one."""
    text = value.strip()
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise click.BadParameter(
            f"{value!r} is no port: a number from 1 to 65535, or 0 for any free one"
        )
    return int(text)


@named("MODE")
def mode(value: str) -> int:
    """Parse octal file permissions, as chmod(1) does.

    >>> oct(mode.parse("0644")), oct(mode.parse("640"))
    ('0o644', '0o640')
    """
    found = re.fullmatch(r"(?:0o?)?([0-7]{3})", value.strip(), re.ASCII)
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no file mode: three octal digits, as in 0644 or 640"
        )
    return int(found[1], 8)


@named("GROUP")
def group(value: str) -> int:
    """Parse a group: a number, or a name known on this machine."""
    if value.isascii() and value.isdigit():
        return int(value)
    import grp

    try:
        return grp.getgrnam(value).gr_gid
    except KeyError:
        raise click.BadParameter(
            f"{value!r} is no group of this machine: give its number"
        ) from None


@named("COMMAND")
def command_line(value: str) -> tuple[str, ...]:
    """Split a command as a shell would; it runs without a shell. Its program must exist."""
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


@named("URL")
def http_url(value: str) -> str:
    """Check that an address begins with http:// or https://."""
    if not re.match(r"https?://[^/]", value):
        shown = "this" if "@" in value else repr(value)  # before an @ there may be a password
        raise click.BadParameter(f"{shown} is no address: it must begin with http:// or https://")
    return value


@named("LIST")
def words(value: str) -> tuple[str, ...]:
    """Split a list at commas and spaces.

    >>> words.parse("a.example.com, b.example.com"), words.parse("")
    (('a.example.com', 'b.example.com'), ())
    """
    return tuple(value.replace(",", " ").split())


@named("PATH")
def nonempty_path(value: str) -> str:
    """Check that a path is not empty: an unset shell variable would otherwise mean the working directory."""
    if not value:
        raise click.BadParameter("'' is no path (is a variable of the script not set?)")
    return value


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Raise the message of a `ValueError` as a usage error; click would replace it by its own."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
