"""Change lines: redact secrets; add, rename and remove fields."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from sidecar.logs import json_encoding, regex
from sidecar.logs.records import Record, Stage
from sidecar.logs.stages import escapes

_MAX_DEPTH = 64
"""Levels of nested fields that are searched; deeper values are replaced as a whole."""
_MAX_ENCODING_LAYERS = 4
"""How often encoded text is searched again after a match."""
_OVERLAP_CHARS = 4096
"""Characters on each side of the border between two parts of an overlong line."""
_MAX_REMEMBERED_ENDS = 64
_MARKER = "\ue000"
"""A placeholder for redacted text during the search: no pattern matches it."""


def redact(pattern: str, replacement: str = "***") -> Stage:
    r"""Create a stage that replaces all matches of a pattern, in the text and in all fields, at any depth.

    In `replacement`, `\1` and `\g<name>` stand for groups of the pattern.
    What escapes of JSON or of addresses (`\u0077`, `%3D`) hide is found as well, and so is what
    lies across two pieces of a line that was longer than `max_line`: the later piece loses its part.
    A run of base64 that says what the pattern matches is replaced as a whole, by what the match becomes:
    of 12 characters of ASCII and more, not across pieces or line ends, and not base64 within base64.
    A match that lies across fields of a JSON line (`"password":"[^"]*"`) cannot be taken out of the fields:
    such a record goes on as text without fields.

    Raises:
        ConfigError: no valid pattern (see `sidecar.logs.regex`), or a replacement that does not fit it.

    >>> redact(r"token=\S+")(Record(b"login token=s3cret ok")).text
    'login *** ok'
    >>> redact(r"token=\S+")(Record(rb"login tok\u0065n%3Ds3cret ok")).text
    'login *** ok'
    >>> redact(r"token=\S+")(Record(b"GET /?q=dG9rZW49czNjcmV0IQ== 200")).text
    'GET /?q=*** 200'
    """
    cleaner = _Cleaner(pattern, replacement)
    pieces = _Pieces(cleaner)

    def stage(record: Record) -> Record:
        if record.end == record.offset + len(record.raw) or pieces.continues(record):
            pieces.clean(record)
        # One pass over the line as it came, and one over the fields: nearly always that is all.
        if not cleaner.may_be_in(record):
            return record
        text, count = cleaner.clean_text(record.text)
        if count:
            record.text = text
        if not record.fields:
            return record
        fields = record.fields
        record.fields, in_fields = cleaner.clean_fields(fields)
        if count and record.structured and (count > in_fields or cleaner.still_there(fields)):
            return _drop_fields(record)
        return record

    return stage


def add_fields(**values: Any) -> Stage:
    """Create a stage that sets fixed fields in each record, replacing those of the same name.

    >>> add_fields(site="berlin")(Record(b"hello")).fields
    {'site': 'berlin'}
    """

    def stage(record: Record) -> Record:
        record.fields = {**record.fields, **values}
        return record

    return stage


def rename_fields(**names: str) -> Stage:
    """Create a stage that renames fields, old to new; an existing field of the new name is replaced.

    >>> rename_fields(msg="message")(Record(b"", fields={"msg": "x"})).fields
    {'message': 'x'}
    """

    def stage(record: Record) -> Record:
        if not names.keys().isdisjoint(record.fields):
            moved = {new: record.fields[old] for old, new in names.items() if old in record.fields}
            kept = {name: one for name, one in record.fields.items() if name not in names}
            record.fields = {**kept, **moved}
        return record

    return stage


def remove_fields(*names: str) -> Stage:
    """Create a stage that removes fields, nested ones as well (`http.headers`).

    >>> remove_fields("user.mail", "n")(Record(b"", fields={"user": {"mail": "x"}, "n": 1})).fields
    {'user': {}}
    """

    def stage(record: Record) -> Record:
        for name in names:
            record.fields = _without(record.fields, name)
        return record

    return stage


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if name in fields:
        return {one: value for one, value in fields.items() if one != name}
    outer, _, rest = name.partition(".")
    inner = fields.get(outer)
    return {**fields, outer: _without(inner, rest)} if rest and isinstance(inner, dict) else fields


class _Cleaner:
    """Replaces matches in nested values, and counts them."""

    def __init__(self, pattern: str, replacement: str) -> None:
        self.pattern = regex.compile_pattern(pattern)
        self._suspicious = regex.compile_pattern(f"{escapes.BASE64}|{pattern}" if pattern else "")
        """One pass for both: nearly always it finds neither."""
        self._base64 = regex.compile_pattern(escapes.BASE64)
        self.replacement = replacement
        self._replace = self._replacing(replacement)
        self._mark = self._replacing(_MARKER)
        self._count = 0

    def may_be_in(self, record: Record) -> bool:
        """Tell whether there may be anything to replace; a no is certain, and cheap."""
        if not record.text_is_raw or b"\\" in record.raw or b"%" in record.raw:
            if self._seen(record.text):
                return True
        elif self._suspicious.found_in(record.raw) and (
            self.pattern.found_in(record.raw) or self._is_in_base64(record.text)
        ):
            return True
        if not record.fields:
            return False
        # A pattern that asks for the beginning of a text finds that of a field only in the field.
        if self.pattern.anchored:
            return True
        try:
            written = orjson.dumps(record.fields)
        except (TypeError, ValueError, RecursionError):
            return True
        if b"\\" in written or b"%" in written:
            return self._seen(written.decode())
        return self._suspicious.found_in(written) and (
            self.pattern.found_in(written) or self._is_in_base64(written.decode())
        )

    def clean_text(self, text: str) -> tuple[str, int]:
        return self._replace(text)

    def _seen(self, text: str) -> bool:
        return self._found(text) or self._is_in_base64(text)

    def _found(self, text: str) -> bool:
        found = self.pattern.found
        return found(text) or any(found(layer) for layer in escapes.shallow(text))

    def _is_in_base64(self, text: str) -> bool:
        if not self._base64.found(text):
            return False
        return any(
            self._found(said) for _, _, readable in escapes.find_base64(text) for said in readable
        )

    def _replacing(self, replacement: str) -> regex.Replace:
        plain = self.pattern.replacing(replacement)

        def replace(text: str) -> tuple[str, int]:
            made, count = plain(text)
            if "\\" in made or "%" in made:
                for _ in range(_MAX_ENCODING_LAYERS):
                    made, more = self._uncover(made, replacement)
                    count += more
                    if not more:
                        break
            made, more = self._without_base64(made, replacement)
            return made, count + more

        return replace

    def _uncover(self, text: str, replacement: str) -> tuple[str, int]:
        """Replace what matches beneath the escapes of a text, in the text itself."""
        if not any(self.pattern.found(layer) for layer in escapes.shallow(text)):
            return text, 0
        for layer, places in escapes.layers(text):
            spans = self.pattern.spans(layer, replacement)
            # What is inside of our own mark is no secret: a pattern may match the replacement.
            spans = [one for one in spans if text[places[one[0]] : places[one[1]]] != one[2]]
            if not spans:
                continue
            pieces, at = [], 0
            for start, end, made in spans:
                pieces += [text[at : places[start]], made]
                at = places[end]
            return "".join([*pieces, text[at:]]), len(spans)
        return text, 0

    def _without_base64(self, text: str, replacement: str) -> tuple[str, int]:
        """Replace the runs of base64 in which the pattern matches."""
        if not self._base64.found(text):
            return text, 0
        pieces, at, count = list[str](), 0, 0
        for start, end, readable in escapes.find_base64(text):
            layers = (one for said in readable for one in (said, *escapes.shallow(said)))
            spans = (self.pattern.spans(one, replacement) for one in layers)
            if (found := next(filter(None, spans), None)) is not None:
                pieces += [text[at:start], found[0][2]]
                at = end
                count += 1
        return "".join([*pieces, text[at:]]), count

    def clean_fields(self, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
        self._count = 0
        return self._clean(fields, self._replace, 0), self._count

    def still_there(self, fields: dict[str, Any]) -> bool:
        """Tell whether the pattern matches anything that is not inside of one value."""
        marked = json_encoding.dumps(self._clean(fields, self._mark, 0))
        return self.pattern.found(marked.decode())

    def _clean(self, value: Any, replace: regex.Replace, depth: int) -> Any:
        if isinstance(value, str):
            return self._redact_text(value, replace)
        if isinstance(value, bool) or value is None:
            return value
        if depth >= _MAX_DEPTH:
            self._count += 1
            return self.replacement
        if isinstance(value, dict):
            return {
                self._clean(name, replace, depth + 1): self._clean(one, replace, depth + 1)
                for name, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._clean(one, replace, depth + 1) for one in value]
        # The number of a card may stand there as a number.
        text = str(value)
        cleaned = self._redact_text(text, replace)
        return value if cleaned == text else cleaned

    def _redact_text(self, text: str, replace: regex.Replace) -> str:
        cleaned, count = replace(text)
        self._count += count
        return cleaned


class _Pieces:
    """Finds what lies across the border of two pieces of one overlong line: of each the end is remembered."""

    def __init__(self, cleaner: _Cleaner) -> None:
        self._cleaner = cleaner
        self._ends: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def continues(self, record: Record) -> bool:
        return bool(self._ends) and (record.file_id, record.offset) in self._ends

    def clean(self, record: Record) -> None:
        """Take out of a piece what began in the one before it."""
        before = self._ends.get((record.file_id, record.offset))
        raw = record.raw
        if record.end == record.offset + len(raw) and raw:
            self._ends[record.file_id, record.end] = raw[-_OVERLAP_CHARS:]
            if len(self._ends) > _MAX_REMEMBERED_ENDS:
                self._ends.popitem(last=False)
        if before is None:
            return
        known = before.decode("utf-8", "replace")
        text = record.text
        for start, end, made in self._cleaner.pattern.spans(
            known + text[:_OVERLAP_CHARS], self._cleaner.replacement
        ):
            if start < len(known) < end:
                record.text = made + text[end - len(known) :]


def _drop_fields(record: Record) -> Record:
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
