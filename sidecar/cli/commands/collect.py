"""`sidecar collect`: log files are followed, and every line is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sidecar.cli import lazy_imports, options, param_types

if TYPE_CHECKING:
    from sidecar.logs.config_file import Configuration


_LINE = param_types.Line(str)


@options.command("collect")
@click.argument("files", nargs=-1, metavar="[FILES]...")
@options.option(
    "--checkpoint",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where to remember what has been delivered; without it every start begins anew.",
)
@options.option(
    "--sink",
    type=_LINE,
    multiple=True,
    metavar="ADDRESS",
    help="Where lines go: stdout (the default), file:///PATH, http(s)://… (NDJSON), loki+http(s)://…, "
    "elasticsearch+http(s)://…, otlp+http(s)://…; may be repeated, options follow a #.",
)
@options.option("--json", is_flag=True, help="Write every line as a JSON object (stdout, file).")
@options.option(
    "--exclude",
    type=_LINE,
    multiple=True,
    metavar="PATTERN",
    help="Leave these files out: a pattern for paths, or for bare names.",
)
@options.option(
    "--start",
    type=click.Choice(["beginning", "end"]),
    default="beginning",
    help="Where to begin in files that are there at the very first start.",
)
@options.option(
    "--ignore-older",
    type=param_types.seconds,
    metavar="SECONDS",
    help="Of those, begin at the end of each that has not been written for so long.",
)
@options.option(
    "--archive",
    type=_LINE,
    multiple=True,
    metavar="DIR",
    help="Directory to which rotation moves files (olddir), apart from their own.",
)
@options.option(
    "--root",
    type=click.Path(),
    metavar="DIR",
    help="Directory that symbolic links may not leave (default: that of the pattern).",
)
@options.option(
    "--time-zone",
    metavar="ZONE",
    help="Of times in lines that name none, like Europe/Berlin; by default that of TZ or /etc/localtime, else UTC.",
)
@options.option("--encoding", default="utf-8", help="Of files without a byte order mark.")
@options.option(
    "--max-line", type=param_types.size, default="1Mi", help="Longer lines are passed on in pieces."
)
@options.option(
    "--multiline",
    metavar="REGEX",
    help="A record begins at each line that matches; stack_traces, java, python, go, node, dotnet, ruby keep stack traces together; cri and docker join what a container runtime has cut.",
)
@options.option("--multiline-end", metavar="REGEX", help="A record ends at each line that matches.")
@options.option(
    "--parse",
    type=_LINE,
    multiple=True,
    metavar="FORM",
    help="What lines hold: json, logfmt, cri, docker, syslog, klog, text (level and time only), csv:COLUMNS or regex:PATTERN.",
)
@options.option(
    "--keep", type=_LINE, multiple=True, metavar="REGEX", help="Pass only lines that match."
)
@options.option("--drop", type=_LINE, multiple=True, metavar="REGEX", help="Drop lines that match.")
@options.option(
    "--redact",
    type=_LINE,
    multiple=True,
    metavar="REGEX",
    help="Replace what matches by ***, in the text and in every field.",
)
@options.option(
    "--add", type=_LINE, multiple=True, metavar="NAME=VALUE", help="Add a field to each record."
)
@options.option(
    "--label",
    type=_LINE,
    multiple=True,
    metavar="NAME=VALUE",
    help="Add a label, beside those of the Pod.",
)
@options.option(
    "--podinfo",
    type=click.Path(),
    metavar="DIR",
    default="/etc/podinfo",
    help="Where the downward API's files are mounted.",
)
@options.option(
    "--dead-letter",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where lines go that a sink refuses for good (default: beside the checkpoint).",
)
@options.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="Bearer token for HTTP sinks that have no credentials of their own; read at each request.",
)
@options.option(
    "--ca-file", type=click.Path(dir_okay=False), help="Certificates to trust in HTTP sinks (PEM)."
)
@options.option("--tenant", help="X-Scope-OrgID for Loki.")
@options.option(
    "--budget",
    type=param_types.size,
    default="8Mi",
    help="Bytes in flight, all sinks together; when they are used up, reading stops.",
)
@options.option(
    "--held-limit",
    type=param_types.size,
    default="1Gi",
    help="Unread bytes of deleted files that may be kept on the volume for a sink that is away; "
    "beyond it the oldest file is given up, loudly.",
)
@options.option(
    "--drain-timeout",
    type=param_types.seconds,
    metavar="SECONDS",
    default=20.0,
    help="After SIGTERM, seconds to deliver what is there.",
)
@options.option(
    "--remove-after",
    type=param_types.seconds,
    metavar="SECONDS",
    help="Delete a file once every sink has acknowledged all of it, that is saved, "
    "and it was not written for so long.",
)
@options.option(
    "--until-file",
    type=click.Path(),
    metavar="FILE",
    help="Once this file is there, deliver what is there when no program has the logs open any more, and exit: "
    "for Jobs, whose application makes it at its end.",
)
@options.option(
    "--until-process",
    metavar="NAME",
    help="The same once no process of this name is running; needs shareProcessNamespace.",
)
@options.option(
    "--once",
    is_flag=True,
    help="Deliver what is there now, and exit; with 1 if a file could not be read.",
)
@options.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Read the pipelines from a YAML file; flags win over it. A change of it is taken over.",
)
@options.option("--check-config", is_flag=True, help="Check everything, say what it means, exit.")
@options.option(
    "--dry-run",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Print what the pipeline makes of this file, as JSON; send nothing.",
)
@options.option(
    "--replay",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Deliver the dead letters of this file once more, to the sinks that refused them, and exit.",
)
@options.option(
    "--status",
    type=click.Path(dir_okay=False),
    metavar="CHECKPOINT",
    help="Print position and lag of each file, by this checkpoint.",
)
@options.option(
    "--port",
    type=param_types.port,
    help="Answer /livez, /readyz, /startupz and /metrics on this port.",
)
@options.host()
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
    **given: Any,
) -> int:
    """Follow log files through every rotation, and deliver every line.

    FILES are patterns with *, ?, [...], {a,b} and **; quote them, so that the shell leaves them alone.
    The position of a file moves only when the sinks have acknowledged:
    a sink that is away costs time, never a line, and the files themselves are the buffer.
    stdout and file:// write a line as it came where no stage has changed it, else as a JSON object.

    Stages run in this order: parse, keep, drop, redact, add; a configuration file may order them otherwise.
    REGEX is RE2's syntax. A variable that stands for a repeated option holds one value a line.

    It runs until SIGTERM: then it reads to the end, delivers, saves, and exits with 0.
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
    return collect.run(found, sink_defaults, once=once, host=host, port=port)
