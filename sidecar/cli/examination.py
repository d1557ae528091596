"""What `sidecar doctor` looks at: each examination is a small generator of findings.

They run in an order in which a hanging storage shows itself: what was found so far has been told by then.
Everything that is tried is undone, and bears a name that no consumer looks at.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from sidecar import _errors
from sidecar.disk import atomic, beneath, events
from sidecar.disk.inotify import Inotify
from sidecar.volume import history, loading, snapshot

State = Literal["ok", "note", "wrong"]
Role = Literal["read", "write"]
BOTH: tuple[Role, ...] = ("read", "write")

_OLD = 60.0
"""Seconds after which a temporary file is taken to be left over: no publish takes as long."""
_SLOW_SYNC = 0.1
_TIGHT_SPACE = 1 << 20
_TIGHT_INODES = 16
_EVENT_TIMEOUT = 1.0
_FEW_WATCHES = 1024
_SHOWN = 5
_LIMITS = "/proc/sys/fs/inotify/"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do about it."""

    subject: str
    state: State
    text: str
    remedy: str | None = None
    roles: tuple[Role, ...] = BOTH
    """Whom it concerns: what only a writer needs does not fail a reader."""


@dataclass
class Patient:
    """The path under examination, and what the examinations have learned about it."""

    path: str
    directory: str = ""
    """The directory that counts, empty as long as there is none."""
    fd: int = -1
    name: str | None = None
    """The file's name in it, None where the path is a directory."""
    filesystem: str = "unknown"
    writable: bool = False
    size: int = 0
    entries: list[str] = field(default_factory=list)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def examine(path: str) -> Iterator[Finding]:
    """Yield what is found, from the ground up; what rests on something that is missing is left out."""
    patient = Patient(os.path.abspath(path) + ("/" if path.endswith("/") else ""))
    try:
        yield _process()
        yield from _place(patient)
        yield from _mount(patient)
        if patient.fd >= 0:
            for look in (_access, _space, _write, _left_overs, _layout, _content, _events, _limits):
                yield from look(patient)
            yield _opening()
    finally:
        patient.close()


def _process() -> Finding:
    """Who we are, because most of what follows depends on it."""
    groups = sorted({os.getegid(), *os.getgroups()})
    names = ", ".join(map(str, groups))
    return Finding("process", "ok", f"user {_user(os.geteuid())}, groups {names}")


def _place(patient: Patient) -> Iterator[Finding]:
    """What lies at the path; opens the directory that counts."""
    whole = patient.path
    plain = whole.rstrip("/") or "/"
    try:
        status = os.stat(plain)
    except FileNotFoundError:
        yield from _missing(patient, plain)
        return
    except OSError as error:
        yield Finding(
            "path", "wrong", f"{plain} cannot be looked at: {_reason(error)}", _permission_remedy()
        )
        return
    if stat.S_ISDIR(status.st_mode):
        patient.directory = plain
        yield Finding("path", "ok", f"a directory, {_rights(status)}")
    elif stat.S_ISREG(status.st_mode) and not whole.endswith("/"):
        patient.directory, patient.name = os.path.split(plain)
        patient.size = status.st_size
        yield Finding("path", "ok", f"a file of {status.st_size} bytes, {_rights(status)}")
    else:
        yield Finding(
            "path",
            "wrong",
            f"{beneath.kind_of(status.st_mode)}, and only regular files and directories can be shared",
            "remove it, or name another path",
        )
        return
    yield from _open(patient)


def _missing(patient: Patient, plain: str) -> Iterator[Finding]:
    """Nothing is there: the nearest directory above tells whether a writer can make it."""
    parent = os.path.dirname(plain)
    if os.path.islink(plain):
        yield Finding(
            "path",
            "wrong",
            f"a symbolic link to {os.readlink(plain)}, which does not exist",
            "remove the link, or make what it points to",
        )
    elif not patient.path.endswith("/") and os.path.isdir(parent):
        patient.directory, patient.name = os.path.split(plain)
        yield Finding("path", "note", "not there yet: a writer makes it, and a reader waits for it")
        yield from _open(patient)
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
            else _permission_remedy(),
            roles=("write",),
        )


def _open(patient: Patient) -> Iterator[Finding]:
    try:
        patient.fd = beneath.open_directory(patient.directory)
        patient.entries = os.listdir(patient.fd)
    except OSError as error:
        patient.close()
        yield Finding(
            "directory",
            "wrong",
            f"{patient.directory} cannot be opened: {_reason(error)}",
            _permission_remedy(),
        )
        return
    if patient.name is not None:
        yield Finding("directory", "ok", f"{patient.directory}, {_rights(os.fstat(patient.fd))}")


