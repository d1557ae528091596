"""`sidecar collect`: follow log files, and deliver every line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sidecar.cli import declare, lazy_imports, options, param_types

if TYPE_CHECKING:
    from sidecar.logs.config_file import Configuration


@declare.command("collect")
@click.argument("files", nargs=-1, metavar="[FILES]...")
@declare.option(
    "--checkpoint",
    type=param_types.NEW_FILE,
    help="File that stores what has been delivered; without it, every start ignores what was delivered before.",
)
@declare.repeated(
    "--sink",
    "ADDRESS",
    help="Destination of the lines: stdout (the default), file:///PATH, http(s)://… (NDJSON), loki+http(s)://…, "
    "elasticsearch+http(s)://…, otlp+http(s)://…; may be repeated, options follow a #.",
)
@declare.option("--json", is_flag=True, help="Write every line as a JSON object (stdout, file).")
@declare.repeated(
    "--exclude", "PATTERN", help="Files to exclude: a pattern for paths, or for bare names."
)
@declare.option(
    "--start",
    type=click.Choice(["beginning", "end"]),
    default="beginning",
    help="Where to begin in files that exist at the very first start.",
)
@declare.option(
    "--ignore-older",
    type=param_types.seconds,
    help="Begin at the end of those that have not been written for this long.",
)
@declare.repeated(
    "--archive", "DIR", help="Directory to which rotation moves files (olddir), if it is another."
)
@declare.option(
    "--root",
    type=click.Path(),
    metavar="DIR",
    help="Directory that symbolic links may not leave (default: that of the pattern).",
)
@declare.option(
    "--time-zone",
    metavar="ZONE",
    help="Time zone of timestamps without one, for example Europe/Berlin; default: TZ or /etc/localtime, else UTC.",
)
@declare.option("--encoding", default="utf-8", help="Encoding of files without a byte order mark.")
@declare.option(
    "--max-line", type=param_types.size, default="1Mi", help="Longer lines are split into pieces."
)
@declare.option(
    "--multiline",
    metavar="REGEX",
    help="A record begins at each matching line; stack_traces, java, python, go, node, dotnet, ruby keep stack traces together; cri and docker join lines split by the container runtime.",
)
@declare.option("--multiline-end", metavar="REGEX", help="A record ends at each matching line.")
@declare.repeated(
    "--parse",
    "FORM",
    help="Format of the lines: json, logfmt, cri, docker, syslog, klog, text (level and time only), csv:COLUMNS or regex:PATTERN.",
)
@declare.repeated("--keep", "REGEX", help="Pass only matching lines.")
@declare.repeated("--drop", "REGEX", help="Drop matching lines.")
@declare.repeated(
    "--redact", "REGEX", help="Replace matches by ***, in the text and in every field."
)
@declare.repeated("--add", "NAME=VALUE", help="Add a field to each record.")
@declare.repeated("--label", "NAME=VALUE", help="Add a label to those of the Pod.")
@declare.option(
    "--podinfo",
    type=click.Path(),
    metavar="DIR",
    default="/etc/podinfo",
    help="Where the files of the downward API are mounted.",
)
@declare.option(
    "--dead-letter",
    type=param_types.NEW_FILE,
    help="File for lines that a sink rejects permanently (default: next to the checkpoint).",
)
@declare.option(
    "--token-file",
    type=param_types.NEW_FILE,
    help="Bearer token for HTTP sinks without credentials of their own; read at each request.",
)
@declare.option(
    "--ca-file", type=param_types.NEW_FILE, help="CA certificates for HTTP sinks (PEM)."
)
@declare.option("--tenant", help="X-Scope-OrgID for Loki.")
@declare.option(
    "--budget",
    type=param_types.size,
    default="8Mi",
    help="Maximum bytes in flight, all sinks together; reading stops beyond it.",
)
@declare.option(
    "--held-limit",
    type=param_types.size,
    default="1Gi",
    help="Maximum unread bytes of deleted files that are kept on the volume for an unavailable sink; "
    "beyond it, the oldest file is given up, with an error in the log.",
)
@declare.option(
    "--drain-timeout",
    type=param_types.seconds,
    default=20.0,
    help="After SIGTERM: seconds to deliver the lines that are there.",
)
@declare.option(
    "--remove-after",
    type=param_types.seconds,
    help="Delete a file once every sink has acknowledged all of it, the checkpoint is saved, "
    "and it has not been written for this long.",
)
@declare.option(
    "--until-file",
    type=click.Path(),
    metavar="FILE",
    help="For Jobs: once this file exists and no program has the logs open, deliver what is there, and exit. "
    "The application creates the file at its end.",
)
@declare.option(
    "--until-process",
    metavar="NAME",
    help="The same once no process of this name is running; needs shareProcessNamespace.",
)
@declare.option(
    "--once",
    is_flag=True,
    help="Deliver what is there now, and exit; exit code 1 if a file could not be read.",
)
@declare.option(
    "--config",
    type=param_types.NEW_FILE,
    help="YAML file with the pipelines; flags override it. Changes are applied while it runs.",
)
@declare.option("--check-config", is_flag=True, help="Check the configuration, print it, and exit.")
@declare.option(
    "--dry-run",
    type=param_types.NEW_FILE,
    help="Print the output of the pipeline for this file, as JSON; send nothing.",
)
@declare.option(
    "--replay",
    type=param_types.NEW_FILE,
    help="Deliver the dead letters of this file again, to the sinks that rejected them, and exit.",
)
@declare.option(
    "--status",
    type=param_types.NEW_FILE,
    metavar="CHECKPOINT",
    help="Print position and lag of each file in this checkpoint, and exit.",
)
@options.probes
@options.ui("Serve /ui at the same port, a page with files, lag and sinks.")
@options.logging()
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    config: str | None,
    check_config: bool,
    dry_run: str | None,
    replay: str | None,
    status: str | None,
    json: bool,
    once: bool,
    host: str,
    port: int | None,
    ui: bool,
    **given: Any,
) -> int:
    """Follow log files through every rotation, and deliver every line.

    FILES are patterns with *, ?, [...], {a,b} and **; quote them, so that the shell does not expand them.
    The position of a file advances only when the sinks have acknowledged the lines:
    if a sink is unavailable, lines are delayed but not lost, and the files themselves are the buffer.
    stdout and file:// write a line unchanged unless a stage has changed it; then they write a JSON object.

    Stages run in this order: parse, keep, drop, redact, add; a configuration file may use another order.
    REGEX has the syntax of RE2. The variable of a repeated option has one value a line.

    Runs until SIGTERM: then it reads to the end, delivers, saves its positions, and exits with 0.
    """
    with lazy_imports.server_alone():
        from sidecar.cli.impl import collect

    if status is not None:
        return collect.print_status(status, as_json=json)
    explicit = {
        name: value
        for name, value in given.items()
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }

    def found() -> Configuration:
        return collect.configuration(config, explicit, as_json=json)

    sink_defaults = {
        name: given[name] for name in ("token_file", "ca_file", "tenant") if given[name] is not None
    }
    if dry_run is not None:
        return collect.dry_run(found(), dry_run)
    if replay is not None:
        return collect.replay(found(), sink_defaults, replay)
    if check_config:
        return collect.check(found(), sink_defaults)
    return collect.run(found, sink_defaults, once=once, host=host, port=port, ui=ui)
