"""Validation before every publish: rejected content never becomes visible.

The validators run in the order of their cost: size, UTF-8, the syntax of JSON, YAML or TOML, a JSON Schema,
and a user-defined command on the staged file. The first rejection ends the validation.

The gate validates one file and changes nothing; it does not know the volume or its history.
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
    """The conditions that content must fulfil to be published. Without arguments, all content is accepted.

    Args:
        max_size: maximum bytes, also as a string (`"64Mi"`); None means the limit of the volume.
        format: the required syntax; every format requires UTF-8.
            YAML may contain several documents and any tags; no objects are constructed.
        schema: a JSON Schema, as a mapping or a file (JSON or YAML) that is read once, here.
            Contents are validated in a separate process of about 14 MiB, which is reused.
            Without `format`, the suffix of the published name determines the syntax, by default JSON.
            References to other files or addresses are not followed.
        check: a command, which gets the path of the staged file as its last argument,
            and the name and path in `CONTENT_NAME` and `CONTENT_PATH`. Exit status 0 means valid;
            otherwise the last lines of its output are the reason. Its standard input is empty.
            Or a function, which gets the content (`sidecar.Content`) and rejects it by raising an error, whose text
            is the reason, or by returning False. A coroutine function is awaited; other functions run in a thread.
        check_timeout: timeout in seconds for each validation: by `format` and `schema`, and by `check`.
            On timeout the content is rejected; the validating process, or the command with all its child processes,
            is killed. Only a function that is not a coroutine function cannot be stopped.

    Raises:
        ConfigError: the schema cannot be read or is invalid, the command is not found,
            or the extra `schema` is needed but not installed.

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
        """Whether the content must be staged as a file: only for a command."""
        return self._check is not None

    @property
    def patience(self) -> float:
        """The sum of the timeouts of all validators, in seconds."""
        steps = (self._validation, self._check, self._function)
        return self._timeout * sum(step is not None for step in steps)

    def passes(self, size: int) -> bool:
        """Whether a content of that size is accepted without further validation."""
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
        """Validate a content to be published as `name`; messages contain the path `where`.

        `path` is the staged file, `content` the bytes if the caller has them;
        without `needs_file`, the bytes are enough.

        Raises:
            ContentTooLarge: it is larger than `max_size`.
            ContentRefused: a validator rejected it; `reasons` says why.
            PublishError: the validation itself failed.
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
        """Validate a content with a function, which rejects it by raising or returning False."""
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
    """Return a gate for a `Gate`, a JSON Schema as a mapping, or a function that gets the content.

    Raises:
        ConfigError: the argument is none of these; or as `Gate`.
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
