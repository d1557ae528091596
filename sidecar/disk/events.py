"""Hints that something on a volume may have changed.

An event is never the truth, only a reason to look: queues overflow, watches die with their directory,
and file systems of other machines send nothing at all (inotify(7), "Limitations and caveats").
So a source of hints may miss anything, and whoever uses one looks again on a slow clock as well.

Three sources behind one small protocol, `Hints`:
`InotifyHints` on Linux, which wakes nobody while nothing happens;
`WatchfilesHints` elsewhere;
`PollHints`, which gives none, for where events cannot be trusted.
All of them ring a `Bell` or are waited for together with one, so that one thread can wait for everything at once.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

Mode = Literal["inotify", "watchfiles", "poll"]

#: Changes made on another machine, or behind the mount, send no events here.
REMOTE = frozenset(
    (
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "drvfs", "fakeowner", "fuse"),
        *("gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs"),
        *("pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    )
)

#: Seconds from where on a time limit is none: poll(2) counts milliseconds in an int.
_LONG = 1e6
_EVENT = struct.Struct("iIII")  # struct inotify_event without its name
_FEW_EVENTS = 1 << 12
_MANY_EVENTS = 1 << 16
_WATCHFILES_DEBOUNCE_MS = 50
_WATCHFILES_STEP_MS = 5
#: A first round without a change is the only sign that it watches.
_WATCHFILES_ROUND_MS = 50
_WATCHFILES_START = 2.0
#: A watcher that has worked for so long failed because of an event, not because it cannot work.
_WATCHFILES_LIVED = 1.0


def is_remote(filesystem: str) -> bool:
    """Whether files of this type of file system can change without an event (`fuse.sshfs` too)."""
    return filesystem.split(".", 1)[0] in REMOTE


class Bell:
    """Wakes the one thread that waits for it, from any other: a pipe that can be polled."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        # Without it a late `ring` could write into a descriptor that has become somebody else's.
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """End the wait that is going on, or the next one. No error after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._in, b"!")

    def wait(self, seconds: float, fd: int | None) -> None:
        """Wait until somebody rings, `fd` becomes readable, or the time is over."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(math.ceil(max(seconds, 0.0) * 1000) if seconds < _LONG else None)
        if any(one == self._out for one, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._out, _MANY_EVENTS)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._in)
                os.close(self._out)


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
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000
    #: Of a directory that has been added before, the masks are joined.
    MASK_ADD = 0x20000000
    #: What can bring, take away or replace entries of a directory, or the directory itself.
    ENTRIES = CREATE | MOVED_FROM | MOVED_TO | DELETE | DELETE_SELF | MOVE_SELF
    #: What can change the content of a directory's files as well.
    CHANGES = ENTRIES | MODIFY | CLOSE_WRITE

    def __init__(self) -> None:
        # Imported here: it exists on Linux alone, and polling must do without it.
        import asyncinotify

        class Instance(asyncinotify.Inotify):
            """Its events are read by us, so it has to be told which watches have ended."""

            def forget(self, number: int) -> None:
                watch = self._watches.pop(number, None)
                if watch is not None:
                    with contextlib.suppress(OSError):
                        self.rm_watch(watch)

        self._mask = asyncinotify.Mask
        self._inotify = Instance()
        self._fd = self._inotify.fd
        os.set_blocking(self._fd, False)  # asyncinotify 4.4 takes O_CLOEXEC for O_NONBLOCK

    @property
    def fd(self) -> int:
        """The descriptor, readable while events wait."""
        return self._fd

    def add(self, path: str, mask: int = CHANGES) -> int:
        """Watch a directory and return the number that its events will carry.

        `/proc/self/fd/N` watches the very directory that is open, whatever its name is by now.

        Raises:
            OSError: `ENOSPC` at the limit of watches, else as inotify_add_watch(2).
        """
        return self._inotify.add_watch(path, self._mask(mask)).wd

    def remove(self, number: int) -> None:
        """Stop watching; no error if the kernel has dropped the watch already."""
        self._inotify.forget(number)

    def drain(self) -> list[Event]:
        """Return the events that wait, in order; none is waited for."""
        events: list[Event] = []
        size = _FEW_EVENTS
        while True:
            try:
                # asyncinotify's own reading makes a Path, an enum and a weak reference of each event.
                data = os.read(self._fd, size)
            except BlockingIOError:
                return events
            events += _parsed(data)
            if len(data) < size // 2:
                return events
            size = _MANY_EVENTS

    def close(self) -> None:
        """Give the descriptor back."""
        self._inotify.close()


