"""Validate syntax and schema, in this process or in a helper process that can be killed.

Text, and small contents without a schema, are validated quickly. Others can take long: patterns of a schema,
`uniqueItems`, recursive references, TOML keys with a thousand dots. These are validated in a helper process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sidecar import _errors
from sidecar.process import helper_process
from sidecar.volume.validation import schema as schemas
from sidecar.volume.validation import syntax, syntax_yaml
from sidecar.volume.validation.syntax import Format

if TYPE_CHECKING:
    from sidecar.volume.validation.schema import Validator

_MOST_HELPERS: Final = 2
"""At a time. Each has some 12 MiB of its own, and all of them must fit beside the writer into what a Pod has, also under attack."""
_SHORT: Final = {"text": 1 << 62, "json": 1 << 20, "yaml": 1 << 16, "toml": 1 << 12}
"""Bytes up to which an examination without a schema takes some hundredths of a second at most."""
_SHORT_SLOW_YAML: Final = 1 << 12
"""The same, where PyYAML was built without libyaml."""

_FORMATS: Final = (
    "fqdn",
    "idna",
    "isoduration",
    "jsonpointer",
    "rfc3339_validator",
    "rfc3986_validator",
    "rfc3987",
    "rfc3987_syntax",
    "uri_template",
    "webcolors",
)
"""Modules that jsonschema imports to check `format`, where they are installed."""


class Validation:
    """Validates contents by syntax and schema, each within `timeout` seconds."""

    def __init__(self, schema: schemas.Source | None, timeout: float) -> None:
        self.has_schema = schema is not None
        self.timeout = timeout
        self._helpers = helper_process.HelperPool(__name__, schema, most=_MOST_HELPERS)

    def is_short(self, form: Format, size: int) -> bool:
        """Whether a content can be validated quickly, in this process."""
        most = _SHORT[form]
        if form == "yaml" and not syntax_yaml.is_fast():
            most = _SHORT_SLOW_YAML
        return not self.has_schema and size <= most

    def reasons(self, path: Path | None, content: bytes | None, form: Format) -> list[str]:
        """Return the problems of a small content. Blocking."""
        return reasons(path, content, form, None)

    def ask(
        self,
        path: Path | None,
        content: bytes | None,
        form: Format,
        request: helper_process.Request,
    ) -> list[str]:
        """Return the problems of any content, found by a helper process. Blocking.

        Raises:
            PublishError: the validation itself failed.
        """
        where = None if path is None or content is not None else os.fspath(path)
        try:
            found, failure = self._helpers.ask((where, content, form), self.timeout, request)
        except helper_process.HelperTimeout:
            limit = f"{self.timeout:g} s (simplify the schema, or raise check_timeout)"
            return [f"the examination by syntax and schema did not end within {limit}"]
        except helper_process.HelperLost as error:
            raise _errors.PublishError(
                f"the examination by syntax and schema ended without an answer: {error}"
                " (is there enough memory?)"
            ) from error
        if failure is not None:
            raise _errors.PublishError(failure)
        return list(found)


def reasons(
    path: Path | None, content: bytes | None, form: Format, validator: Validator | None
) -> list[str]:
    """Return what is wrong with syntax and structure.

    Text is read piece by piece. Whatever has to be parsed must fit into memory, several times.
    """
    if content is None and path is not None and form == "text" and validator is None:
        return list(syntax.utf8_error(path))
    raw = content if content is not None else Path(path or os.devnull).read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return [f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}, line {line}"]
    try:
        if validator is None:
            syntax.check(text, form)
            return []
        documents = syntax.parse(text, form)
    except RecursionError:
        return [f"not fit as {form.upper()}: it is nested too deeply"]
    except ValueError as error:
        return [f"not valid {form.upper()}: {error}"]
    return _violations(validator, documents)


def _violations(validator: Validator, documents: Sequence[Any]) -> list[str]:
    try:
        return list(schemas.violations(validator, documents))
    except RecursionError:
        return [
            "it is nested too deeply for the schema, or the schema refers to itself without end"
        ]


def _load_no_formats() -> None:
    """Keep jsonschema from importing what checks `format`: nothing asks for that here, and one builds a grammar for seconds.

    It goes on without each that it does not find; they come with its extras `format` and `format-nongpl`.
    """
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(_FORMATS))


def main() -> None:
    """Validate contents for the parent process."""
    _load_no_formats()
    with helper_process.connected() as (connection, setup):
        validator = None if setup is None else schemas.make(setup)
        helper_process.send(connection, None)

        def examine(
            message: tuple[str | None, bytes | None, Format],
        ) -> tuple[list[str], str | None]:
            path, content, form = message
            try:
                return reasons(None if path is None else Path(path), content, form, validator), None
            except (_errors.SidecarError, OSError, MemoryError) as error:
                return [], str(error) or "there is not enough memory"

        helper_process.serve(examine, connection)
