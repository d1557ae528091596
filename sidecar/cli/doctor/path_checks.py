"""Checks of the path: the user, the file or directory, its mount, and permissions."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator

from sidecar.cli.doctor.report import (
    Finding,
    Target,
    permission_remedy,
    reason,
    remedy_for,
    rights,
    user_of,
)
from sidecar.fs import mounts, openat


def process() -> Finding:
    """The user and groups of this process."""
    groups = sorted({os.getegid(), *os.getgroups()})
    names = ", ".join(map(str, groups))
    return Finding("process", "ok", f"user {user_of(os.geteuid())}, groups {names}")


def path(target: Target) -> Iterator[Finding]:
    """The type of the path; opens the content directory."""
    whole = target.path
    plain = whole.rstrip("/") or "/"
    try:
        status = os.stat(plain)
    except FileNotFoundError:
        yield from _missing(target, plain)
        return
    except OSError as error:
        why = "its links lead in a circle" if error.errno == errno.ELOOP else reason(error)
        yield Finding("path", "wrong", f"{plain} cannot be examined: {why}", remedy_for(error))
        return
    if stat.S_ISDIR(status.st_mode):
        target.directory = plain
        yield Finding("path", "ok", f"a directory, {rights(status)}")
    elif stat.S_ISREG(status.st_mode) and not whole.endswith("/"):
        target.directory, target.name = os.path.split(plain)
        target.size = status.st_size
        yield Finding("path", "ok", f"a file of {status.st_size} bytes, {rights(status)}")
    else:
        yield Finding(
            "path",
            "wrong",
            f"{openat.kind_of(status.st_mode)}, and only regular files and directories can be shared",
            "remove it, or name another path",
        )
        return
    yield from _open(target)


def _missing(target: Target, plain: str) -> Iterator[Finding]:
    """The path is missing: check in the nearest existing directory whether a writer can create it."""
    parent = os.path.dirname(plain)
    if os.path.islink(plain):
        yield Finding(
            "path",
            "wrong",
            f"a symbolic link to {os.readlink(plain)}, which does not exist",
            "remove the link, or make what it points to",
        )
    elif not target.path.endswith("/") and os.path.isdir(parent):
        target.directory, target.name = os.path.split(plain)
        yield Finding("path", "note", "not there yet: a writer makes it, and a reader waits for it")
        yield from _open(target)
    else:
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        can = os.access(parent, os.W_OK | os.X_OK, effective_ids=True)
        yield Finding("path", "note", "not there yet: a reader waits for it", roles=("read",))
        yield Finding(
            "path",
            "note" if can else "wrong",
            f"not there yet: a writer would have to make it in {parent}"
            + ("" if can else ", which it may not write"),
            "make sure that the volume is mounted; then this is not where it is mounted"
            if can
            else permission_remedy(),
            roles=("write",),
        )


def _open(target: Target) -> Iterator[Finding]:
    try:
        target.fd = openat.open_directory(target.directory)
        target.entries = os.listdir(target.fd)
    except OSError as error:
        target.close()
        yield Finding(
            "directory",
            "wrong",
            f"{target.directory} cannot be opened: {reason(error)}",
            remedy_for(error),
        )
        return
    if target.name is not None:
        yield Finding("directory", "ok", f"{target.directory}, {rights(os.fstat(target.fd))}")


def mount(target: Target) -> Iterator[Finding]:
    """Mount point and type of the volume, and whether the file itself is a mount point."""
    plain = target.path.rstrip("/") or "/"
    if mounts.is_file_mount(plain):
        yield Finding(
            "mount",
            "wrong",
            "the file itself is a mount point (subPath): it cannot be replaced, and never shows an update",
            "mount the directory that holds it, without subPath",
        )
        return
    point, target.filesystem = mounts.mount_point(target.directory or plain)
    where = f"{target.filesystem}, mounted at {point}"
    if point == "/":
        yield Finding(
            "mount",
            "note",
            f"{where}: this is the root file system, not a volume",
            "in a Pod, mount a volume there that both containers share; on one machine this is fine",
        )
    elif target.filesystem == "overlay":
        yield Finding(
            "mount", "note", f"{where}: a container's own layer, which no other container sees"
        )
    else:
        yield Finding("mount", "ok", where)
    if target.fd >= 0 and os.fstatvfs(target.fd).f_flag & os.ST_RDONLY:
        yield Finding(
            "mount",
            "wrong",
            "mounted read-only",
            "mount it without readOnly in the container that writes",
            roles=("write",),
        )


def access(target: Target) -> Iterator[Finding]:
    """Whether the kernel allows this user to read and write."""
    here = f"/proc/self/fd/{target.fd}" if sys.platform == "linux" else target.directory
    if not os.access(here, os.R_OK | os.X_OK, effective_ids=True):
        yield Finding(
            "access",
            "wrong",
            f"{target.directory} may not be read",
            permission_remedy(),
            ("read",),
        )
    target.writable = os.access(here, os.W_OK | os.X_OK, effective_ids=True)
    read_only = os.fstatvfs(target.fd).f_flag & os.ST_RDONLY
    if not target.writable and not read_only:
        yield Finding(
            "access",
            "wrong",
            f"{target.directory} may not be written",
            permission_remedy(),
            ("write",),
        )
