"""The gate before every publish: a content that is refused here is never seen by anybody.

Size, UTF-8, the syntax of JSON, YAML or TOML, a JSON Schema, and a command of the user's on the staged file,
in this order, from the cheap to the dear: the first one that refuses ends it.

The gate judges one file and changes nothing; it knows neither the volume nor its history.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import orjson

from sidecar import _errors
from sidecar.runtime import threads

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Format = Literal["text", "json", "yaml", "toml"]

FORMATS: Final[tuple[str, ...]] = get_args(Format)
MAX_REASONS: Final = 20
_SUFFIXES: Mapping[str, Format] = {
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
}
_REASON_LENGTH = 300
_OUTPUT_BYTES = 16 << 10
_PIECE = 1 << 18
#: A document whose aliases unfold to more values than this is an attack, not a configuration
#: (https://en.wikipedia.org/wiki/Billion_laughs_attack).
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 200
_EXTRA = "pip install 'podsidecar[schema]'"


class Gate:
    """What a content must fulfil to be published. Without arguments: everything passes.

    Args:
        max_size: bytes; None leaves it to the volume's own limit.
        format: the syntax that the content must have; all of them mean UTF-8.
            YAML may hold several documents.
        schema: a file with a JSON Schema (JSON or YAML), read once, here.
            Without `format` the ending of the published name says the syntax, and JSON is assumed else.
            References to other files or addresses are not followed.
        check: a command; it gets the path of the staged file as its last argument,
            and name and path in `CONTENT_NAME` and `CONTENT_PATH`. Exit status 0 means good;
            else the last lines of its output are the reason. Its standard input is empty.
        check_timeout: seconds until the command and whatever it has started are killed, which refuses the content.

    Raises:
        ConfigError: the schema cannot be read or is none, the command is not found,
            or the extra `schema` is needed and not installed.

    >>> Gate(format="json", max_size=1 << 20)
    <Gate max_size=1048576 format=json>
    """

    def __init__(
        self,
        *,
        max_size: int | None = None,
        format: Format | None = None,  # noqa: A002 (the word of the flag)
        schema: str | os.PathLike[str] | None = None,
        check: Sequence[str] | None = None,
        check_timeout: float = 10.0,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise _errors.ConfigError(
                f"unknown format {format!r}: it is one of {', '.join(FORMATS)}"
            )
        if check_timeout <= 0:
            raise _errors.ConfigError(
                f"check_timeout must be more than 0 seconds, not {check_timeout!r}"
            )
        if format == "yaml":
            _yaml()
        self._max_size = max_size
        self._format = format
        self._schema = None if schema is None else _validator(Path(schema))
        self._check = None if check is None else _command(check)
        self._check_timeout = check_timeout

    def __repr__(self) -> str:
        parts = {
            "max_size": self._max_size,
            "format": self._format,
            "schema": self._schema and "yes",
            "check": self._check and self._check[0],
        }
        said = "".join(f" {name}={value}" for name, value in parts.items() if value is not None)
        return f"<Gate{said}>"

    @property
    def needs_file(self) -> bool:
        """Whether a content has to lie in a file to be examined: only a command wants that."""
        return self._check is not None

    @property
    def patience(self) -> float:
        """The seconds that an examination may rightly take beyond the work itself."""
        return self._check_timeout if self._check is not None else 0.0

    def passes(self, size: int) -> bool:
        """Whether a content of that size passes unseen: nothing is asked of it but its size."""
        seen = self._format is not None or self._schema is not None or self._check is not None
        return not seen and (self._max_size is None or size <= self._max_size)

    async def examine(
        self,
        name: str,
        path: Path | None,
        size: int,
        content: bytes | None,
        *,
        where: str | None = None,
    ) -> None:
        """Return if the content may be published as `name`, which messages call `where`.

        `path` is the staged file, `content` its bytes where the caller has them at hand;
        without `needs_file` the bytes alone will do.

        Raises:
            ContentTooLarge: it is larger than `max_size`.
            ContentRefused: something else is wrong with it; `reasons` says what.
            PublishError: the gate itself could not do its work.
        """
        where = name if where is None else where
        if self._max_size is not None and size > self._max_size:
            raise _errors.ContentTooLarge(
                f"cannot publish {where}: it has {size} bytes, and the limit is {self._max_size}"
                " (make it smaller, or raise max_size)"
            )
        syntax = self._format or (_SUFFIXES.get(PurePosixPath(name).suffix, "json"))
        if self._format is not None or self._schema is not None:
            reasons = await threads.in_thread(self._read, path, content, syntax)
            _refuse_if(where, reasons)
        if self._check is not None and path is not None:
            reasons = await self._run_check(self._check, name, path, where)
            _refuse_if(where, reasons)

    def _read(self, path: Path | None, content: bytes | None, syntax: Format) -> list[str]:
        """Return what is wrong with syntax and structure.

        Text is read piece by piece. Whatever has to be parsed must fit into memory, several times.
        """
        if content is None and path is not None and syntax == "text" and self._schema is None:
            return list(_not_text(path))
        raw = content if content is not None else Path(path or os.devnull).read_bytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return [
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}, line {line}"
            ]
        try:
            documents = _PARSERS[syntax](text)
            if self._schema is None:
                return []
            return list(_violations(self._schema, [_as_json(one) for one in documents]))
        except RecursionError:
            return [f"not fit as {syntax.upper()}: it is nested too deeply"]
        except ValueError as error:
            return [f"not valid {syntax.upper()}: {error}"]

    async def _run_check(
        self, command: Sequence[str], name: str, path: Path, where: str
    ) -> list[str]:
        environment = {**os.environ, "CONTENT_NAME": name, "CONTENT_PATH": str(path)}
        with _Output() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    path,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output.end,
                    stderr=output.end,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise _errors.PublishError(
                    f"cannot publish {where}: the check command {command[0]} cannot be started:"
                    f" {error.strerror} (is it still there, and executable?)"
                ) from error
            try:
                async with asyncio.timeout(self._check_timeout):
                    status = await process.wait()
            except TimeoutError:
                limit = f"{self._check_timeout:g} s"
                return [f"the check command {command[0]} did not end within {limit}"]
            finally:
                await _end(process)
            return [] if status == 0 else [_verdict(command[0], status, output.read())]


def _refuse_if(where: str, reasons: Sequence[str]) -> None:
    if reasons:
        first, more = reasons[0], len(reasons) - 1
        others = f" (and {more} more)" if more else ""
        raise _errors.ContentRefused(f"cannot publish {where}: {first}{others}", reasons)


def _command(check: Sequence[str]) -> Sequence[str]:
    if not check:
        raise _errors.ConfigError("the check command is empty")
    if shutil.which(check[0]) is None:
        raise _errors.ConfigError(
            f"the check command {check[0]} is not found or not executable"
            " (give its full path, or put it on the PATH of the writer)"
        )
    return tuple(check)


class _Output:
    """The end of what a command prints, taken from it as it comes, so that it is never blocked.

    A pipe of our own: with that of asyncio, a daemon that the command leaves behind
    keeps `wait()` from returning on some versions of Python.
    """

    def __enter__(self) -> Self:
        self._kept = b""
        self._ours, self.end = os.pipe()
        os.set_blocking(self._ours, False)
        asyncio.get_running_loop().add_reader(self._ours, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self.end)

    def read(self) -> bytes:
        """Return the end of all output so far."""
        while self._take():
            pass
        return self._kept

    def _take(self) -> bool:
        try:
            chunk = os.read(self._ours, 1 << 16)
        except BlockingIOError:
            return False
        self._kept = (self._kept + chunk)[-_OUTPUT_BYTES:]
        return bool(chunk)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the command with all that it has started, and wait for it: the staged file goes away after this."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _verdict(command: str, status: int, output: bytes) -> str:
    how = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
    lines = output.decode(errors="replace").strip().splitlines()[-5:]
    said = "; ".join(line.strip() for line in lines)
    return (
        f"the check command {command} {how}: {said}"
        if said
        else f"the check command {command} {how}"
    )


def _not_text(path: Path) -> Iterator[str]:
    """Yield what keeps a file from being UTF-8, if anything does."""
    decoder, offset, lines = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with path.open("rb") as file:
        while True:
            piece = file.read(_PIECE)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                wrong = error.object[error.start]
                lines += error.object.count(b"\n", kept, error.start)
                where = f"offset {offset - kept + error.start}, line {lines}"
                yield f"not UTF-8: byte 0x{wrong:02x} at {where}"
                return
            if not piece:
                return
            offset += len(piece)
            lines += piece.count(b"\n")


def _text(_: str) -> list[Any]:
    return []


def _json(text: str) -> list[Any]:
    try:
        return [orjson.loads(text)]
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error


def _toml(text: str) -> list[Any]:
    import tomllib

    return [tomllib.loads(text)]


def _load_yaml(text: str) -> list[Any]:
    yaml = _yaml()
    try:
        # Where PyYAML was built without libyaml there is only the slow loader.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_depth(type(event).__name__ for event in yaml.parse(text, loader))
        documents = list(yaml.load_all(text, loader)) or [None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    _check_unfolded(documents)
    return documents


_PARSERS: Mapping[Format, Callable[[str], list[Any]]] = {
    "text": _text,
    "json": _json,
    "yaml": _load_yaml,
    "toml": _toml,
}


def _check_depth(events: Iterable[str]) -> None:
    """Refuse deep nesting before the loader sees it: libyaml's recurses in C and would crash the process."""
    depth = 0
    for event in events:
        depth += event.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= event.endswith(("SequenceEndEvent", "MappingEndEvent"))
        if depth > _MAX_DEPTH:
            raise RecursionError


