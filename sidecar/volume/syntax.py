"""The syntax of a content: text, JSON, YAML or TOML.

What a parser cannot bear, deep nesting and aliases that unfold without end, is refused before it gets there.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

import orjson

from sidecar import _errors

Format = Literal["text", "json", "yaml", "toml"]

FORMATS: Final[tuple[str, ...]] = get_args(Format)
#: What to install for YAML, and for a schema.
EXTRA: Final = "pip install 'podsidecar[schema]'"
_SUFFIXES: Mapping[str, Format] = {
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
}
_PIECE = 1 << 18
#: A document whose aliases unfold to more values than this is an attack, not a configuration
#: (https://en.wikipedia.org/wiki/Billion_laughs_attack).
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 200


def said_by(name: str) -> Format:
    """Return the syntax that the ending of a name says, JSON where it says none.

    >>> said_by("routes.yml"), said_by("config")
    ('yaml', 'json')
    """
    return _SUFFIXES.get(PurePosixPath(name).suffix, "json")


def check_parser(syntax: Format) -> None:
    """Raise `ConfigError` if contents of this syntax cannot be parsed here, as an extra is not installed."""
    if syntax == "yaml":
        _yaml()


def parse(text: str, syntax: Format) -> list[Any]:
    """Return the documents of a text: YAML may hold several, plain text none.

    Raises:
        ValueError: it is not of that syntax; the message says where.
        RecursionError: it is nested too deeply.
    """
    return _PARSERS[syntax](text)


def not_text(path: Path) -> Iterator[str]:
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


def _parse_text(_: str) -> list[Any]:
    return []


def _parse_json(text: str) -> list[Any]:
    try:
        return [orjson.loads(text)]
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error


def _parse_toml(text: str) -> list[Any]:
    import tomllib

    return [tomllib.loads(text)]


def _parse_yaml(text: str) -> list[Any]:
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
    "text": _parse_text,
    "json": _parse_json,
    "yaml": _parse_yaml,
    "toml": _parse_toml,
}


def _check_depth(events: Iterable[str]) -> None:
    """Refuse deep nesting before the loader sees it: libyaml's recurses in C and would crash the process."""
    depth = 0
    for event in events:
        depth += event.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= event.endswith(("SequenceEndEvent", "MappingEndEvent"))
        if depth > _MAX_DEPTH:
            raise RecursionError


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


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise _errors.ConfigError(f"YAML needs the package PyYAML: {EXTRA}") from error
    return yaml