def _parsed(data: bytes) -> list[Event]:
    events: list[Event] = []
    position = 0
    while position < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, position)
        position += _EVENT.size
        events.append(Event(watch, mask, data[position : position + length].rstrip(b"\0")))
        position += length
    return events


#: Events of a watched directory itself that end the watch, or make it one of another path.
_GONE = Inotify.DELETE_SELF | Inotify.MOVE_SELF | Inotify.UNMOUNT | Inotify.IGNORED
#: Of these the last one tells in what state a name is.
STATES = Inotify.CREATE | Inotify.MODIFY | Inotify.CLOSE_WRITE | Inotify.MOVED_TO


@dataclass(frozen=True)
class Target:
    """A directory to watch, open as `fd`, and the names in it that matter (None: all).

    One that is only on the `way` to the content is watched for its entries, not for what is written to them.
    """

    fd: int
    path: str
    names: frozenset[bytes] | None
    way: bool = False

    def wants(self, name: bytes) -> bool:
        """Whether an event of that name is a reason to look; `..tmp-…` and old generations never are."""
        if self.names is not None:
            return name in self.names
        return not name.startswith(b"..") or name == b"..data"


@dataclass
class Activity:
    """What has been seen since the last `drain`."""

    count: int = 0
    """Events of names that matter."""
    urgent: bool = False
    """One of them is a reason to look now: not only that somebody has written, and is not done."""
    lost: bool = False
    """The queue overflowed: anything may have happened."""
    moved: bool = False
    """The path may mean another directory: a watched one is gone or has another name, or an entry on the way changed."""
    arrived: bool = False
    """The directory of the content, or a link on the way to it, came by rename: what it holds was made before."""
    last: dict[bytes, int] = field(default_factory=dict)
    """For each name the last one of `STATES`."""
    kinds: dict[bytes, int] = field(default_factory=dict)
    """For each name all of its events, joined."""


class Hints(Protocol):
    """A source of hints, used by one thread."""

    mode: Mode
    fd: int | None
    """A descriptor that is readable while hints wait, None if the bell is rung instead."""

    def arm(self, targets: Sequence[Target]) -> None:
        """Watch these directories instead of those before. Raises `OSError` at a limit."""

    def drain(self) -> Activity:
        """Return what was seen since the last call, without waiting.

        Raises:
            OSError: the source has failed, and gives no more hints.
        """

    def close(self) -> None:
        """End, and give everything back."""


class InotifyHints:
    """Hints by inotify(7): no thread, no polling, no wake-up while nothing happens."""

    mode: Mode = "inotify"

    def __init__(self, _: Bell) -> None:
        self._inotify = Inotify()
        self.fd: int | None = self._inotify.fd
        self._targets: dict[int, list[Target]] = {}

    def arm(self, targets: Sequence[Target]) -> None:
        before, self._targets = set(self._targets), {}
        for target in targets:
            mask = Inotify.ENTRIES if target.way else Inotify.CHANGES
            number = self._inotify.add(f"/proc/self/fd/{target.fd}", mask | Inotify.MASK_ADD)
            # Two targets may be one directory, each with the names that it wants.
            self._targets.setdefault(number, []).append(target)
        for number in before - set(self._targets):
            self._inotify.remove(number)

    def drain(self) -> Activity:
        seen = Activity()
        for event in self._inotify.drain():
            seen.lost = seen.lost or bool(event.mask & Inotify.OVERFLOW)
            for target in self._targets.get(event.watch, ()):
                if event.name:
                    _note(seen, target, event)
                else:
                    seen.moved = seen.moved or bool(event.mask & _GONE)
            if event.mask & Inotify.IGNORED:
                self._targets.pop(event.watch, None)
                self._inotify.remove(event.watch)
        seen.urgent = seen.urgent or seen.lost or seen.moved
        return seen

    def close(self) -> None:
        self._inotify.close()