def _mount(patient: Patient) -> Iterator[Finding]:
    """Where the volume begins, of which kind it is, and whether it is only a file of one."""
    plain = patient.path.rstrip("/") or "/"
    if atomic.is_single_file_mount(plain):
        yield Finding(
            "mount",
            "wrong",
            "the file is a mount of its own (subPath): it cannot be replaced, and never shows an update",
            "mount the directory that holds it, without subPath",
        )
        return
    point, patient.filesystem = beneath.mount_point(patient.directory or plain)
    where = f"{patient.filesystem}, mounted at {point}"
    if point == "/":
        yield Finding(
            "mount",
            "note",
            f"{where}: this is the root file system, not a volume",
            "in a Pod, mount a volume there that both containers share; on one machine this is fine",
        )
    elif patient.filesystem == "overlay":
        yield Finding(
            "mount", "note", f"{where}: a container's own layer, which no other container sees"
        )
    else:
        yield Finding("mount", "ok", where)
    if patient.fd >= 0 and os.fstatvfs(patient.fd).f_flag & os.ST_RDONLY:
        yield Finding(
            "mount",
            "wrong",
            "mounted read-only",
            "mount it without readOnly in the container that writes",
            roles=("write",),
        )


def _access(patient: Patient) -> Iterator[Finding]:
    """Whether this user may read and write, by the kernel's own judgement."""
    here = f"/proc/self/fd/{patient.fd}" if sys.platform == "linux" else patient.directory
    if not os.access(here, os.R_OK | os.X_OK, effective_ids=True):
        yield Finding(
            "access",
            "wrong",
            f"{patient.directory} may not be read",
            _permission_remedy(),
            ("read",),
        )
    patient.writable = os.access(here, os.W_OK | os.X_OK, effective_ids=True)
    read_only = os.fstatvfs(patient.fd).f_flag & os.ST_RDONLY
    if not patient.writable and not read_only:
        yield Finding(
            "access",
            "wrong",
            f"{patient.directory} may not be written",
            _permission_remedy(),
            ("write",),
        )


def _space(patient: Patient) -> Iterator[Finding]:
    """Room for the new content beside the old. Some file systems do not count inodes and say 0 of 0."""
    numbers = os.fstatvfs(patient.fd)
    free, inodes = numbers.f_bavail * numbers.f_frsize, numbers.f_favail
    counts_inodes = numbers.f_files > 0
    text = f"{_bytes(free)} free" + (f", {inodes} inodes free" if counts_inodes else "")
    if free == 0 or (counts_inodes and inodes == 0):
        yield Finding(
            "space", "wrong", text, "enlarge the volume, or delete something", roles=("write",)
        )
    elif free < max(patient.size, _TIGHT_SPACE) or (counts_inodes and inodes < _TIGHT_INODES):
        yield Finding(
            "space",
            "note",
            f"{text}: a publish needs room for the new content beside the old",
            "enlarge the volume",
            roles=("write",),
        )
    else:
        yield Finding("space", "ok", text)


def _write(patient: Patient) -> Iterator[Finding]:
    """Try a publish in small: every step of it, timed, under names that nobody reads."""
    if not patient.writable:
        return
    names = [f"{atomic.TEMPORARY}doctor-{secrets.token_hex(8)}" for _ in range(2)]
    staged: atomic.Staged | None = None
    begin = time.perf_counter()
    try:
        with atomic.locked(patient.fd, timeout=5.0, where=patient.directory):
            staged = atomic.Staged(patient.fd)
            staged.write(b"sidecar doctor was here\n")
            staged.seal(0o644, None)
            linked = _try_link(patient.fd, staged, names[1])
            staged.replace(names[0], patient.fd)
            atomic.sync_directory(patient.fd)
    except (OSError, _errors.SidecarError) as error:
        yield Finding("publish", "wrong", f"a publish fails: {_reason(error)}", roles=("write",))
        return
    finally:
        if staged is not None:
            staged.discard()
        for name in names:
            atomic.remove_tree(patient.fd, name)
    took = time.perf_counter() - begin
    slow = took > _SLOW_SYNC
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


def _try_link(dir_fd: int, staged: atomic.Staged, name: str) -> str | None:
    try:
        staged.link_into(dir_fd, name)
    except OSError as error:
        return _reason(error)
    return None


def _left_overs(patient: Patient) -> Iterator[Finding]:
    """What killed writers have left behind, of ours and of kubelet's."""
    found = [
        name
        for name in patient.entries
        if (name.startswith(atomic.TEMPORARY) or name == "..data_tmp") and _is_old(patient.fd, name)
    ]
    if found:
        yield Finding(
            "left-overs",
            "note",
            f"{len(found)} of a writer that was killed: {', '.join(sorted(found)[:3])}",
            "the next start of a writer sweeps what is ours; they do no harm until then",
            roles=("write",),
        )


def _is_old(dir_fd: int, name: str) -> bool:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return time.time() - status.st_mtime > _OLD


