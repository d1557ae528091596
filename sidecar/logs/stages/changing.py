"""What lines say after us: secrets taken out, fields put in."""

from __future__ import annotations

from typing import Any

from sidecar.logs import documents, patterns
from sidecar.logs.records import Record, Stage

_DEEP = 64
"""Levels of nested fields that are looked through; deeper ones are replaced as a whole."""
_MARK = "\ue000"
"""Stands where something has been taken out while we look for what is left: no pattern asks for it."""


def redact(pattern: str, replacement: str = "***") -> Stage:
    r"""Make a stage that replaces whatever a pattern matches, in the text and in every field, however deep.

    In `replacement`, `\1` and `\g<name>` stand for groups of the pattern.
    A match that lies across fields of a JSON line (`"password":"[^"]*"`) cannot be taken out of the fields:
    such a record goes on as text without fields.

    Raises:
        ConfigError: no valid pattern (see `sidecar.logs.patterns`), or a replacement that does not fit it.

    >>> redact(r"token=\S+")(Record(b"login token=s3cret ok")).text
    'login *** ok'
    """
    cleaner = _Cleaner(pattern, replacement)

    def stage(record: Record) -> Record:
        text, count = cleaner.clean_text(record.text)
        if count:
            record.text = text
        if not record.fields:
            return record
        fields = record.fields
        record.fields, in_fields = cleaner.clean_fields(fields)
        if count and record.structured and (count > in_fields or cleaner.still_there(fields)):
            return _as_text(record)
        return record

    return stage


def add_fields(**values: Any) -> Stage:
    """Make a stage that puts the same fields into each record, over those of the same name.

    >>> add_fields(site="berlin")(Record(b"hello")).fields
    {'site': 'berlin'}
    """

    def stage(record: Record) -> Record:
        record.fields = {**record.fields, **values}
        return record

    return stage


class _Cleaner:
    """Replaces matches in nested values, and counts them."""

    def __init__(self, pattern: str, replacement: str) -> None:
        self._pattern = patterns.compiled(pattern)
        self._replacement = replacement
        self._replace = self._pattern.replacing(replacement)
        self._mark = self._pattern.replacing(_MARK)
        self._count = 0

    def clean_text(self, text: str) -> tuple[str, int]:
        return self._replace(text)

    def clean_fields(self, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
        self._count = 0
        return self._clean(fields, self._replace, 0), self._count

    def still_there(self, fields: dict[str, Any]) -> bool:
        """Tell whether the pattern matches anything that is not inside of one value."""
        marked = documents.dumps(self._clean(fields, self._mark, 0))
        return self._pattern.found(marked.decode())

    def _clean(self, value: Any, replace: patterns.Replace, depth: int) -> Any:
        if isinstance(value, str):
            return self._in_text(value, replace)
        if isinstance(value, bool) or value is None:
            return value
        if depth >= _DEEP:
            self._count += 1
            return self._replacement
        if isinstance(value, dict):
            return {
                self._clean(name, replace, depth + 1): self._clean(one, replace, depth + 1)
                for name, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._clean(one, replace, depth + 1) for one in value]
        # The number of a card may stand there as a number.
        text = str(value)
        cleaned = self._in_text(text, replace)
        return value if cleaned == text else cleaned

    def _in_text(self, text: str, replace: patterns.Replace) -> str:
        cleaned, count = replace(text)
        self._count += count
        return cleaned


def _as_text(record: Record) -> Record:
    plain = Record(
        record.raw,
        file=record.file,
        offset=record.offset,
        end=record.end,
        file_id=record.file_id,
        time=record.time,
        level=record.level,
        labels=record.labels,
    )
    plain.text = record.text
    return plain
