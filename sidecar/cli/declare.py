"""How a command declares its options: an option that is also a variable, and a group of options that is a dataclass.

The variable of an option (`envvars`), its row in docs/cli.md (`tools/cli_reference.py`) and shell completion are made from the declaration;
tests compare the values of the chart and the arguments of the Python API with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import wraps
from typing import Any

import click

from sidecar.cli import envvars, escape, param_types

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


class Option(click.Option):
    """An option that ignores the service variables of Kubernetes."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value and isinstance(self.envvar, str) and envvars.is_service_link(self.envvar, value):
            return None
        return value


class EnvCommand(click.Command):
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


def command(name: str, cls: type[EnvCommand] = EnvCommand) -> Callable[[Function], EnvCommand]:
    """Turn a function into the command `name`; its docstring is the help."""

    def decorate(function: Function) -> EnvCommand:
        return click.command(name, cls=cls)(function)

    return decorate


def option(*declarations: str, help: str, **attributes: Any) -> Decorator:  # noqa: A002 (click's word)
    """Add an option. `help` is required."""
    attributes.setdefault("show_default", "default" in attributes)
    return click.option(*declarations, cls=Option, help=help, **attributes)


def repeated(
    flag: str,
    metavar: str,
    parse: Callable[[str], Any] = str,
    *,
    help: str,  # noqa: A002 (click's word)
) -> Decorator:
    """Add an option that may be repeated. A variable has one value a line."""
    return option(flag, type=param_types.Lines(parse), multiple=True, metavar=metavar, help=help)


def flag(**attributes: Any) -> Any:
    """Declare a field of a group as an option, with these arguments of `option`. The flag is the name of the field."""
    return field(metadata=attributes)


def group(name: str, cls: type[Any], **changes: Mapping[str, Any]) -> Decorator:
    """Return a decorator that adds an option for each field of `cls`, and passes the object as `name`.

    `changes` are arguments of `option` that differ for one command, by field.
    """
    flags = {one.name: {**one.metadata, **changes.get(one.name, {})} for one in fields(cls)}

    def decorate(function: Function) -> Function:
        @wraps(function)
        def gathered(**chosen: Any) -> Any:
            own = {key: chosen.pop(key) for key in flags}
            return function(**{name: cls(**own)}, **chosen)

        return add(
            gathered,
            *(option(f"--{key.replace('_', '-')}", **flags[key]) for key in flags),
        )

    return decorate


def add(function: Function, *options: Decorator) -> Function:
    """Add options to a function, shown in this order."""
    for decorate in reversed(options):
        function = decorate(function)
    return function
