"""Checks for writers: free space, each step of a publish, and conflicting files."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator

from sidecar import _errors
from sidecar.cli.doctor.report import Finding, Role, Target, format_amount, reason
from sidecar.fs import atomic, atomic_writer, dirs, flock, layout

_STALE_TEMP_FILE_SECONDS = 60.0
"""Seconds after which a temporary file counts as left over: no publish takes as long."""
_SLOW_SYNC_SECONDS = 0.1
_WRITE: tuple[Role, ...] = ("write",)
_MIN_FREE_BYTES = 1 << 20
_MIN_FREE_INODES = 16


def space(target: Target) -> Iterator[Finding]:
    """Free space for the new content in addition to the old. Some file systems do not count inodes and report 0 of 0."""
    numbers = os.fstatvfs(target.fd)
    free, inodes = numbers.f_bavail * numbers.f_frsize, numbers.f_favail
    counts_inodes = numbers.f_files > 0
    text = f"{format_amount(free)} free" + (f", {inodes} inodes free" if counts_inodes else "")
    if free == 0 or (counts_inodes and inodes == 0):
        yield Finding(
            "space", "wrong", text, "enlarge the volume, or delete something", roles=("write",)
        )
    elif free < max(target.size, _MIN_FREE_BYTES) or (counts_inodes and inodes < _MIN_FREE_INODES):
        yield Finding(
            "space",
            "note",
            f"{text}: a publish needs space for the new content in addition to the old",
            "enlarge the volume",
            roles=("write",),
        )
    else:
        yield Finding("space", "ok", text)


def write(target: Target) -> Iterator[Finding]:
    """Try each step of a publish with a small file, under hidden names, and measure the time."""
    if not target.writable:
        return
    names = [f"{layout.TEMPORARY}doctor-{secrets.token_hex(8)}" for _ in range(2)]
    staged: atomic.TempFile | None = None
    begin = time.perf_counter()
    try:
        with flock.directory_lock(target.fd, timeout=5.0, where=target.directory, create=False):
            staged = atomic.TempFile(target.fd)
            staged.write(b"sidecar doctor was here\n")
            staged.finalize(target.mode, target.group)
            linked = _try_link(target.fd, staged, names[1])
            staged.rename_into(names[0], target.fd)
            atomic.sync_directory(target.fd)
    except (OSError, _errors.SidecarError) as error:
        yield Finding("publish", "wrong", f"a publish fails: {reason(error)}", roles=("write",))
        return
    finally:
        if staged is not None:
            staged.discard()
        for name in names:
            dirs.rmtree(target.fd, name)
    took = time.perf_counter() - begin
    slow = took > _SLOW_SYNC_SECONDS
    yield Finding(
        "publish",
        "note" if slow else "ok",
        f"write, fsync, rename, fsync of the directory work, in {took * 1e3:.1f} ms",
        "every publish waits for this storage; a faster storage class helps" if slow else None,
        roles=("write",),
    )
    if linked is not None:
        yield Finding(
            "history",
            "note",
            f"hard links do not work here ({linked}): single files have no history to roll back to",
            roles=("write",),
        )


def write_set(target: Target) -> Iterator[Finding]:
    """Try to write a small set: a generation with a nested file, under a hidden name."""
    if not target.writable:
        return
    made = ""
    try:
        with flock.directory_lock(target.fd, timeout=5.0, where=target.directory, create=False):
            files = {"doctor": b"sidecar", "nested/doctor": b"was here"}
            made = atomic_writer.build(target.fd, files, mode=target.mode, group=target.group)
    except (OSError, _errors.SidecarError) as error:
        yield Finding("set", "wrong", f"a set cannot be published: {reason(error)}", None, _WRITE)
        return
    finally:
        if made:
            dirs.rmtree(target.fd, made)
    yield Finding("set", "ok", "a set of files, nested ones too, can be written", None, _WRITE)


def _try_link(dir_fd: int, staged: atomic.TempFile, name: str) -> str | None:
    try:
        staged.link_into(dir_fd, name)
    except OSError as error:
        return reason(error)
    return None


def left_overs(target: Target) -> Iterator[Finding]:
    """Temporary files of killed writers: ours and the kubelet's."""
    found = [
        name
        for name in target.entries
        if (name.startswith(layout.TEMPORARY) or name == "..data_tmp")
        and _is_old(target.fd, name)
        and flock.is_orphan(target.fd, name)
    ]
    if found:
        yield Finding(
            "left-overs",
            "note",
            f"{len(found)} of a writer that was killed: {', '.join(sorted(found)[:3])}",
            "the next start of a writer removes those of sidecar; they do no harm until then",
            roles=("write",),
        )


def _is_old(dir_fd: int, name: str) -> bool:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return time.time() - status.st_mtime > _STALE_TEMP_FILE_SECONDS
