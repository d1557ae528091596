"""The `sidecar` command: loads the module of a subcommand, and reports errors in one line.

Exit codes: 0 success, 1 failure, 2 usage error; `publish` has one more.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from types import FrameType

import click

from sidecar import _errors
from sidecar._version import __version__
from sidecar.cli import envvars, escape

COMMANDS = (
    *("write", "read", "collect", "reload", "mirror", "publish", "sign", "delete"),
    *("wait", "check", "doctor", "demo"),
)

FAILED = 1
USAGE = 2


def main() -> None:
    """Run the command line of this process, and exit."""
    _fill_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters outside the terminal's encoding are escaped, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Before further imports: the kernel does not deliver an unhandled signal to process 1 of a container,
    # so a Pod that is stopped during its start would wait for SIGKILL.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    sys.exit(run(sys.argv[1:]))


def _fill_standard_descriptors() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr, before another file gets its number.

    Output to stdout would go to that file; and uvloop aborts the process.
    Writes to a closed stdout still fail: lines must not count as delivered.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code. Errors become one line on stderr."""
    try:
        result = sidecar.main(arguments, prog_name="sidecar", standalone_mode=False)
    except click.ClickException as error:
        return _report_usage(error)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except _errors.ConfigError as error:
        return _report(error, str(error), USAGE)
    except _errors.SidecarError as error:
        return _report(error, str(error), FAILED)
    except Exception as error:  # noqa: BLE001 (last resort: one line in the container's log)
        what = f"unexpected {type(error).__name__}: {error} (--log-level debug shows where)"
        return _report(error, what, FAILED)
    return result if isinstance(result, int) else 0


class Commands(click.Group):
    """The subcommands, imported on demand."""

    def get_help(self, ctx: click.Context) -> str:
        return escape.fit_marks(super().get_help(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        loaded = import_module(f"sidecar.cli.commands.{cmd_name}").command
        return loaded if isinstance(loaded, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if ctx.resilient_parsing:  # shell completion: errors in the line are not reported
            return super().resolve_command(ctx, args)
        if args[0] not in COMMANDS:
            nearest = escape.nearest(args[0], COMMANDS)
            meant = f"did you mean {nearest}?" if nearest else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {args[0]!r} ({meant})")
        name, command, rest = super().resolve_command(ctx, args)
        # Before the command's own options: "--path is missing" would hide a misspelt variable.
        if command is not None and not set(ctx.help_option_names) & set(rest):
            refuse_unknown_variables(command, ctx)
        return name, command, rest


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-V", "--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def sidecar(ctx: click.Context, version: bool) -> int:
    """Publish, watch and serve the files that the containers of a Pod share.

    Every option of a command is also a variable: `--port` of `write` is SIDECAR_WRITE_PORT.
    A flag wins over its variable, and an unknown SIDECAR_* variable is an error.
    """
    if version:
        click.echo(f"sidecar {__version__}")
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        # To stderr, and with an error code: a missing command must not look like success in a Pod.
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)
    return 0


def refuse_unknown_variables(command: click.Command, ctx: click.Context) -> None:
    """Raise if a SIDECAR_* variable is set that no option of any command reads.

    All commands count, because the containers of a Pod often share one list of variables.

    Raises:
        click.UsageError: names the variable, and the nearest one that exists.
    """
    known = envvars.names_of(command)
    if not envvars.unknown(os.environ, known):
        return
    # Only now import the other commands.
    for name in COMMANDS:
        if (other := sidecar.get_command(ctx, name)) is not None:
            known |= envvars.names_of(other)
    if unknown := envvars.unknown(os.environ, known):
        raise click.UsageError(envvars.unknown_variable_error(unknown[0], known), ctx)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Exit as the default action of the signal does: there is nothing to clean up yet."""
    os._exit(128 + number)


def _report(error: Exception, message: str, code: int) -> int:
    click.echo(f"sidecar: {escape.one_line(message)}", err=True)
    if _debugging():
        import traceback

        traceback.print_exception(error)
    return code


def _debugging() -> bool:
    """Whether `--log-level debug` is set. Without `logging` imported it cannot be."""
    logging = sys.modules.get("logging")
    return logging is not None and logging.getLogger().getEffectiveLevel() <= logging.DEBUG


def _report_usage(error: click.ClickException) -> int:
    """Report a usage error: what is wrong, where it came from, and how to get help."""
    click.echo(f"sidecar: {escape.one_line(_usage_message(error))}", err=True)
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is not None:
        click.echo(f"Try '{ctx.command_path} --help'.", err=True)
    return error.exit_code


def _usage_message(error: click.ClickException) -> str:
    match error:
        case click.MissingParameter(param=click.Option() as option):
            flag = option.opts[0]
            variable = f" or the variable {option.envvar}" if option.envvar else ""
            return f"{flag} is missing: give the flag{variable} ({option.help})"
        case click.MissingParameter(param=click.Parameter() as argument):
            return f"{argument.human_readable_name} is missing"
        case click.BadParameter(param=click.Option() as option, ctx=ctx):
            return f"{_origin(option, ctx)}: {_sentence(error.message)}"
        case click.NoSuchOption(possibilities=near):
            meant = f" (did you mean {near[0]}?)" if near else ""
            return f"there is no option {error.option_name}{meant}"
    return _sentence(error.format_message())


def _origin(option: click.Option, ctx: click.Context | None) -> str:
    """Return the flag or the variable that a value came from."""
    source = ctx.get_parameter_source(option.name or "") if ctx is not None else None
    if source is click.core.ParameterSource.ENVIRONMENT:
        return f"{option.opts[0]} (from the variable {option.envvar})"
    return option.opts[0]


def _sentence(message: str) -> str:
    """Adapt a message of click to our style: lower case, without a full stop."""
    first = message[:1].lower() if message[1:2].islower() else message[:1]
    return first + message[1:].rstrip(".")


if __name__ == "__main__":
    main()
