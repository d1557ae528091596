"""The change that an action receives, and the error of a failed action."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

import orjson

from sidecar._errors import SidecarError
from sidecar.process import tracing
from sidecar.volume.content.snapshot import Snapshot

_MOST_NAMES = 4 << 10
"""Bytes of names in a header or a variable: servers take 8 KiB of headers, the kernel 128 KiB in a variable."""
_ALL = "*"


class ActionFailed(SidecarError):
    """An action did not succeed; its message says what was attempted, and what to change.

    `refused` is True if the application has answered that it does not take the version,
    False if it was not reached or not ready. `retry_after` is the pause in seconds that it asked for.
    """

    def __init__(
        self, message: str, *, refused: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Change:
    """A version that the application is to take over.

    >>> change = Change("/config/", "e3b0c44298fc1c149afbf4c8996fb924", ("app.json",))
    >>> change.etag
    '"e3b0c44298fc1c149afbf4c8996fb924"'
    """

    path: str
    version: str
    changed: tuple[str, ...]
    """The names that were added, altered or removed since the version that was applied last."""
    output_version: str | None = None
    """The version of what `expand_to` has made of it."""
    snapshot: Snapshot[None] | None = field(default=None, repr=False, compare=False)
    """The content itself."""
    traceparent: str | None = field(default=None, compare=False)
    """The trace context (W3C) of the publish, or of its load here."""

    @property
    def etag(self) -> str:
        """The strong entity tag, as readers and writers send it."""
        return f'"{self.version}"'

    def trace_context(self) -> str | None:
        """Return the trace context (W3C) to pass on: that of the attempt that is under way, if there are spans."""
        return tracing.traceparent() or self.traceparent

    def headers(self) -> dict[str, str]:
        """Return it as headers: names are percent-encoded, with commas between; `*` where they are too many."""
        names = ",".join(quote(name) for name in self.changed)
        context = self.trace_context()
        return {
            "Sidecar-Version": self.version,
            "ETag": self.etag,
            "Sidecar-Changed": names if len(names) <= _MOST_NAMES else _ALL,
        } | ({} if context is None else {"traceparent": context})

    def environment(self) -> dict[str, str]:
        """Return it as variables: names on lines of their own; `*` where they are too many."""
        names = "\n".join(self.changed)
        context = self.trace_context()
        return {
            "SIDECAR_VERSION": self.version,
            "SIDECAR_ETAG": self.etag,
            "SIDECAR_PATH": self.path,
            "SIDECAR_CHANGED": names if len(names) <= _MOST_NAMES else _ALL,
        } | ({} if context is None else {"TRACEPARENT": context})

    def json(self) -> bytes:
        """Return all of it as a JSON object in one line, whatever the number of names."""
        return orjson.dumps(
            {
                "path": self.path,
                "version": self.version,
                "etag": self.etag,
                "changed": list(self.changed),
            }
        )


class Action(Protocol):
    """What is done for each version; `Webhook`, `Command` and `Signal` are such.

    >>> class Print:
    ...     kind = "print"
    ...
    ...     def __str__(self) -> str:
    ...         return "print to standard output"
    ...
    ...     async def run(self, change: Change) -> None:
    ...         print(change.version)
    """

    @property
    def kind(self) -> str:
        """One word: the label `action` of the metrics."""

    def __str__(self) -> str:
        """Say what is done and where, without a secret."""

    async def run(self, change: Change) -> None:
        """Do it, within a time limit of its own. When this returns or raises, nothing of it goes on.

        Raises:
            ActionFailed: it did not succeed. It is tried again.
        """
