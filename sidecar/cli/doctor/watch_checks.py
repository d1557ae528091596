"""Checks of change detection: whether events arrive, and the inotify limits of the node."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

from sidecar.cli.doctor.report import Finding, Target, reason
from sidecar.fs.notify import select as events
from sidecar.fs.notify.inotify import Inotify

_EVENT_TIMEOUT = 1.0
_MIN_WATCHES = 1024
_LIMITS = "/proc/sys/fs/inotify/"


def arrivals(target: Target) -> Iterator[Finding]:
    """Whether events arrive: opening the directory triggers one and needs no write permission."""
    if events.is_remote(target.filesystem):
        yield Finding(
            "events",
            "note",
            f"{target.filesystem} sends no events for changes made on other machines: readers poll here",
            "--recheck sets the interval",
            roles=("read",),
        )
        return
    if sys.platform != "linux":
        yield Finding("events", "note", "no inotify on this system: watchfiles is used instead")
        return
    try:
        arrived = _provoke_event(target.fd)
    except OSError as error:
        yield Finding(
            "events",
            "note",
            f"inotify refuses: {reason(error)}; readers poll, and try again",
            "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches on the node",
            roles=("read",),
        )
        return
    yield Finding(
        "events",
        "ok" if arrived else "note",
        "inotify events arrive"
        if arrived
        else "inotify accepts a watch, but its events do not arrive",
        None if arrived else "let readers poll: --watch poll",
        roles=("read",),
    )


def _provoke_event(dir_fd: int) -> bool:
    opened = 0x20  # IN_OPEN, see inotify(7)
    inotify = Inotify()
    try:
        inotify.add(f"/proc/self/fd/{dir_fd}", opened)
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd))
        readable, _, _ = select.select([inotify.fd], [], [], _EVENT_TIMEOUT)
        return bool(readable and inotify.drain())
    finally:
        inotify.close()


def limits(_: Target) -> Iterator[Finding]:
    """The node's inotify limits, which all containers of a user share."""
    found: dict[str, int] = {}
    for name in ("max_user_watches", "max_user_instances", "max_queued_events"):
        with contextlib.suppress(OSError, ValueError), open(_LIMITS + name, "rb") as file:
            found[name] = int(file.read())
    if not found:
        return
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    few = found.get("max_user_watches", _MIN_WATCHES) < _MIN_WATCHES
    yield Finding(
        "limits",
        "note" if few else "ok",
        f"fs.inotify: {text}",
        "raise fs.inotify.max_user_watches on the node" if few else None,
        roles=("read",),
    )
