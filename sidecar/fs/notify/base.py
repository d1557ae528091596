"""Hints that something on a volume may have changed: what is watched, what is told, and who tells it.

An event is never the truth, only a reason to look: queues overflow, watches die with their directory,
and file systems of other machines send nothing at all (inotify(7), "Limitations and caveats").
So a source of hints may miss anything, and whoever uses one looks again on a slow clock as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sidecar.fs.notify.wakeup import WakeupPipe

Mode = Literal["inotify", "watchfiles", "poll"]


@dataclass(frozen=True)
class WatchTarget:
    """A directory to watch, open as `fd`, and the names in it that matter (None: all).

    One that is only on the `is_path_link` to the content is watched for its entries, not for what is written to them.
    """

    fd: int
    path: str
    names: frozenset[bytes] | None
    is_path_link: bool = False
    prefix: bytes = b""
    """What stands before the names of its entries when they are told: `sub/` for a nested directory."""
    alias: bytes | None = None
    """The name under which all its entries are told: that of a link that leads here."""
    key: str | None = None
    """Under which it is followed beside the directory of the content, None for that itself and the way there."""

    def event_name(self, name: bytes) -> bytes:
        """Return the name under which an entry is told."""
        return self.prefix + name if self.alias is None else self.alias

    def matches(self, name: bytes) -> bool:
        """Whether an event of that name is a reason to look; `..tmp-…` and old generations never are."""
        if self.names is not None:
            return name in self.names
        return not name.startswith(b"..") or name == b"..data"


@dataclass
class EventBatch:
    """What has been seen since the last `drain`."""

    count: int = 0
    """Events of names that matter."""
    urgent: bool = False
    """One of them is a reason to look now: not only that somebody has written, and is not done."""
    lost: bool = False
    """The queue overflowed: anything may have happened."""
    moved: bool = False
    """The path may mean another directory: a watched one is gone or has another name, or an entry on the way changed."""
    renamed_in: bool = False
    """The directory of the content, or a link on the way to it, came by rename: what it holds was made before."""
    last: dict[bytes, int] = field(default_factory=dict)
    """For each name the last one of `inotify.STATES`."""
    kinds: dict[bytes, int] = field(default_factory=dict)
    """For each name all of its events, joined."""
    ended: set[str] = field(default_factory=set)
    """Keys of targets that are not followed any more, because their directory is gone."""


class Notifier(Protocol):
    """A source of hints, used by one thread."""

    mode: Mode
    fd: int | None
    """A descriptor that is readable while hints wait, None if the bell is rung instead."""
    supports_nested: bool
    """Whether `follow` works."""

    def arm(self, targets: Sequence[WatchTarget]) -> None:
        """Watch these directories instead of those before. Raises `OSError` at a limit."""

    def follow(self, target: WatchTarget) -> None:
        """Watch one more directory, under its `key`. Raises `OSError` at a limit."""

    def unfollow(self, key: str) -> None:
        """Watch what was followed under that key no longer."""

    def drain(self) -> EventBatch:
        """Return what was seen since the last call, without waiting.

        Raises:
            OSError: the source has failed, and gives no more hints.
        """

    def close(self) -> None:
        """End, and give everything back."""


class PollNotifier:
    """No hints at all: the re-check finds every change."""

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
