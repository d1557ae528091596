"""Types for change notifications: watch targets, event batches, and the `Notifier` protocol.

An event is only a reason to scan: queues overflow, watches end with their directory,
and network file systems send no events at all (inotify(7), "Limitations and caveats").
A notifier may miss any change, so its users also scan at a slow interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sidecar.fs.notify.wakeup import WakeupPipe

Mode = Literal["inotify", "watchfiles", "poll"]


@dataclass(frozen=True)
class WatchTarget:
    """A directory to watch, open as `fd`, and the relevant names in it (None: all).

    A directory with `is_path_link` only leads to the content: its entries are watched, but not writes to them.
    """

    fd: int
    path: str
    names: frozenset[bytes] | None
    is_path_link: bool = False
    prefix: bytes = b""
    """The prefix of reported names: `sub/` for a nested directory."""
    alias: bytes | None = None
    """The name reported for all its entries: the name of the link that leads to this directory."""
    key: str | None = None
    """The key for `unfollow`; None for the content directory and the directories that lead to it."""

    def event_name(self, name: bytes) -> bytes:
        """Return the name to report for an entry."""
        return self.prefix + name if self.alias is None else self.alias

    def matches(self, name: bytes) -> bool:
        """Whether an event of that name is relevant; `..tmp-…` and old generations never are."""
        if self.names is not None:
            return name in self.names
        return not name.startswith(b"..") or name == b"..data"


@dataclass
class EventBatch:
    """The events since the last `drain`."""

    count: int = 0
    """Number of events of relevant names."""
    urgent: bool = False
    """Whether to scan now: an event was more than an unfinished write."""
    lost: bool = False
    """Whether the queue overflowed, so that anything may have changed."""
    moved: bool = False
    """Whether the path may refer to another directory: one was removed or renamed, or a link to it changed."""
    renamed_in: bool = False
    """Whether the content directory, or a link to it, arrived by rename: its content existed before."""
    last: dict[bytes, int] = field(default_factory=dict)
    """For each name, the last event of `inotify.STATES`."""
    kinds: dict[bytes, int] = field(default_factory=dict)
    """For each name, all its events combined."""
    ended: set[str] = field(default_factory=set)
    """Keys of targets that are no longer followed because their directory is gone."""


class Notifier(Protocol):
    """A source of events, used by one thread."""

    mode: Mode
    fd: int | None
    """A descriptor that is readable while events are pending, None if the `WakeupPipe` is used instead."""
    supports_nested: bool
    """Whether `follow` is supported."""

    def arm(self, targets: Sequence[WatchTarget]) -> None:
        """Replace the watched directories. Raises `OSError` at a limit."""

    def follow(self, target: WatchTarget) -> None:
        """Watch another directory under its `key`. Raises `OSError` at a limit."""

    def unfollow(self, key: str) -> None:
        """Stop watching the directories of that key."""

    def drain(self) -> EventBatch:
        """Return the events since the last call, without waiting.

        Raises:
            OSError: the source has failed and sends no more events.
        """

    def close(self) -> None:
        """Stop watching, and release all resources."""


class PollNotifier:
    """A notifier without events: the re-check finds every change."""

    mode: Mode = "poll"
    supports_nested = False

    def __init__(self, _: WakeupPipe | None = None) -> None:
        self.fd: int | None = None

    def arm(self, targets: Sequence[WatchTarget]) -> None: ...

    def follow(self, target: WatchTarget) -> None: ...

    def unfollow(self, key: str) -> None: ...

    def drain(self) -> EventBatch:
        return EventBatch()

    def close(self) -> None: ...
