"""Elasticsearch's dynamic mapping, as far as it refuses documents: the first value of a field says its type.

Dots in names stand for objects (`subobjects: true`, its default).
https://www.elastic.co/docs/manage-data/data-store/mapping/dynamic-field-mapping
"""

from __future__ import annotations

from typing import Any


class Types:
    """The types of one index. A document that is refused leaves them as they were."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def refusal(self, document: dict[str, Any]) -> str | None:
        """Return why the document is refused; None if it is taken, and its fields are known from now on."""
        tried = dict(self.known)
        why = _of_object("", document, tried)
        if why is None:
            self.known = tried
        return why


def _of_object(prefix: str, found: dict[str, Any], types: dict[str, str]) -> str | None:
    for name, value in found.items():
        if not name.strip() or name[0] == "." or name[-1] == "." or ".." in name:
            return f"field name cannot be empty, or begin or end with a dot: [{name}]"
        path = prefix
        *outer, leaf = name.split(".")
        for part in outer:
            path += part
            if types.setdefault(path, "object") != "object":
                return f"[{path}] must be of type object but found [{types[path]}]"
            path += "."
        if (why := _of_value(path + leaf, value, types)) is not None:
            return why
    return None


def _of_value(path: str, value: Any, types: dict[str, str]) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return next((why for one in value if (why := _of_value(path, one, types))), None)
    found = _type_of(value)
    known = types.setdefault(path, found)
    if "object" in (found, known) and found != known:
        return f"[{path}] is of type [{known}], not [{found}]"
    if found == "object":
        return _of_object(f"{path}.", value, types)
    if known == "number" and found != "number":
        try:
            float(value)
        except ValueError:
            return f"failed to parse field [{path}] of type [long]: {value!r}"
    return f"[{path}] is no boolean: {value!r}" if known == "boolean" != found else None


def _type_of(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"
