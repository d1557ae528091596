"""Validation by JSON Schema."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from sidecar import _errors
from sidecar.process import arguments
from sidecar.volume.validation import syntax

if TYPE_CHECKING:
    from jsonschema.protocols import Validator as Validator  # noqa: PLC0414 (for `validator`)

Source: TypeAlias = dict[str, Any]
"""A schema as JSON holds it."""

MAX_REASONS: Final = 20
_MAX_REASON_CHARS = 300


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> Source:
    """Return a schema from a JSON or YAML file, or from a mapping, and check that it is valid.

    Raises:
        ConfigError: the schema cannot be read or is invalid, or the extra `schema` is not installed.
    """
    if isinstance(source, Mapping):
        where = "the schema"
        try:
            document = orjson.loads(orjson.dumps(dict(source)))
        except TypeError as error:
            raise _errors.ConfigError(f"the schema is no JSON: {error}") from error
    else:
        path = Path(arguments.check_path("schema", source))
        where = os.fspath(path)
        try:
            text = path.read_text(encoding="utf-8")
            (document,) = syntax.parse(text, "json" if path.suffix == ".json" else "yaml")
        except OSError as error:
            raise _errors.ConfigError(f"cannot read the schema {path}: {error.strerror}") from error
        except ValueError as error:
            raise _errors.ConfigError(f"cannot read the schema {path}: {error}") from error
        except RecursionError:
            raise _errors.ConfigError(
                f"cannot read the schema {path}: it is nested too deeply"
            ) from None
    if not isinstance(document, dict):
        # True, false, or something for the check to refuse.
        document = {"allOf": [document]}
    _check(document, where)
    return document


def make(document: Source) -> Validator:
    """Return what judges by a schema that has been checked."""
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
    # An empty registry: the default one would fetch references over the network.
    validator: Validator = kind(document, registry=referencing.Registry())
    return validator


def _check(document: Source, where: str) -> None:
    try:
        import jsonschema
    except ImportError as error:
        raise _errors.ConfigError(
            f"a schema needs the package jsonschema: {syntax.EXTRA}"
        ) from error
    kind = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(document)
    except jsonschema.SchemaError as error:
        raise _errors.ConfigError(f"{where} is no JSON Schema: {error.message}") from error
    except RecursionError:
        raise _errors.ConfigError(f"{where} is nested too deeply for a JSON Schema") from None


def violations(validator: Validator, documents: Sequence[Any]) -> Iterator[str]:
    """Yield one sentence for each violation, with its location as a JSON Pointer (RFC 6901).

    Raises:
        PublishError: the schema refers to another place.
    """
    import referencing.exceptions

    for number, document in enumerate(documents, start=1):
        which = f"document {number}, " if len(documents) > 1 else ""
        try:
            # Of each one only the words are kept: an error holds the value, and its text the whole of it.
            found = sorted(
                (_pointer(one.absolute_path), _shortened(one.message))
                for one in _first(validator.iter_errors(document), MAX_REASONS)
            )
        except referencing.exceptions.Unresolvable as error:
            raise _errors.PublishError(
                f"the schema refers to {error.ref}, and references to other places are not followed"
                " (put it under $defs)"
            ) from error
        for pointer, message in found:
            yield f"{which}at {pointer or 'the top'}: {message}"


def _first(found: Iterator[Any], most: int) -> Iterator[Any]:
    for one, _ in zip(found, range(most), strict=False):
        yield one


def _shortened(message: str) -> str:
    return message if len(message) <= _MAX_REASON_CHARS else f"{message[:_MAX_REASON_CHARS]}…"


def _pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
