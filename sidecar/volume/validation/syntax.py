"""The syntax of a content: text, JSON, YAML or TOML."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

import orjson

from sidecar.volume.validation import syntax_yaml

Format = Literal["text", "json", "yaml", "toml"]

FORMATS: Final[tuple[str, ...]] = get_args(Format)
EXTRA: Final = syntax_yaml.EXTRA
_SUFFIXES: Mapping[str, Format] = {
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
}
_CHUNK_BYTES = 1 << 18


def format_for(name: str) -> Format:
    """Return the syntax for the suffix of a name, by default JSON.

    >>> format_for("routes.yml"), format_for("config")
    ('yaml', 'json')
    """
    return _SUFFIXES.get(PurePosixPath(name).suffix, "json")


def check_parser(syntax: Format) -> None:
    """Raise `ConfigError` if contents of this syntax cannot be parsed here, as an extra is not installed."""
    if syntax == "yaml":
        syntax_yaml.yaml()


def check(text: str, syntax: Format) -> None:
    """Check that the text has that syntax; no objects are constructed from YAML.

    Raises:
        ValueError: the syntax is invalid; the message says where.
        RecursionError: it is nested too deeply.
    """
    _CHECKS[syntax](text)


def parse(text: str, syntax: Format) -> list[Any]:
    """Return the documents of a text as JSON holds them: YAML may have several, plain text none; dates are texts.

    Raises:
        ValueError: as `check`; also if there is something in it that JSON cannot hold.
        RecursionError: it is nested too deeply.
    """
    return _PARSERS[syntax](text)


def utf8_error(path: Path) -> Iterator[str]:
    """Yield a message if a file is not valid UTF-8."""
    decoder, offset, lines = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with path.open("rb") as file:
        while True:
            piece = file.read(_CHUNK_BYTES)
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


def _check_toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def _parse_toml(text: str) -> list[Any]:
    try:
        return [orjson.loads(orjson.dumps(_check_toml(text)))]
    except orjson.JSONEncodeError as error:
        raise ValueError(f"a schema cannot validate it: {error}") from error


_CHECKS: Mapping[Format, Callable[[str], object]] = {
    "text": _parse_text,
    "json": _parse_json,
    "yaml": syntax_yaml.check,
    "toml": _check_toml,
}
_PARSERS: Mapping[Format, Callable[[str], list[Any]]] = {
    "text": _parse_text,
    "json": _parse_json,
    "yaml": syntax_yaml.load,
    "toml": _parse_toml,
}
