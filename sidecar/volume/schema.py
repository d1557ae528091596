"""A JSON Schema, and what a content has against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from sidecar import _errors
from sidecar.volume import syntax

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_REASONS: Final = 20
_REASON_LENGTH = 300


def read(path: Path) -> Validator:
    """Read a schema from a file of JSON or YAML, and check that it is one.

    Raises:
        ConfigError: it cannot be read, it is none, or the extra `schema` is not installed.
    """
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        raise _errors.ConfigError(
            f"a schema needs the package jsonschema: {syntax.EXTRA}"
        ) from error
    try:
        text = path.read_text(encoding="utf-8")
        (document,) = syntax.parse(text, "json" if path.suffix == ".json" else "yaml")
        if not isinstance(document, dict):
            # True, false, or something for the check below to refuse.
            document = {"allOf": [document]}
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


def violations(validator: Validator, documents: Sequence[Any]) -> Iterator[str]:
    """Yield one sentence for each violation, with the place as a JSON Pointer (RFC 6901).

    Raises:
        ValueError: there is something in a document that JSON cannot hold.
        PublishError: the schema refers to another place.
    """
    import referencing.exceptions

    for number, document in enumerate(map(_as_json, documents), start=1):
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


def _as_json(document: Any) -> Any:
    """Return a document as JSON would hold it: a schema knows no dates, and no keys that are numbers."""
    try:
        return orjson.loads(orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"a schema cannot judge it: {error}") from error


def _first(found: Iterator[Any], most: int) -> Iterator[Any]:
    for one, _ in zip(found, range(most), strict=False):
        yield one


def _pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