def _note(seen: Activity, target: Target, event: Event) -> None:
    if not target.wants(event.name):
        return
    seen.count += 1
    seen.urgent = seen.urgent or event.mask & Inotify.CHANGES != Inotify.MODIFY
    if target.way:
        seen.moved = True
        seen.arrived = bool(event.mask & Inotify.MOVED_TO)
        return
    seen.kinds[event.name] = seen.kinds.get(event.name, 0) | event.mask & Inotify.CHANGES
    if state := event.mask & STATES:
        seen.last[event.name] = state


class WatchfilesHints:
    """Hints by the `watchfiles` library, for systems without inotify. A thread waits for them."""

    mode: Mode = "watchfiles"

    def __init__(self, bell: Bell) -> None:
        self.fd: int | None = None
        self._bell = bell
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._seen = Activity()
        self._error: Exception | None = None
        self._paths: dict[str, Target] = {}

    def arm(self, targets: Sequence[Target]) -> None:
        self._end_thread()
        self._paths = {target.path: target for target in targets}
        if self._paths:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="sidecar-watchfiles", daemon=True
            )
            self._ready.clear()
            self._thread.start()
            self._ready.wait(_WATCHFILES_START)
            self._raise_error()

    def drain(self) -> Activity:
        with self._lock:
            seen, self._seen = self._seen, Activity()
        self._raise_error()
        return seen

    def close(self) -> None:
        self._end_thread()

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise OSError(getattr(error, "errno", None) or errno.EIO, str(error)) from error

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            try:
                self._watch(stop)
            except Exception as error:  # noqa: BLE001 (whatever that library raises, the source must not die unseen)
                # One file name that is not UTF-8 is enough: everything must be looked at, and it begins again.
                failed = time.monotonic() - started < _WATCHFILES_LIVED
                self._take(0, lost=True, error=error if failed else None)
                self._ready.set()
                if failed:
                    return

    def _watch(self, stop: threading.Event) -> None:
        import watchfiles

        for changes in watchfiles.watch(
            *self._paths,
            watch_filter=None,
            debounce=_WATCHFILES_DEBOUNCE_MS,
            step=_WATCHFILES_STEP_MS,
            rust_timeout=_WATCHFILES_ROUND_MS,
            yield_on_timeout=True,
            stop_event=stop,
            recursive=False,
            force_polling=False,
            raise_interrupt=False,
        ):
            self._take(sum(self._matters(path) for _, path in changes))
            self._ready.set()

    def _matters(self, path: str) -> bool:
        directory, name = os.path.split(path)
        target = self._paths.get(directory)
        # macOS reports the real path: where no directory matches, every change is a hint.
        return target is None or target.wants(os.fsencode(name))

    def _take(self, count: int, *, lost: bool = False, error: Exception | None = None) -> None:
        if not count and not lost:
            return
        with self._lock:
            self._seen.count += count
            self._seen.urgent = True
            self._seen.lost = self._seen.lost or lost
            self._error = self._error or error
        self._bell.ring()


class PollHints:
    """No hints at all: the re-check finds every change."""

    mode: Mode = "poll"

    def __init__(self, _: Bell) -> None:
        self.fd: int | None = None

    def arm(self, targets: Sequence[Target]) -> None: ...

    def drain(self) -> Activity:
        return Activity()

    def close(self) -> None: ...


def best_mode(filesystem: str) -> Mode:
    """Return the mode for a type of file system on this platform, as `--watch auto` does."""
    if is_remote(filesystem):
        return "poll"
    return "inotify" if sys.platform == "linux" else "watchfiles"


def source(mode: Mode, bell: Bell) -> Hints:
    """Make the source of hints of that mode.

    Raises:
        OSError: `EMFILE` where no further inotify instance is to be had, `ENOSYS` where there is no such source at all.
    """
    made: dict[Mode, Callable[[Bell], Hints]] = {
        "inotify": InotifyHints,
        "watchfiles": WatchfilesHints,
        "poll": PollHints,
    }
    try:
        return made[mode](bell)
    except (ImportError, RuntimeError) as error:
        raise OSError(errno.ENOSYS, f"{mode} cannot be used here: {error}") from error
