"""Hints that something on a volume may have changed.

An event is never the truth, only a reason to look: queues overflow, watches die with their directory,
and file systems of other machines send nothing at all (inotify(7), "Limitations and caveats").
So a source of hints may miss anything, and whoever uses one looks again on a slow clock as well.

Three sources behind one small protocol, `Hints`:
`InotifyHints` on Linux, which wakes nobody while nothing happens;
`WatchfilesHints` elsewhere;
`PollHints`, which gives none, for where events cannot be trusted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Mode = Literal["inotify", "watchfiles", "poll"]

#: Changes made on another machine, or behind the mount, send no events here.
REMOTE = frozenset(
    "9p afs ceph cifs fuse glusterfs gpfs lustre nfs nfs4 pvfs2 smb2 smb3 smbfs virtiofs vboxsf".split()
)

_WATCHFILES_DEBOUNCE_MS = 50
_WATCHFILES_STEP_MS = 5
_WATCHFILES_ROUND_MS = 1000


def is_remote(filesystem: str) -> bool:
    """Whether files of this type of file system can change without an event (`fuse.sshfs` too)."""
    return filesystem.split(".", 1)[0] in REMOTE


class Event(NamedTuple):
    """One inotify event: where (`watch`), what (`mask`, see inotify(7)), and the entry's raw name."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify descriptor: `add` directories, `drain` events without waiting.

    Names are bytes: whatever a neighbour calls its files, the reader of events survives it.
    """

    CREATE = 0x100
    MODIFY = 0x2
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    ATTRIB = 0x4
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    #: What can change the content of a directory's files, or the directory itself.
    CHANGES = (
        CREATE | MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | DELETE | DELETE_SELF | MOVE_SELF
    )

    def __init__(self) -> None:
        # Imported here: it exists on Linux alone, and polling must do without it.
        import asyncinotify

        self._mask = asyncinotify.Mask
        self._inotify = asyncinotify.Inotify(cache_size=64, sync_timeout=0)
        self._watches: dict[int, asyncinotify.Watch] = {}

    @property
    def fd(self) -> int:
        """The descriptor, readable while events wait."""
        return self._inotify.fd

    def add(self, path: str, mask: int = CHANGES) -> int:
        """Watch a directory and return the number that its events will carry.

        `/proc/self/fd/N` watches the very directory that is open, whatever its name is by now.

        Raises:
            OSError: `ENOSPC` at the limit of watches, else as inotify_add_watch(2).
        """
        watch = self._inotify.add_watch(path, self._mask(mask))
        self._watches[watch.wd] = watch
        return watch.wd

    def remove(self, number: int) -> None:
        """Stop watching; no error if the kernel has dropped the watch already."""
        watch = self._watches.pop(number, None)
        if watch is not None:
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(watch)

    def drain(self) -> list[Event]:
        """Return all events that wait, in order; none is waited for."""
        events: list[Event] = []
        while (event := self._inotify.sync_get()) is not None:
            # The event of an overflow belongs to no watch.
            number = event.watch.wd if event.watch is not None else -1
            name = os.fsencode(event.name) if event.name is not None else b""
            events.append(Event(number, int(event.mask), name))
        return events

    def close(self) -> None:
        """Give the descriptor back."""
        self._inotify.close()


#: Events of a watched directory itself that end the watch, or make it one of another path.
_GONE = Inotify.DELETE_SELF | Inotify.MOVE_SELF | Inotify.UNMOUNT | Inotify.IGNORED
#: Of these the last one tells in what state a name is.
_KINDS = Inotify.CREATE | Inotify.MODIFY | Inotify.CLOSE_WRITE | Inotify.MOVED_TO


@dataclass(frozen=True)
class Target:
    """A directory to watch, open as `fd`, and the names in it that matter (None: all)."""

    fd: int
    path: str
    names: frozenset[bytes] | None

    def wants(self, name: bytes) -> bool:
        """Whether an event of that name is a reason to look; `..tmp-…` and old generations never are."""
        if self.names is not None:
            return name in self.names
        return not name.startswith(b"..") or name == b"..data"


@dataclass
class Activity:
    """What has been seen since the last look.

    `created` holds names that were made and not written since: by a link, or by a writer that has only begun;
    `written` names that were written in place and not closed yet,
    `closed` names whose writer has closed them, `replaced` names that came by rename.
    """

    count: int = 0
    lost: bool = False
    """The queue overflowed, or a watched directory went away: anything may have happened."""
    created: frozenset[bytes] = frozenset()
    written: frozenset[bytes] = frozenset()
    closed: frozenset[bytes] = frozenset()
    replaced: frozenset[bytes] = frozenset()

    @property
    def relevant(self) -> bool:
        return bool(self.count or self.lost)


class Hints(Protocol):
    """A source of hints. `wake` may be called from any thread, and as often as it likes."""

    mode: Mode

    def arm(self, targets: Sequence[Target]) -> None:
        """Watch these directories instead of those before. Raises `OSError` at a limit."""

    def listen(self, wake: Callable[[], None]) -> int | None:
        """Begin; return a descriptor that becomes readable, or None if `wake` is called instead."""

    def drain(self) -> Activity:
        """Return what was seen since the last call, without waiting."""

    def close(self) -> None:
        """End, and give everything back."""


class InotifyHints:
    """Hints by inotify(7): no thread, no polling, no wake-up while nothing happens."""

    mode: Mode = "inotify"

    def __init__(self) -> None:
        self._inotify = Inotify()
        self._targets: dict[int, Target] = {}

    def arm(self, targets: Sequence[Target]) -> None:
        before = set(self._targets)
        now: dict[int, Target] = {}
        for target in targets:
            number = self._inotify.add(f"/proc/self/fd/{target.fd}")
            # Two targets may be one directory: then every name of both matters.
            now[number] = _merge(now[number], target) if number in now else target
        for number in before - set(now):
            self._inotify.remove(number)
        self._targets = now

    def listen(self, wake: Callable[[], None]) -> int | None:
        return self._inotify.fd

    def drain(self) -> Activity:
        count, lost = 0, False
        last: dict[bytes, int] = {}
        for event in self._inotify.drain():
            lost = lost or bool(event.mask & Inotify.OVERFLOW)
            target = self._targets.get(event.watch)
            if target is None:
                continue
            if not event.name:
                lost = lost or bool(event.mask & _GONE)
            elif target.wants(event.name):
                count += 1
                if kind := event.mask & _KINDS:
                    last[event.name] = kind
        by_kind = {
            kind: frozenset(name for name, mask in last.items() if mask & kind)
            for kind in (Inotify.CREATE, Inotify.MODIFY, Inotify.CLOSE_WRITE, Inotify.MOVED_TO)
        }
        return Activity(count, lost, *by_kind.values())

    def close(self) -> None:
        self._inotify.close()


class WatchfilesHints:
    """Hints by the `watchfiles` library, for systems without inotify. A thread waits for them."""

    mode: Mode = "watchfiles"

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._seen = 0
        self._lost = False
        self._paths: dict[str, Target] = {}
        self._wake: Callable[[], None] = _nothing

    def arm(self, targets: Sequence[Target]) -> None:
        self._end_thread()
        self._paths = {target.path: target for target in targets}
        self._start_thread()

    def listen(self, wake: Callable[[], None]) -> int | None:
        self._wake = wake
        self._start_thread()
        return None

    def drain(self) -> Activity:
        with self._lock:
            seen, lost = self._seen, self._lost
            self._seen, self._lost = 0, False
        return Activity(count=seen, lost=lost)

    def close(self) -> None:
        self._end_thread()

    def _start_thread(self) -> None:
        if self._paths and self._wake is not _nothing and self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="sidecar-watchfiles", daemon=True
            )
            self._thread.start()

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        import watchfiles

        try:
            for changes in watchfiles.watch(
                *self._paths,
                watch_filter=None,
                debounce=_WATCHFILES_DEBOUNCE_MS,
                step=_WATCHFILES_STEP_MS,
                rust_timeout=_WATCHFILES_ROUND_MS,
                stop_event=stop,
                recursive=False,
                force_polling=False,
                raise_interrupt=False,
            ):
                self._note(sum(self._matters(path) for _, path in changes), lost=False)
        except Exception:  # a name that is not UTF-8, a directory that is gone: look, and arm again
            self._note(0, lost=True)

    def _matters(self, path: str) -> bool:
        directory, name = os.path.split(path)
        target = self._paths.get(directory)
        # macOS reports the real path: where no directory matches, every change is a hint.
        return target is None or target.wants(os.fsencode(name))

    def _note(self, seen: int, *, lost: bool) -> None:
        with self._lock:
            self._seen += seen
            self._lost = self._lost or lost
        if seen or lost:
            self._wake()


class PollHints:
    """No hints at all: the re-check finds every change."""

    mode: Mode = "poll"

    def arm(self, targets: Sequence[Target]) -> None: ...

    def listen(self, wake: Callable[[], None]) -> int | None:
        return None

    def drain(self) -> Activity:
        return Activity()

    def close(self) -> None: ...


def best_mode(filesystem: str) -> Mode:
    """Return the mode for a type of file system on this platform, as `--watch auto` does."""
    if is_remote(filesystem):
        return "poll"
    return "inotify" if sys.platform == "linux" else "watchfiles"


def source(mode: Mode) -> Hints:
    """Make the source of hints of that mode.

    Raises:
        OSError: `EMFILE` where no further inotify instance is to be had.
    """
    made: dict[Mode, Callable[[], Any]] = {
        "inotify": InotifyHints,
        "watchfiles": WatchfilesHints,
        "poll": PollHints,
    }
    hints: Hints = made[mode]()
    return hints


def _merge(first: Target, second: Target) -> Target:
    if first.names is None or second.names is None:
        return Target(first.fd, first.path, None)
    return Target(first.fd, first.path, first.names | second.names)


def _nothing() -> None:
    """Stands for the wake-up of a source that nobody listens to yet."""
