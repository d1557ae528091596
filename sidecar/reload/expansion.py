"""Expand references in what was published, and publish the result for the application, before it is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from sidecar import _errors
from sidecar.process import arguments, executor
from sidecar.reload.change import ActionFailed, Change
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.publish.models import Publication
from sidecar.volume.volume import Volume

_REFERENCE = re.compile(rb"\$(?:(\$)|\{([^{}\n]*)(\})?)")
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_FILE = b"file:"
_OURS = b"SIDECAR_"
_VERSION = b"SIDECAR_VERSION"
_MOST_PROBLEMS = 5

Lookup = Callable[[bytes], bytes]
"""Return the value of a reference. Raises `LookupError` with the reason if it has none."""


class Expansion:
    """Publish each version with its references expanded: a file for a file, a set for a set.

    `${NAME}` is a variable of the environment, but none of `SIDECAR_…`; `${SIDECAR_VERSION}` is the version, `${file:NAME}` another file of the set, or beside the file,
    without one newline at its end. `$$` is a single `$`; any other `$` stays as it is. Values are not expanded again.
    A reference without a value refuses the whole version, and the output stays as it was.

    Args:
        path: what is followed.
        output: the file, or the directory for a set, to publish.
        options: of `sidecar.Volume`.

    Raises:
        ConfigError: the output is the source, or lies in it.
    """

    kind: ClassVar[str] = "expand"

    def __init__(self, path: str, output: str, options: Mapping[str, Any] | None = None) -> None:
        arguments.check_path("expand_to", output)
        source, target = os.path.realpath(path), os.path.realpath(output)
        if not os.path.basename(output) or os.path.isdir(output):
            # A single file is published there under its own name.
            target = (
                target if os.path.isdir(source) else os.path.join(target, os.path.basename(source))
            )
        if target == source or target.startswith(f"{source}/"):
            raise _errors.ConfigError(
                f"expand_to is {output}, which lies in what is followed ({path}): each version would make another one"
            )
        self._output = output
        directory, name = os.path.split(output)
        self._name = name
        self._as_file = Volume(directory or os.curdir, **(options or {}))
        self._as_set = Volume(output, **(options or {}))
        self._beside = Volume(os.path.dirname(source))
        self.version: str | None = None
        """The version of the output."""

    def __str__(self) -> str:
        return f"expansion to {self._output}"

    async def run(self, change: Change) -> None:
        """Expand and publish a version. Raises `ActionFailed`; a version with an unknown reference is refused."""
        if change.snapshot is None:
            raise RuntimeError("there is no content to expand")
        try:
            # Those of our own options may hold credentials, and whoever publishes would read them.
            others = {name: v for name, v in os.environb.items() if not name.startswith(_OURS)}
            variables = {**others, _VERSION: change.version.encode()}
            done = await self._publish(change.snapshot, variables)
        except _errors.SidecarError as error:
            refused = isinstance(error, _errors.ContentRefused | _errors.NameRefused)
            raise ActionFailed(f"{self}: {error}", refused=refused) from error
        self.version = done.version

    async def _publish(
        self, snapshot: Snapshot[None], variables: Mapping[bytes, bytes]
    ) -> Publication:
        if snapshot.name is None:
            files = await executor.run_in_thread(expand, snapshot, snapshot, variables)
            return await self._as_set.publish(files)
        name = snapshot.name
        beside = await self._read_beside(snapshot[name])
        expanded = await executor.run_in_thread(expand, {name: snapshot[name]}, beside, variables)
        if not self._name:
            return await self._as_set.put(name, expanded[name])
        return await self._as_file.put(self._name, expanded[name])

    async def _read_beside(self, text: bytes) -> dict[str, bytes]:
        """Return the files beside a single file to which it refers, as far as they can be read."""
        found = dict[str, bytes]()
        for match in _REFERENCE.finditer(text):
            name = (match[2] or b"").removeprefix(_FILE).decode("utf-8", "surrogateescape")
            if (match[2] or b"").startswith(_FILE) and name not in found:
                try:
                    found[name] = (await self._beside.read(name)).data
                except (_errors.SidecarError, UnicodeError):
                    continue  # `expand` says that it is missing
        return found


def expand(
    files: Mapping[str, bytes],
    others: Mapping[str, bytes],
    variables: Mapping[bytes, bytes],
) -> dict[str, bytes]:
    r"""Return the files with their references expanded; see `Expansion`. `others` are those of `${file:NAME}`.

    >>> expand({"a": b"${HOST} $$5 $uri ${file:b}"}, {"b": b"two\n"}, {b"HOST": b"db"})
    {'a': b'db $5 $uri two'}

    Raises:
        ContentRefused: references have no value; the message names each of them, with its file and line.
    """
    problems: list[str] = []

    def look_up(reference: bytes) -> bytes:
        if reference.startswith(_FILE):
            name = reference.removeprefix(_FILE).decode("utf-8", "surrogateescape")
            if name not in others:
                raise LookupError("there is no such file")
            return others[name].removesuffix(b"\n")
        if not _VARIABLE.fullmatch(reference):
            raise LookupError(
                "this is neither a variable nor file:NAME (a literal one is written with $$)"
            )
        if reference not in variables:
            raise LookupError("the variable is not set (a literal one is written with $$)")
        return variables[reference]

    def expand_one(name: str, content: bytes) -> bytes:
        def value_of(match: re.Match[bytes]) -> bytes:
            if match[1]:
                return b"$"
            try:
                if match[3] is None:
                    raise LookupError("its } is missing")  # noqa: TRY301
                return look_up(match[2])
            except LookupError as error:
                line = content.count(b"\n", 0, match.start()) + 1
                shown = match[0].decode("utf-8", "replace")
                problems.append(f"{name}, line {line}: {shown}: {error.args[0]}")
                return b""

        return _REFERENCE.sub(value_of, content)

    expanded = {name: expand_one(name, files[name]) for name in files}
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        said = "; ".join(problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise _errors.ContentRefused(f"cannot expand {said}", problems)
    return expanded