def _layout(patient: Patient) -> Iterator[Finding]:
    """How the files are laid out, which tells who publishes here."""
    generation = atomic.link_target(patient.fd, atomic.DATA)
    if generation is None:
        links = [n for n in patient.entries if not n.startswith(".") and _is_link(patient.fd, n)]
        if ".worktrees" in patient.entries:
            text = f"a volume of git-sync; name its link: {', '.join(sorted(links)) or 'not there yet'}"
        else:
            files = sum(not n.startswith(atomic.HIDDEN) for n in patient.entries)
            text = f"loose files, {files} {'entry' if files == 1 else 'entries'}"
        yield Finding("layout", "ok", text)
    elif generation.startswith(atomic.GENERATION):
        yield Finding("layout", "ok", f"a set published by sidecar, generation {generation}")
    else:
        yield Finding(
            "layout",
            "ok",
            f"a ConfigMap, Secret or projected volume, written by kubelet ({generation})",
        )
        yield Finding(
            "layout",
            "wrong",
            "kubelet owns this volume and overwrites what others publish in it",
            "publish to a volume of its own, such as an emptyDir",
            roles=("write",),
        )
    if history.DIRECTORY in patient.entries:
        yield Finding("history", "ok", f"kept under {history.DIRECTORY}")


def _content(patient: Patient) -> Iterator[Finding]:
    """Read it the way a reader does, which refuses what must not be served."""
    unspeakable = [n for n in patient.entries if not _is_text(n)]
    if unspeakable and patient.name is None:
        yield Finding(
            "names",
            "note",
            f"{len(unspeakable)} of the names are not UTF-8 and are left out",
            "rename them",
            roles=("read",),
        )
    try:
        if patient.name is None:
            sighting = loading.load_directory(
                patient.fd, patient.directory, limit=snapshot.MAX_SIZE, before=None
            )
        else:
            sighting = loading.load_file(
                patient.fd, patient.directory, patient.name, limit=snapshot.MAX_SIZE, before=None
            )
    except _errors.NothingPublished:
        yield Finding("content", "note", "nothing has been published yet")
        return
    except (OSError, _errors.SidecarError) as error:
        yield Finding("content", "wrong", _reason(error), roles=("read",))
        return
    problems = list(sighting.problems.values())
    for problem in problems[:_SHOWN]:
        yield Finding("content", "wrong", problem, roles=("read",))
    if len(problems) > _SHOWN:
        more = f"{len(problems) - _SHOWN} more files that must not or cannot be read"
        yield Finding("content", "wrong", more, roles=("read",))
    found = sighting.snapshot
    files = "one file" if len(found) == 1 else f"{len(found)} files"
    yield Finding("content", "ok", f"{files}, {_bytes(found.size)}, version {found.version}")


def _events(patient: Patient) -> Iterator[Finding]:
    """Whether events arrive, by provoking one: opening the directory does that, and needs no right to write."""
    if events.is_remote(patient.filesystem):
        yield Finding(
            "events",
            "note",
            f"{patient.filesystem} tells nothing of changes made on other machines: readers poll here",
            "see --recheck for how often",
            roles=("read",),
        )
        return
    if sys.platform != "linux":
        yield Finding("events", "note", "no inotify on this system: watchfiles is used instead")
        return
    try:
        arrived = _provoke_event(patient.fd)
    except OSError as error:
        yield Finding(
            "events",
            "note",
            f"inotify refuses: {_reason(error)}; readers poll, and try again",
            "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches on the node",
            roles=("read",),
        )
        return
    yield Finding(
        "events",
        "ok" if arrived else "note",
        "inotify events arrive"
        if arrived
        else "inotify accepts a watch, and its events do not arrive",
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


def _limits(_: Patient) -> Iterator[Finding]:
    """The node's limits of inotify, which all its containers share for each user."""
    found: dict[str, int] = {}
    for name in ("max_user_watches", "max_user_instances", "max_queued_events"):
        with contextlib.suppress(OSError, ValueError), open(_LIMITS + name, "rb") as file:
            found[name] = int(file.read())
    if not found:
        return
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    few = found.get("max_user_watches", _FEW_WATCHES) < _FEW_WATCHES
    yield Finding(
        "limits",
        "note" if few else "ok",
        f"fs.inotify: {text}",
        "raise fs.inotify.max_user_watches on the node" if few else None,
        roles=("read",),
    )


def _opening() -> Finding:
    if beneath.openat2_works():
        return Finding("openat2", "ok", "the kernel itself keeps reads inside the volume")
    return Finding(
        "openat2",
        "ok",
        "not available (kernel before 5.6, or seccomp): paths are walked with a check at each step",
    )


def _is_link(dir_fd: int, name: str) -> bool:
    return atomic.link_target(dir_fd, name) is not None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, _errors.SidecarError):
        return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return atomic.remedy(error) if isinstance(error, OSError) else str(error)


def _permission_remedy() -> str:
    return (
        f"give it to user {os.geteuid()} or group {os.getegid()},"
        " or set fsGroup in the Pod's securityContext"
    )


def _rights(status: os.stat_result) -> str:
    group = _name(lambda: grp.getgrgid(status.st_gid).gr_name)
    return (
        f"owner {_user(status.st_uid)}, group {status.st_gid}{group},"
        f" mode {stat.S_IMODE(status.st_mode):04o}"
    )


def _user(number: int) -> str:
    return f"{number}{_name(lambda: pwd.getpwuid(number).pw_name)}"


def _name(look_up: Callable[[], str]) -> str:
    """Return a name in brackets; a slim image often has none for a number."""
    try:
        return f" ({look_up()})"
    except KeyError:
        return ""


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{count} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{count} bytes"
