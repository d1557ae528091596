"""The gate before every publish: a content that is refused here is never seen by anybody.

Size, UTF-8, the syntax of JSON, YAML or TOML, a JSON Schema, and a command of the user's on the staged file,
in this order, from the cheap to the dear: the first one that refuses ends it.

The gate judges one file and changes nothing; it knows neither the volume nor its history.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from sidecar import _errors
from sidecar.process import arguments, executor, helper_process
from sidecar.volume.content import local_file, snapshot
from sidecar.volume.content.snapshot import Content
from sidecar.volume.validation import schema as schemas
from sidecar.volume.validation import syntax
from sidecar.volume.validation.command import ValidatorCommand
from sidecar.volume.validation.syntax import Format
from sidecar.volume.validation.validator import Validation

_log = logging.getLogger(__name__)

Validate: TypeAlias = Callable[[Content], object] | Callable[[Content], Awaitable[object]]
"""A function that refuses a content by raising, or by returning False."""


class Gate:
    """What a content must fulfil to be published. Without arguments: everything passes.

    Args:
        max_size: bytes, or a text (`"64Mi"`); None leaves it to the volume's own limit.
        format: the syntax that the content must have; all of them mean UTF-8.
            YAML may hold several documents, with any tags: nothing is constructed of it.
        schema: a JSON Schema: a file (JSON or YAML), read once, here, or a mapping.
            Contents are examined by it in a process of its own, of some 14 MiB, that stays for the next one.
            Without `format` the ending of the published name says the syntax, and JSON is assumed else.
            References to other files or addresses are not followed.
        check: a command; it gets the path of the staged file as its last argument,
            and name and path in `CONTENT_NAME` and `CONTENT_PATH`. Exit status 0 means good;
            else the last lines of its output are the reason. Its standard input is empty.
            Or a function: it gets the content (`sidecar.Content`) and refuses it by raising an error, whose text
            is the reason, or by returning False. A coroutine function is awaited, any other one runs in a thread.
        check_timeout: seconds that each examination may take: by `format` and `schema`, and by `check`.
            Then the content is refused; whatever examined it, and all that a command has started, is killed.
            Only a function of yours that is no coroutine function cannot be ended.

    Raises:
        ConfigError: the schema cannot be read or is none, the command is not found,
            or the extra `schema` is needed and not installed.

    >>> Gate(format="json", max_size=1 << 20)
    <Gate max_size=1048576 format=json>
    """

    def __init__(
        self,
        *,
        max_size: int | str | None = None,
        format: Format | None = None,  # noqa: A002 (the word of the flag)
        schema: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        check: Sequence[str] | Validate | None = None,
        check_timeout: float = 10.0,
    ) -> None:
        arguments.check_seconds("check_timeout", check_timeout, zero=False)
        if format is not None:
            arguments.check_choice("format", format, syntax.FORMATS)
            syntax.check_parser(format)
        self._max_size = None if max_size is None else arguments.check_size("max_size", max_size)
        self._format = format
        self._validation: Validation | None = None
        if format is not None or schema is not None:
            self._validation = Validation(
                None if schema is None else schemas.read(schema), check_timeout
            )
        self._check = ValidatorCommand(check, check_timeout) if _is_command(check) else None
        self._function = check if callable(check) else None
        self._timeout = check_timeout

    def __repr__(self) -> str:
        parts = {
            "max_size": self._max_size,
            "format": self._format,
            "schema": "yes" if self._validation and self._validation.has_schema else None,
            "check": self._check.command[0] if self._check else self._function,
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
        steps = (self._validation, self._check, self._function)
        return self._timeout * sum(step is not None for step in steps)

    def passes(self, size: int) -> bool:
        """Whether a content of that size passes unseen: nothing is asked of it but its size."""
        seen = self._validation or self._check or self._function
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
        if self._validation is not None:
            form = self._format or syntax.format_for(name)
            _refuse_if(where, await self._validate(self._validation, path, size, content, form))
        if self._check is not None and path is not None:
            _refuse_if(where, await self._check.run(name, path, where))
        if self._function is not None:
            _refuse_if(where, await self._call(self._function, name, path, content, where))

    async def _validate(
        self,
        validation: Validation,
        path: Path | None,
        size: int,
        content: bytes | None,
        form: Format,
    ) -> Sequence[str]:
        if validation.is_short(form, size):
            return await executor.run_in_thread(validation.reasons, path, content, form)
        request = helper_process.Request()
        asking = executor.run_validation(validation.ask, path, content, form, request)
        return await executor.finish_before_cancel(asking, request.withdraw)

    async def _call(
        self,
        function: Validate,
        name: str,
        path: Path | None,
        content: bytes | None,
        where: str,
    ) -> Sequence[str]:
        """Ask a function about a content: it refuses by raising, or by returning False."""
        given = await executor.run_in_thread(_content, name, path, content, where)
        try:
            # A coroutine function begins here, and what it does is awaited here; any other one may block.
            called = arguments.is_async(function)
            said = function(given) if called else await executor.run_validation(function, given)
            if inspect.isawaitable(said):
                async with asyncio.timeout(self._timeout):
                    said = await said
        except TimeoutError:
            return [f"the check did not end within {self._timeout:g} s"]
        except Exception as error:  # noqa: BLE001 (a function says no by raising whatever it likes)
            _log.debug("the check refuses %s", where, exc_info=error)
            return [f"the check refuses it: {str(error) or type(error).__name__}"]
        return ["the check refuses it"] if said is False else []


def make_gate(given: object) -> Gate | None:
    """Return the gate that is meant: a `Gate`, a JSON Schema as a mapping, or a function that gets the content.

    Raises:
        ConfigError: it is none of these, or as `Gate`.
    """
    if given is None or isinstance(given, Gate):
        return given
    if isinstance(given, Mapping):
        return Gate(schema=given)
    if callable(given):
        return Gate(check=given)
    raise arguments.argument_error(
        "gate", given, "a sidecar.Gate, a JSON Schema (a mapping), a function, or None"
    )


def _is_command(check: Sequence[str] | Validate | None) -> TypeGuard[Sequence[str]]:
    return check is not None and not callable(check)


def _content(name: str, path: Path | None, content: bytes | None, where: str) -> Content:
    if content is None and path is not None:
        read = local_file.read(os.fspath(path), name, sys.maxsize, where)
        if isinstance(read, Content):
            return read
        content = read
    data = content or b""
    return Content(name, data, snapshot.version_of(data), time.time())


def _refuse_if(where: str, reasons: Sequence[str]) -> None:
    if reasons:
        first, more = reasons[0], len(reasons) - 1
        others = f" (and {more} more)" if more else ""
        raise _errors.ContentRefused(f"cannot publish {where}: {first}{others}", reasons)
