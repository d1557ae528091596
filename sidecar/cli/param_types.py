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


class Line(click.ParamType[T]):
    """What a function makes of a text; several ones in a variable stand on lines of their own, since they hold spaces."""

    name = "text"

    def __init__(self, take: Callable[[str], T]) -> None:
        self._take = take

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> T:
        return self._take(str(value).strip("\r\n"))

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.splitlines() if line.strip()]


def size(value: str) -> int:
    """Take a number of bytes, with the suffixes of Kubernetes."""
    with _refusal():
        return quantities.size(value)


def some_size(value: str) -> int:
    """Take a number of bytes that is not zero."""
    count = size(value)
    if not count:
        raise click.BadParameter("0 is too small: it must be more")
    return count


def seconds(value: str | float) -> float:
    """Take a time in seconds, or with a unit."""
    with _refusal():
        return quantities.seconds(str(value))


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


def words(value: str) -> tuple[str, ...]:
    """Take a list with commas or spaces between.

    >>> words("a.example.com, b.example.com"), words("")
    (('a.example.com', 'b.example.com'), ())
    """
    return tuple(value.replace(",", " ").split())


def some_path(value: str) -> str:
    """Parse a path that is not empty: an unset shell variable would otherwise mean the working directory."""
    if not value:
        raise click.BadParameter("'' is no path (is a variable of the script not set?)")
    return value


@contextmanager
def _refusal() -> Iterator[None]:
    """Raise the message through click, which would replace that of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