def _as_json(document: Any) -> Any:
    """Return a document as JSON would hold it: a schema knows no dates, and no keys that are numbers."""
    try:
        return orjson.loads(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"a schema cannot judge it: {error}") from error


def _check_unfolded(document: Any) -> None:
    """Refuse a document that is small as text and endless for whoever walks through it."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(value: Any) -> int:
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) in open_:
            raise ValueError("an alias refers to the value that it is a part of")
        if id(value) not in sizes:
            open_.add(id(value))
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(part) for part in parts)
            open_.discard(id(value))
        return sizes[id(value)]

    if size(document) > _MAX_VALUES:
        raise ValueError(f"its aliases unfold to more than {_MAX_VALUES} values")


def _violations(validator: Validator, documents: Sequence[Any]) -> Iterator[str]:
    """Yield one sentence for each violation, with the place as a JSON Pointer (RFC 6901)."""
    import referencing.exceptions

    for number, document in enumerate(documents, start=1):
        which = f"document {number}, " if len(documents) > 1 else ""
        try:
            found = sorted(
                _first(validator.iter_errors(document), MAX_REASONS),
                key=lambda one: _pointer(one.absolute_path),
            )
        except referencing.exceptions.Unresolvable as error:
            raise _errors.PublishError(
                f"the schema refers to {error.ref}, and references to other places are not followed"
                " (put it under $defs)"
            ) from error
        for one in found:
            message = one.message
            if len(message) > _REASON_LENGTH:
                message = f"{message[:_REASON_LENGTH]}…"
            yield f"{which}at {_pointer(one.absolute_path) or 'the top'}: {message}"


def _first(found: Iterator[Any], most: int) -> Iterator[Any]:
    for one, _ in zip(found, range(most), strict=False):
        yield one


def _pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _validator(path: Path) -> Validator:
    """Read a schema and check that it is one."""
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        raise _errors.ConfigError(f"a schema needs the package jsonschema: {_EXTRA}") from error
    try:
        text = path.read_text(encoding="utf-8")
        (document,) = (_json if path.suffix == ".json" else _load_yaml)(text)
        if not isinstance(document, dict):
            document = {
                "allOf": [document]
            }  # true, false, or something for the check below to refuse
        kind = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
        kind.check_schema(document)
    except OSError as error:
        raise _errors.ConfigError(f"cannot read the schema {path}: {error.strerror}") from error
    except jsonschema.SchemaError as error:
        raise _errors.ConfigError(f"{path} is no JSON Schema: {error.message}") from error
    except ValueError as error:
        raise _errors.ConfigError(f"cannot read the schema {path}: {error}") from error
    # An empty registry: the default one would fetch references over the network.
    return kind(document, registry=referencing.Registry())


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise _errors.ConfigError(f"YAML needs the package PyYAML: {_EXTRA}") from error
    return yaml
