"""Write the tables of docs/cli.md from the commands themselves: `python tools/cli_reference.py`."""  # noqa: INP001 (a tool, not a package)

from __future__ import annotations

import inspect
from pathlib import Path

import click

from sidecar.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
MARK = "<!-- From here on written by tools/cli_reference.py: change the commands, not this. -->\n"


def page(text: str) -> str:
    """Return the page with its tables as the commands are now; what stands above the mark stays."""
    head, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has lost its mark: {MARK}")
    context = click.Context(main.sidecar, info_name="sidecar")
    commands = [(name, main.sidecar.get_command(context, name)) for name in main.COMMANDS]
    return head + MARK + "".join(section(name, c, context) for name, c in commands if c is not None)


def section(name: str, command: click.Command, above: click.Context) -> str:
    """Return heading, usage, description and table of one command."""
    context = click.Context(command, info_name=name, parent=above)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = [row(option) for option in command.params if isinstance(option, click.Option)]
    return "\n".join(
        [
            f"\n## sidecar {name}\n",
            f"    {usage}\n",
            description(command),
            "| option | variable | default | |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def description(command: click.Command) -> str:
    """Return the help text; what click is told not to wrap becomes a block."""
    parts = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("\b\n"):
            parts.append("\n".join(f"    {line}" for line in part.splitlines()[1:]))
        else:
            parts.append(part)
    return "\n\n".join(parts) + "\n"


def row(option: click.Option) -> str:
    """Return one line of the table."""
    kind = option.type
    value = "" if option.is_flag else option.metavar or str(kind.name).upper()
    if isinstance(kind, click.Choice):
        value = "\\|".join(map(str, kind.choices))
    names = "`, `".join((option.opts[0], *option.secondary_opts))
    flag = f"`{names}`" + (f" {value}" if value else "")
    shown = option.show_default and not option.is_flag
    default = f"`{option.default}`" if shown else "required" if option.required else ""
    return f"| {flag} | `{option.envvar}` | {default} | {option.help} |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
