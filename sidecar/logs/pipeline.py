r"""A pipeline as data, from a configuration file or a command line, and the objects created from it.

    files: ["/var/log/app/*.log"]
    checkpoint: /state/offsets.json
    stages:
      - parse: json
      - drop: /healthz
      - redact: 'password=\S+'
      - add: {site: berlin}
    sinks:
      - stdout
      - url: loki+http://loki:3100
        tenant: shop

Everything is checked before anything is opened: names, patterns, addresses, certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from sidecar._errors import ConfigError
from sidecar.logs import stages, stop_conditions
from sidecar.logs.collector import Collector
from sidecar.logs.input import stack_traces
from sidecar.logs.input.framing import Multiline
from sidecar.logs.input.tail import Tail, tail
from sidecar.logs.pod_metadata import DIRECTORY, PodMetadata
from sidecar.logs.records import Stage
from sidecar.logs.sinks import factory
from sidecar.logs.sinks.base import Route, Sink
from sidecar.logs.sinks.deadletter import DeadLetterFile
from sidecar.logs.stages import conditions, options, time_zones
from sidecar.process import config_types


@dataclass(frozen=True)
class Pipeline:
    """The configuration of one collection: files, stages and sinks."""

    files: Sequence[str] = ()
    exclude: Sequence[str] = ()
    checkpoint: str | None = None
    start: Literal["beginning", "end"] = "beginning"
    ignore_older: float | None = None
    archives: Sequence[str] = ()
    root: str | None = None
    encoding: str = "utf-8"
    max_line: int = 1 << 20
    multiline: Multiline | None = None
    stages: Sequence[Mapping[str, Any] | str] = ()
    """As in the configuration file: `{"parse": "json"}`, `"level"`."""
    sinks: Sequence[Mapping[str, Any] | str] = ()
    json: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    podinfo: str = DIRECTORY
    """The directory with the files of the downward API, if it exists."""
    annotations: Sequence[str] = ()
    dead_letters: str | None = None
    budget: int = 8 << 20
    held_limit: int = 1 << 30
    drain_timeout: float = 20.0
    time_zone: str | None = None
    """The time zone of timestamps without one; None for that of the node."""
    remove_after: float | None = None
    until_file: str | None = None
    until_process: str | None = None

    def with_values(self, **given: Any) -> Pipeline:
        """Return a pipeline with these values; a value of None keeps the present one."""
        return replace(self, **{name: one for name, one in given.items() if one is not None})

    def source(self) -> Tail:
        """Create the source.

        Raises:
            ConfigError: no files, or an invalid value.
        """
        if not self.files:
            raise ConfigError(
                "no files to collect: name some, as in sidecar collect '/var/log/app/*.log'"
            )
        _refuse_directory("checkpoint", self.checkpoint)
        return tail(
            *self.files,
            checkpoint=self.checkpoint,
            exclude=self.exclude,
            start=self.start,
            ignore_older=self.ignore_older,
            root=self.root,
            archives=self.archives,
            multiline=self.multiline or self._default_multiline(),
            encoding=self.encoding,
            max_line=self.max_line,
            held_limit=self.held_limit,
            remove_after=self.remove_after,
        )

    def make_until(self) -> Callable[[], bool] | None:
        """Return the stop condition, None without one. It is met when all given conditions are.

        Raises:
            ConfigError: the processes of other containers are not visible.
        """
        conditions = []
        if self.until_process is not None:  # first, since it must be evaluated each time
            conditions.append(stop_conditions.process_ended(self.until_process))
        if self.until_file is not None:
            conditions.append(stop_conditions.file_exists(self.until_file))
        return (lambda: all(one() for one in conditions)) if conditions else None

    def make_stages(self) -> list[Stage]:
        """Create the stages.

        Raises:
            ConfigError: an unknown stage, or an invalid pattern.
        """
        made: list[Stage] = []
        for number, spec in enumerate(self.stages, 1):
            made += _stages(spec, f"stage {number}", self.time_zone)
        return made

    def make_sinks(self, defaults: Mapping[str, Any] | None = None) -> list[Sink]:
        """Create the sinks without their routes. See `make_routes`."""
        return [route.sink for route in self.make_routes(defaults)]

    def make_routes(self, defaults: Mapping[str, Any] | None = None) -> list[Route]:
        """Create the sinks with their own stages and conditions; standard output if none is given.

        `defaults` are values of options that several kinds of sinks have.

        Raises:
            ConfigError: an unknown sink, condition or option, or certificates that cannot be read.
        """
        return [
            _route(
                spec,
                f"sink {number}",
                json=self.json,
                defaults=defaults or {},
                zone=self.time_zone,
            )
            for number, spec in enumerate(self.sinks or ["stdout"], 1)
        ]

    def make_collector(self, defaults: Mapping[str, Any] | None = None) -> Collector:
        """Create the collection of this pipeline. Nothing is opened yet.

        Raises:
            ConfigError: an invalid value.
        """
        return Collector(
            self.source(),
            self.make_stages(),
            self.make_routes(defaults),
            labels=self.make_labels(),
            dead_letters=self.make_dead_letters(),
            budget=self.budget,
            until=self.make_until(),
        )

    def make_labels(self) -> Callable[[], Mapping[str, str]]:
        """Return a function that returns the present labels of the Pod, overridden by those of the configuration."""
        pod = PodMetadata(self.podinfo, annotations=self.annotations)
        if not self.labels:
            return lambda: pod.labels
        cached: list[tuple[Mapping[str, str], Mapping[str, str]]] = []

        def labels() -> Mapping[str, str]:
            now = pod.labels
            if not cached or cached[0][0] is not now:
                cached[:] = [(now, {**now, **self.labels})]
            return cached[0][1]

        return labels

    def make_dead_letters(self) -> DeadLetterFile | None:
        """Create the dead-letter file; None for the one next to the checkpoint."""
        _refuse_directory("dead_letters", self.dead_letters)
        return None if self.dead_letters is None else DeadLetterFile(self.dead_letters)

    def _default_multiline(self) -> Multiline | None:
        """Return the multiline rule that joins partial lines of a container runtime, if a stage parses such lines."""
        wanted = {
            one.get("parse")
            for one in self.stages
            if isinstance(one, Mapping) and isinstance(one.get("parse"), str)
        }
        return next((_partial_lines(one) for one in ("cri", "docker") if one in wanted), None)


def _refuse_directory(name: str, path: str | None) -> None:
    if path is not None and (not path or path.endswith("/") or os.path.isdir(path)):
        raise ConfigError(f"{name}: {path!r} is a directory: name a file in it")


def parse_sink_spec(text: str) -> Mapping[str, Any]:
    r"""Convert the value of `--parse` into a stage.

    >>> parse_sink_spec("json"), parse_sink_spec(r"regex:(?P<level>\w+)")
    ({'parse': 'json'}, {'parse': {'regex': '(?P<level>\\w+)'}})
    """
    kind, colon, rest = text.partition(":")
    return {"parse": {kind: rest}} if colon else {"parse": kind}


def _route(
    spec: Any, where: str, *, json: bool, defaults: Mapping[str, Any], zone: str | None
) -> Route:
    if isinstance(spec, str):
        return Route(factory.make_sink(spec, json=json, defaults=defaults))
    if not isinstance(spec, Mapping) or not isinstance(spec.get("url"), str):
        raise ConfigError(f"{where}: expected an address, or a mapping with `url:`, not {spec!r}")
    options = {name: one for name, one in spec.items() if name not in ("url", "when", "stages")}
    own: list[Stage] = []
    if "when" in spec:
        try:
            own.append(stages.keep(conditions.make_condition(spec["when"])))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: when: {error}") from error
    for number, stage in enumerate(_check_list(spec.get("stages", [])), 1):
        own += _stages(stage, f"{where}, stage {number}", zone)
    return Route(factory.make_sink(spec["url"], options, json=json, defaults=defaults), own)


def _stages(spec: Any, where: str, zone: str | None) -> list[Stage]:
    name, given = _split_spec(spec, where)
    if name not in _MAKERS:
        near = config_types.nearest(name, _MAKERS)
        raise ConfigError(f"{where}: there is no stage {name!r} ({near})")
    try:
        return _MAKERS[name](given, zone)
    except (TypeError, ValueError) as error:  # a ConfigError, too
        raise ConfigError(f"{where} ({name}): {error}") from error


def _split_spec(spec: Any, where: str) -> tuple[str, Any]:
    if isinstance(spec, str):
        return spec, None
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        return str(name), given
    raise ConfigError(
        f"{where}: expected one name with its value, as in `parse: json`, not {spec!r}"
    )


_MAKERS = options.MAKERS


def multiline(given: Any) -> Multiline:
    """Parse a multiline rule: a pattern of the first line, a preset such as `cri`, or a mapping.

    Raises:
        ValueError: it is none of these, or a pattern is invalid.
    """
    match given:
        case "cri" | "docker":
            return _partial_lines(given)
        case "stack_traces":
            return stack_traces.stack_traces()
        case str() if given in stack_traces.LANGUAGES:
            return stack_traces.stack_traces(given)
        case str():
            return (
                stack_traces.stack_traces(start=given)
                if stack_traces.takes_any_line(given)
                else Multiline(given)
            )
        case list():
            return stack_traces.stack_traces(*config_types.texts(given))
        case dict():
            return _read_multiline(given)
    raise TypeError(f"{given!r} is no rule: give the pattern of a first line, or a language")


def _read_multiline(given: dict[str, Any]) -> Multiline:
    readers: config_types.Readers = {
        "preset": config_types.texts,
        "start": config_types.text,
        "end": config_types.text,
        "continuation": config_types.text,
        "timeout": config_types.seconds,
        "max_lines": config_types.count,
    }
    try:
        read = config_types.read(given, readers, "the rule")
        if "preset" in read:
            preset = stack_traces.stack_traces(*read.pop("preset"))
            read.setdefault("continuation", preset.continuation)
        return Multiline(**read)
    except ConfigError:
        raise
    except Exception as error:  # `re.error` is no ValueError before Python 3.13
        raise ValueError(str(error)) from error


def _partial_lines(runtime: str) -> Multiline:
    from sidecar.logs.input.partial_lines import CRI_LINES, DOCKER_LINES

    return CRI_LINES if runtime == "cri" else DOCKER_LINES


def _start(given: Any) -> Literal["beginning", "end"]:
    if given not in ("beginning", "end"):
        raise ValueError(f"{given!r} is neither beginning nor end")
    return cast('Literal["beginning", "end"]', given)


def _zone(given: Any) -> str:
    time_zones.named(name := config_types.text(given))
    return name


def _check_list(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise TypeError(f"{given!r} is no list")
    return given


READERS: config_types.Readers = {
    "files": config_types.patterns,
    "exclude": config_types.patterns,
    "checkpoint": config_types.text,
    "start": _start,
    "ignore_older": config_types.seconds,
    "archives": config_types.patterns,
    "root": config_types.text,
    "encoding": config_types.text,
    "max_line": config_types.size,
    "multiline": multiline,
    "stages": _check_list,
    "sinks": _check_list,
    "json": config_types.truth,
    "labels": config_types.mapping,
    "podinfo": config_types.text,
    "annotations": config_types.patterns,
    "dead_letters": config_types.text,
    "budget": config_types.size,
    "held_limit": config_types.size,
    "drain_timeout": config_types.seconds,
    "remove_after": config_types.seconds,
    "until_file": config_types.text,
    "until_process": config_types.text,
    "time_zone": _zone,
}
