"""The implementation of `sidecar collect`: run, dry run, check, status."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click
import orjson

from sidecar import _errors
from sidecar.cli import escape, lazy_imports
from sidecar.cli.impl import collect_page, file_positions, probe_server
from sidecar.logs import json_encoding
from sidecar.logs.collector import Collector
from sidecar.logs.config_file import Configuration, load, make_checkpoint_path
from sidecar.logs.input import checkpoint
from sidecar.logs.pipeline import READERS, Pipeline, multiline, parse_sink_spec
from sidecar.logs.pipelines import Plan, Signature, Topology, read_signature
from sidecar.logs.records import Record, Stage
from sidecar.process import lifecycle, nofile_limit

_CHUNK_SIZE = 1 << 20
_MAX_FILES_SHOWN = 10
"""Files listed in one message."""
_STAGE_SEPARATOR = f"\n{'':12}"
_PLAIN_YAML_SCALAR = re.compile(r"[A-Za-z_/][\w/.-]*")
_YAML_KEYWORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null"})
"""Words that YAML does not parse as strings."""


def configuration(
    config_file: str | None, given: Mapping[str, Any], *, as_json: bool
) -> Configuration:
    """Return the pipelines that a configuration file and the flags over it describe.

    Files and sinks of the command line replace those of the file; stages come after those of the file.

    Raises:
        ConfigError: a value that cannot work, or files for several pipelines.
    """
    if config_file is None:
        return Configuration({"": _with_flags(Pipeline(), given, as_json=as_json)}, frozenset())
    found = load(config_file)
    if len(found.pipelines) > 1 and given.get("files"):
        raise _errors.ConfigError(
            f"FILES cannot be given beside several pipelines ({', '.join(found.pipelines)})"
        )
    made = {}
    for name, pipeline in found.pipelines.items():
        made[name] = _with_flags(pipeline, given, as_json=as_json)
        if given.get("checkpoint"):
            checkpoint = make_checkpoint_path(given["checkpoint"], name)
            made[name] = made[name].with_values(checkpoint=checkpoint)
    return Configuration(made, found.files)


def _with_flags(base: Pipeline, given: Mapping[str, Any], *, as_json: bool) -> Pipeline:
    stages = [
        *[parse_sink_spec(one) for one in given.get("parse", ())],
        *[{name: one} for name in ("keep", "drop", "redact") for one in given.get(name, ())],
    ]
    if added := _pairs("--add", given.get("add", ())):
        stages.append({"add": added})
    same_name = {name: value for name, value in given.items() if name in READERS}
    other_name = {
        "sinks": given.get("sink"),
        "stages": [*base.stages, *stages],
        "multiline": _multiline(given),
        "labels": {**base.labels, **_pairs("--label", given.get("label", ()))},
        "json": as_json or None,
        "archives": given.get("archive"),
        "dead_letters": given.get("dead_letter"),
    }
    return base.with_values(**same_name | other_name)


def run(
    make: Callable[[], Configuration],
    sink_defaults: Mapping[str, Any],
    *,
    once: bool,
    host: str,
    port: int | None,
    ui: bool,
) -> int:
    """Collect until SIGTERM, or to the end of the existing data; changes of the configuration are applied."""
    nofile_limit.raise_nofile_limit()

    def plan() -> Plan:
        # Read once for the names of the files, and again for their contents, so that no change in between is missed.
        signature = read_signature(make().files)
        return _plan(make(), sink_defaults, signature)

    with lazy_imports.server_alone():
        first = plan()
        topology = Topology(first, plan if first.signature else None)
        work = topology.run(until_end=once)
        if port is not None:
            page = partial(collect_page.describe, topology) if ui else None
            work = probe_server.beside(work, probed(topology)._replace(page=page), host, port)
    try:
        lifecycle.run(work)
    except BrokenPipeError as error:  # click would exit silently
        raise _errors.SidecarError(
            "cannot write to standard output: its reader has exited"
        ) from error
    unreadable = {path: why for one in topology.summaries for path, why in one.unreadable.items()}
    if unreadable:
        raise _errors.SidecarError(_not_delivered(unreadable))
    return 0


def _plan(found: Configuration, sink_defaults: Mapping[str, Any], signature: Signature) -> Plan:
    """Make the collections of a configuration; nothing is opened yet.

    Raises:
        ConfigError: a value that cannot work, or one file for two sinks.
    """
    collectors: dict[str, Collector] = {}
    writers: dict[str, str] = {}
    for name, pipeline in found.pipelines.items():
        try:
            collectors[name] = pipeline.make_collector(sink_defaults)
        except _errors.ConfigError as error:
            raise _errors.ConfigError(f"{name}: {error}" if name else str(error)) from error
        for worker in collectors[name].workers:
            for path in getattr(worker.sink, "own_files", ()):
                if worker.name != "stdout" and writers.setdefault(path, name) != name:
                    raise _errors.ConfigError(
                        f"{path} cannot be a sink of two pipelines ({writers[path]}, {name})"
                    )
    drain = max(one.drain_timeout for one in found.pipelines.values())
    return Plan(collectors, drain, found.pipelines, signature)


def _not_delivered(unreadable: Mapping[str, str]) -> str:
    named = [f"{path} ({reason})" for path, reason in list(unreadable.items())[:_MAX_FILES_SHOWN]]
    more = len(unreadable) - len(named)
    rest = f" and {more} more" if more else ""
    return f"not all was delivered, since it cannot be read: {', '.join(named)}{rest}"


def check(found: Configuration, sink_defaults: Mapping[str, Any]) -> int:
    """Create everything that a run would create, open nothing, and print it."""
    plan = _plan(found, sink_defaults, {})
    for name, pipeline in found.pipelines.items():
        if name:
            click.echo(f"pipeline    {name}")
        click.echo(f"files       {' '.join(pipeline.files)}")
        click.echo(
            f"checkpoint  {pipeline.checkpoint or 'none: every start ignores what was delivered before'}"
        )
        stages = [f"- {_yaml(stage)}" for stage in pipeline.stages]
        click.echo(f"stages      {_STAGE_SEPARATOR.join(stages) or 'none'}")
        for worker, spec in zip(
            plan.collectors[name].workers, pipeline.sinks or ["stdout"], strict=True
        ):
            when = (
                f" when {_yaml(spec['when'])}"
                if "when" in spec and not isinstance(spec, str)
                else ""
            )
            click.echo(f"sink        {worker.name}{when}")
    return 0


def replay(found: Configuration, sink_defaults: Mapping[str, Any], path: str) -> int:
    """Deliver dead letters again; returns 1 if some are left."""
    from sidecar.logs import replay as replaying

    sinks = {
        sink.name: sink
        for one in found.pipelines.values()
        for sink in one.make_sinks(sink_defaults)
    }
    timeout = max(one.drain_timeout for one in found.pipelines.values())
    results: list[replaying.Replayed] = []

    async def main() -> None:
        results.append(await replaying.replay(path, list(sinks.values()), timeout=timeout))

    lifecycle.run(main())
    if not results:
        raise _errors.SidecarError(f"ended before the end: what is left is in {path}")
    done = results[0]
    left = sum(done.left.values())
    click.echo(f"{done.delivered} delivered, {done.refused} refused again, {left} left in {path}")
    for reason, count in done.left.items():
        click.echo(f"sidecar: {count} left: {escape.one_line(reason)}", err=True)
    return 1 if done.refused or left else 0


def dry_run(found: Configuration, path: str) -> int:
    """Print the output of the pipeline for one file. The summary goes to stderr, so that stdout is only JSON."""
    if not os.path.isfile(path):
        raise _errors.ConfigError(f"--dry-run: {path} is no file that is there")
    pipeline = _pipeline_for(found, path)
    stages = pipeline.make_stages()
    labels = pipeline.make_labels()()
    # The name is literal, even if it contains characters of a pattern.
    literal = "".join(f"[{sign}]" if sign in "*?[{" else sign for sign in os.path.abspath(path))
    source = _without_checkpoint(pipeline, literal)
    seen = dropped = changed = 0
    out = sys.stdout.buffer
    source.open()
    try:
        while blocks := source.read("", _CHUNK_SIZE) or _last(source):
            for block in blocks:
                for record in block.records(labels):
                    seen += 1
                    result = _through(record, stages)
                    if result is None:
                        dropped += 1
                        continue
                    changed += result.changed
                    out.write(json_encoding.json_line(result) + b"\n")
            source.acknowledge("", blocks)
        out.flush()
    finally:
        source.close()
    click.echo(
        f"{seen} records: {seen - dropped} pass ({changed} changed), {dropped} dropped", err=True
    )
    return 0


def _pipeline_for(found: Configuration, path: str) -> Pipeline:
    """Return the pipeline that would collect a file; if there is only one, it collects any file."""
    if len(found.pipelines) == 1:
        return found.only
    whole = os.path.abspath(path)
    for pipeline in found.pipelines.values():
        if any(fnmatch.fnmatch(whole, os.path.abspath(pattern)) for pattern in pipeline.files):
            return pipeline
    raise _errors.ConfigError(
        f"--dry-run: {path} is none of the files of {', '.join(found.pipelines)}"
    )


def print_status(path: str, *, as_json: bool) -> int:
    """Print position and lag of each file of a checkpoint, for each sink."""
    state = _state(path)
    rows = [row for entry in state.entries for row in file_positions.rows(entry)]
    if as_json:
        click.echo(orjson.dumps({"checkpoint": path, "files": rows}, option=orjson.OPT_INDENT_2))
        return 0
    titles = ("FILE", "SINK", "POSITION", "SIZE", "LAG", "STATE")
    cells = [
        (
            escape.one_line(row["file"]),
            escape.one_line(row["sink"]),
            f"{row['position']:,}",
            f"{row['size']:,}",
            f"{row['lag']:,}",
            row["state"],
        )
        for row in rows
    ]
    widths = [max(len(line[at]) for line in [titles, *cells]) for at in range(len(titles))]
    for line in [titles, *cells]:
        padded = [
            text.rjust(width) if at in (2, 3, 4) else text.ljust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo("  ".join(padded).rstrip())
    waiting = sum(row["lag"] for row in rows)
    count = len(state.entries)
    click.echo(f"{count} file{'s' * (count != 1)}, {waiting:,} bytes to deliver")
    return 0


def _through(record: Record, stages: Sequence[Stage]) -> Record | None:
    result: Record | None = record
    for stage in stages:
        if result is None:
            return None
        result = stage(result)
    return result


def _without_checkpoint(pipeline: Pipeline, pattern: str) -> Any:
    return replace(
        pipeline, files=[pattern], exclude=(), checkpoint=None, start="beginning"
    ).source()


def _last(source: Any) -> Any:
    """The buffered data: the last line without a newline, the last group."""
    source.flush(everything=True)
    return source.read("", _CHUNK_SIZE)


def _state(path: str) -> checkpoint.CheckpointState:
    problems = []
    for candidate in (path, path + checkpoint.PREVIOUS):
        try:
            with open(candidate, "rb") as file:
                state = checkpoint.decode(file.read())
        except OSError as error:
            problems.append(f"cannot read the checkpoint {candidate}: {error.strerror}")
        except ValueError as error:
            problems.append(f"{candidate} is no checkpoint: {error}")
        else:
            for problem in problems:
                click.echo(f"sidecar: {problem}", err=True)
            return state
    raise _errors.SidecarError(problems[0])


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise _errors.ConfigError(f"{flag} {one!r}: write it as NAME=VALUE")
        pairs[name] = value
    return pairs


def _multiline(given: Mapping[str, Any]) -> Any:
    start, end = given.get("multiline"), given.get("multiline_end")
    if start is None and end is None:
        return None
    try:
        return multiline(
            {"end": end}
            if start is None
            else start
            if end is None
            else {"start": start, "end": end}
        )
    except (TypeError, ValueError) as error:
        raise _errors.ConfigError(f"--multiline: {error}") from error


def _yaml(value: Any) -> str:
    """Write what a stage says as the file does; a name alone, and what stands behind one, without braces around it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_flow(name)}: {_flow(one)}" for name, one in value.items())
    return _flow(value)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{_yaml(value)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    return _plain(value) if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _plain(text: str) -> str:
    if _PLAIN_YAML_SCALAR.fullmatch(text) and text.lower() not in _YAML_KEYWORDS:
        return text
    return "'{}'".format(text.replace("'", "''")) if text.isprintable() else json.dumps(text)


def probed(topology: Collector | Topology) -> probe_server.Probed:
    """Return the health checks of a collection."""
    return probe_server.Probed(
        "collector",
        "sidecar collect",
        "Health of the collection.",
        "Do all sinks accept lines?",
        {
            "ready": topology.failure,
            "started": lambda: None if topology.started else "the first scan for files is running",
        },
    )
