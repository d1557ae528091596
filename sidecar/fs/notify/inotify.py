"""The inotify(7) backend: events of directories, converted to event batches. Linux only."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import io
import os
import struct
import termios
from collections.abc import Sequence
from typing import NamedTuple

from sidecar.fs import libc
from sidecar.fs.notify.base import EventBatch, Mode, WatchTarget
from sidecar.fs.notify.wakeup import WakeupPipe

_EVENT = struct.Struct("iIII")  # struct inotify_event without its name
#: Bytes of the first read; more than twice the size of the largest event.
_READ_BUFFER_BYTES = 1 << 12
_MAX_USER_WATCHES_PATH = "/proc/sys/fs/inotify/max_user_watches"
#: If the kernel does not report its limit: half of its long-standing default.
_DEFAULT_MAX_WATCHES = 4096


class Event(NamedTuple):
    """One inotify event: the watch number, the mask (see inotify(7)), and the raw name of the entry."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify descriptor: `add` directories, `drain` events without waiting.

    Names are bytes, because file names may be invalid UTF-8.
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
    #: If a directory is added again, combine the masks.
    MASK_ADD = 0x20000000
    #: Events that add, remove or replace entries of a directory, or the directory itself.
    ENTRIES = CREATE | MOVED_FROM | MOVED_TO | DELETE | DELETE_SELF | MOVE_SELF
    #: The same, and events that change the content of files.
    CHANGES = ENTRIES | MODIFY | CLOSE_WRITE

    def __init__(self) -> None:
        # A file closes its descriptor once, and when nobody uses it any more.
        self._file = io.FileIO(libc.call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK))
        self.fd = self._file.fileno()
        """The descriptor, readable while events are pending."""

    def add(self, path: str, mask: int = CHANGES) -> int:
        """Watch a directory and return the watch number of its events.

        `/proc/self/fd/N` watches an open directory, regardless of its current name.

        Raises:
            OSError: `ENOSPC` at the limit of watches, else as inotify_add_watch(2).
        """
        return libc.call("inotify_add_watch", self.fd, os.fsencode(path), mask)

    def remove(self, number: int) -> None:
        """Remove a watch; no error if the kernel has already removed it."""
        with contextlib.suppress(OSError):
            libc.call("inotify_rm_watch", self.fd, number)

    def drain(self) -> list[Event]:
        """Return the pending events in order, without waiting.

        Events that arrive meanwhile are left for the next call, so that a fast writer cannot block the return.
        """
        events: list[Event] = []
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, _READ_BUFFER_BYTES)
            events += _parse(data)
            if len(data) > _READ_BUFFER_BYTES // 2:
                events += _parse(os.read(self.fd, max(_pending_bytes(self.fd), _READ_BUFFER_BYTES)))
        return events

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()


def _pending_bytes(fd: int) -> int:
    """Return the size of the pending events in bytes (`FIONREAD`, see inotify(7))."""
    number = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, number)
    return number[0]


def _parse(data: bytes) -> list[Event]:
    events: list[Event] = []
    position = 0
    while position < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, position)
        position += _EVENT.size
        events.append(Event(watch, mask, data[position : position + length].rstrip(b"\0")))
        position += length
    return events


#: Events of a watched directory itself that end the watch or change its path.
_WATCH_ENDED = Inotify.DELETE_SELF | Inotify.MOVE_SELF | Inotify.UNMOUNT | Inotify.IGNORED
#: The last of these events determines the state of a name.
STATES = Inotify.CREATE | Inotify.MODIFY | Inotify.CLOSE_WRITE | Inotify.MOVED_TO


class InotifyNotifier:
    """The notifier for inotify(7): no thread, no polling, no wake-ups while nothing changes."""

    mode: Mode = "inotify"
    supports_nested = True

    def __init__(self, _: WakeupPipe) -> None:
        self._inotify = Inotify()
        self.fd: int | None = self._inotify.fd
        self._targets: dict[int, list[WatchTarget]] = {}
        self._followed: dict[str, set[int]] = {}
        self._max_targets = 0

    def arm(self, targets: Sequence[WatchTarget]) -> None:
        self._max_targets = _max_watches()
        before, self._targets = set(self._targets), {}
        self._followed.clear()
        for target in targets:
            self._add(target)
        for number in before - set(self._targets):
            self._inotify.remove(number)

    def follow(self, target: WatchTarget) -> None:
        if len(self._targets) >= self._max_targets:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        number = self._add(target)
        if target.key is not None:
            self._followed.setdefault(target.key, set()).add(number)

    def unfollow(self, key: str) -> None:
        for number in self._followed.pop(key, ()):
            remaining = [target for target in self._targets.get(number, ()) if target.key != key]
            if remaining:
                self._targets[number] = remaining
            elif self._targets.pop(number, None) is not None:
                self._inotify.remove(number)

    def drain(self) -> EventBatch:
        batch = EventBatch()
        for event in self._inotify.drain():
            batch.lost = batch.lost or bool(event.mask & Inotify.OVERFLOW)
            for target in self._targets.get(event.watch, ()):
                if event.name:
                    _add_event(batch, target, event)
                elif target.key is None:
                    batch.moved = batch.moved or bool(event.mask & _WATCH_ENDED)
                elif event.mask & Inotify.IGNORED:
                    batch.ended.add(target.key)
            if event.mask & Inotify.IGNORED:
                self._targets.pop(event.watch, None)
                self._inotify.remove(event.watch)
        batch.urgent = batch.urgent or batch.lost or batch.moved
        return batch

    def close(self) -> None:
        self._inotify.close()

    def _add(self, target: WatchTarget) -> int:
        mask = Inotify.ENTRIES if target.is_path_link else Inotify.CHANGES
        number = self._inotify.add(f"/proc/self/fd/{target.fd}", mask | Inotify.MASK_ADD)
        # Two targets may share a directory, each with its own names.
        self._targets.setdefault(number, []).append(target)
        return number


def _max_watches() -> int:
    """Return the maximum number of watched directories: half of the limit per user."""
    with contextlib.suppress(OSError, ValueError), open(_MAX_USER_WATCHES_PATH) as file:
        return max(1, int(file.read()) // 2)
    return _DEFAULT_MAX_WATCHES


def _add_event(batch: EventBatch, target: WatchTarget, event: Event) -> None:
    if not target.matches(event.name):
        return
    batch.count += 1
    batch.urgent = batch.urgent or event.mask & Inotify.CHANGES != Inotify.MODIFY
    if target.is_path_link:
        batch.moved = True
        batch.renamed_in = bool(event.mask & Inotify.MOVED_TO)
        return
    name = target.event_name(event.name)
    batch.kinds[name] = batch.kinds.get(name, 0) | event.mask & Inotify.CHANGES
    if state := event.mask & STATES:
        batch.last[name] = state
