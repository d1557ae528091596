"""The gate before every publish: a content that is refused here is never seen by anybody.

Size, UTF-8, the syntax of JSON, YAML or TOML, a JSON Schema, and a command of the user's on the staged file,
in this order, from the cheap to the dear: the first one that refuses ends it.

The gate judges one file and changes nothing; it knows neither the volume nor its history.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sidecar import _errors
from sidecar.runtime import threads
from sidecar.volume import schema as schemas
from sidecar.volume import syntax
from sidecar.volume.check import Check
from sidecar.volume.syntax import Format


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
        if format is not None and format not in syntax.FORMATS:
            raise _errors.ConfigError(
                f"unknown format {format!r}: it is one of {', '.join(syntax.FORMATS)}"
            )
        if check_timeout <= 0:
            raise _errors.ConfigError(
                f"check_timeout must be more than 0 seconds, not {check_timeout!r}"
            )
        if format is not None:
            syntax.check_parser(format)
        self._max_size = max_size
        self._format = format
        self._schema = None if schema is None else schemas.read(Path(schema))
        self._check = None if check is None else Check(check, check_timeout)

    def __repr__(self) -> str:
        parts = {
            "max_size": self._max_size,
            "format": self._format,
            "schema": self._schema and "yes",
            "check": self._check and self._check.command[0],
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
        return self._check.timeout if self._check is not None else 0.0

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
        form = self._format or syntax.said_by(name)
        if self._format is not None or self._schema is not None:
            reasons = await threads.in_thread(self._read, path, content, form)
            _refuse_if(where, reasons)
        if self._check is not None and path is not None:
            reasons = await self._check.run(name, path, where)
            _refuse_if(where, reasons)

    def _read(self, path: Path | None, content: bytes | None, form: Format) -> list[str]:
        """Return what is wrong with syntax and structure.

        Text is read piece by piece. Whatever has to be parsed must fit into memory, several times.
        """
        if content is None and path is not None and form == "text" and self._schema is None:
            return list(syntax.not_text(path))
        raw = content if content is not None else Path(path or os.devnull).read_bytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return [
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}, line {line}"
            ]
        try:
            documents = syntax.parse(text, form)
            if self._schema is None:
                return []
            return list(schemas.violations(self._schema, documents))
        except RecursionError:
            return [f"not fit as {form.upper()}: it is nested too deeply"]
        except ValueError as error:
            return [f"not valid {form.upper()}: {error}"]


def _refuse_if(where: str, reasons: Sequence[str]) -> None:
    if reasons:
        first, more = reasons[0], len(reasons) - 1
        others = f" (and {more} more)" if more else ""
        raise _errors.ContentRefused(f"cannot publish {where}: {first}{others}", reasons)
