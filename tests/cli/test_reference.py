"""An option is declared once: docs/cli.md, the Python API and the pipelines of a file have the same names and defaults."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from sidecar import mirror
from sidecar.cli import main, options
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server.serve import serve
from sidecar.logs.pipeline import READERS, Pipeline
from sidecar.logs.stages import options as stage_options
from sidecar.reload.options import check as reload_options
from sidecar.sync import publishing
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from sidecar.volume.watch.options import check as watch_options

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "cli.md"


@pytest.fixture
def tool() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))


def test_the_page_is_what_the_commands_say(tool: dict[str, object]) -> None:
    """Red? Run `python tools/cli_reference.py`, and commit docs/cli.md."""
    render = tool["page"]
    assert callable(render)
    assert render(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_page_has_a_section_for_each_command(name: str) -> None:
    """With its usage, as a block."""
    assert f"\n## sidecar {name}\n\n    sidecar {name} [OPTIONS]" in PAGE.read_text()


def test_a_page_without_its_mark_is_not_overwritten(tool: dict[str, object]) -> None:
    """What people wrote above the mark must survive the tool."""
    render = tool["page"]
    assert callable(render)
    with pytest.raises(ValueError, match="has lost its mark"):
        render("# The command line\n")


def declared(command: str) -> dict[str, Any]:
    """The options that a command gets without any flag, but for a path that it cannot do without."""
    found = main.sidecar.get_command(click.Context(main.sidecar), command)
    assert found is not None
    required = [
        "/x" if isinstance(one, click.Argument) else f"{one.opts[0]}=/x"
        for one in found.params
        if one.required
    ]
    context = found.make_context(command, required)
    return {
        one.name: context.params[one.name]
        for one in found.params
        if isinstance(one, click.Option) and one.name is not None
    }


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {n: one.default for n, one in parameters.items() if one.default is not one.empty}


#: What a group has for another function: the number of processes; the gate's own limit and the keys are those of the volume.
COMMAND_ALONE = {
    serve: {"workers"},
    Gate: {"max_size", "verify_key"},
    writer_app: {"format", "schema", "check", "check_timeout"},
}


@pytest.mark.parametrize(
    ("command", "group", "function"),
    [
        ("write", options.ServerOptions, serve),
        ("write", options.ValidationOptions, Gate),
        ("write", options.ValidationOptions, writer_app),
        ("write", options.StorageOptions, writer_app),
        ("write", options.StorageOptions, Volume),
        ("write", options.StorageOptions, publishing.Volume),
        ("read", options.WatchOptions, reader_app),
        ("read", options.WatchOptions, watch_options),
        ("reload", options.WatchOptions, watch_options),
        ("reload", options.StorageOptions, Volume),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_flag_has_the_name_and_the_default_of_the_argument(
    command: str, group: type[Any], function: Callable[..., Any]
) -> None:
    """One word for one thing, in the command and in the Python API."""
    names = {one.name for one in fields(group)} - COMMAND_ALONE.get(function, set())
    flags = {name: value for name, value in declared(command).items() if name in names}
    taken = {name: value for name, value in arguments(function).items() if name in names}
    assert flags == taken


def test_the_flags_of_mirror_are_the_arguments_of_a_mirror() -> None:
    """Apart from those of its volume, of its probes, and of the time for one run."""
    flags, taken = declared("mirror"), arguments(mirror.run)
    shared = flags.keys() & taken.keys()
    assert {name: flags[name] for name in shared} == {name: taken[name] for name in shared}
    assert taken.keys() - shared == {"volume"}


def test_the_flags_of_reload_are_the_arguments_of_a_reloader() -> None:
    """Apart from those that describe an action."""
    flags, taken = declared("reload"), arguments(reload_options)
    shared = flags.keys() & taken.keys()
    assert {name: flags[name] for name in shared} == {name: taken[name] for name in shared}
    # `storage` holds the arguments of a volume, which are compared above.
    assert taken.keys() - shared == {"backoff", "storage"}


#: Options of `sidecar collect` that a pipeline of a file spells in the plural, since it holds a list.
PLURAL = {"sink": "sinks", "archive": "archives", "label": "labels", "dead_letter": "dead_letters"}
#: Those that say what is to be done now, or that concern the process and not a pipeline.
OF_THE_RUN = {
    *("config", "check_config", "dry_run", "replay", "status", "once"),
    *("port", "host", "ui", "log_level", "log_format"),
}
#: Those that a file says at a sink (`tenant: shop`), or inside a rule (`multiline: {end: …}`).
OF_A_SINK_OR_RULE = {"token_file", "ca_file", "tenant", "multiline_end"}


def test_each_option_of_collect_is_a_word_of_the_file() -> None:
    """Of a pipeline or a stage; and the default is the same."""
    flags = declared("collect")
    assert {one.name for one in fields(Pipeline)} == READERS.keys()
    words = {PLURAL.get(name, name) for name in flags.keys() - OF_THE_RUN - OF_A_SINK_OR_RULE}
    assert words - READERS.keys() - stage_options.MAKERS.keys() == set()
    assert READERS.keys() - words == {"files", "stages", "annotations", "json"} - flags.keys()
    default = Pipeline()
    same = words & flags.keys() & READERS.keys()
    assert {name: flags[name] for name in same} == {name: getattr(default, name) for name in same}
