"""What a source yields: its complete state at one version, or a proof that nothing has changed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sidecar._errors import SidecarError
from sidecar.volume.content import snapshot


class SourceUnavailable(SidecarError):
    """The source did not answer, or not with what was asked for; it is asked again.

    `retry_after` is what the server asks for, in seconds; `busy` says that it has too much to do (429, 5xx),
    so that the pauses grow up to 30 s. A server that is down costs little to ask: there they end at 2 s.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, busy: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Reference:
    """A content that is fetched when it is needed: what changes with it, and a function that returns it, or a file of it.

    >>> async def fetch() -> bytes:
    ...     return b"large"
    >>> Reference("etag-1", fetch).digest
    'etag-1'
    """

    digest: str
    fetch: Callable[[], Awaitable[bytes | os.PathLike[str]]]


Blob: TypeAlias = bytes | Reference


def digest_of(blob: Blob) -> str:
    """Return what changes with a content; of bytes, it is the version that the volume gives them.

    >>> digest_of(b"123")
    'a665a45920422f9d417e4867efdc4fb8'
    """
    return blob.digest if isinstance(blob, Reference) else snapshot.version_of(blob)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is atomic in the source: an object, a commit, a prefix at one revision.

    `files` is None where the unit was yielded before with this version: contents need not be kept to be yielded again.
    A file that is None cannot be read now: what is published under its name stays.
    `created` (Unix seconds) decides which of two units with the same file name is published: the older one.

    >>> Unit("resourceVersion-7", {"app.json": b"{}"}).created
    0.0
    """

    version: str
    files: Mapping[str, Blob | None] | None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """All that the source has, read at one version. Only a state removes anything from the volume.

    >>> State({"app": Unit("7", {"app.json": b"{}"})}, token="7").order is None
    True
    """

    units: Mapping[str, Unit]
    token: str
    """Opaque; `follow` gets it back to resume after it."""
    order: int | None = None
    """A number that grows with each version, where the source has one: it tells when the source went back in time."""
    changed_at: float | None = None
    """When the source changed, Unix seconds, where it says so."""
    rescued: bool = False
    """Whether a re-check found what the watch had missed."""
    is_settled: bool = True
    """Whether nothing of it is being fetched for the first time: what `once` waits for."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The source confirmed that `token` is still its newest state: a bookmark, a 304, a PONG.

    >>> Alive("7")
    Alive(token='7')
    """

    token: str


class Source(Protocol):
    """Where contents come from. Pauses, retries, validation, publishing and metrics are left to the runner.

    >>> from collections.abc import AsyncIterator
    >>> from sidecar.mirror import Alive, State, Unit
    >>> class Greeting:
    ...     name, interval = "greeting", None
    ...
    ...     async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
    ...         yield State({"": Unit("1", {"greeting.txt": b"hello"})}, token="1")
    """

    @property
    def name(self) -> str:
        """The address, without a secret: for messages and metrics."""

    @property
    def interval(self) -> float | None:
        """Seconds within which `follow` yields something; None where it need not. After twice the time it is started anew."""

    def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the present state first, then each newer one, and `Alive` in between.

        With `since`, the token of a state that it has yielded before, it may yield `Alive` first if nothing has changed.
        With None, each unit has its files.
        A partial view is never yielded: what expires on the way is read anew inside.

        Raises:
            SourceUnavailable: the source did not answer as it should.
        """
