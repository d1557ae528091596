"""Access rights in directories with several users: groups, the sticky bit, capabilities, mount points.

The error of a failed rename is ambiguous: "operation not permitted" can mean a sticky directory,
an immutable file, or a mount. The checks of this module find the reason in advance, and name the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable

from sidecar.fs import mounts, oserrors
from sidecar.fs.oserrors import Refused

DIRECTORY_MODE = 0o755
_CAP_FOWNER = 3
_STICKY_FOR_ALL = stat.S_ISVTX | stat.S_IWOTH


def set_directory_access(fd: int, above_fd: int, group: int | None = None) -> None:
    """Set group and mode of a new directory according to its parent, independent of the umask.

    The mode is 0755. If a group shares the parent directory, that group may write to the new one, too;
    the set-group-ID bit, by which files inherit the group, is kept (Kubernetes sets it for `fsGroup`).
    Nothing is inherited from a parent with the sticky bit, which protects the entries of each user.

    Raises:
        ChownDenied: the process may not change the directory to `group`.
    """
    above = os.fstat(above_fd)
    shared = _is_shared_by_group(above)
    if group is not None:
        oserrors.set_group(fd, group)
    elif shared and os.fstat(fd).st_gid != above.st_gid:
        with contextlib.suppress(
            OSError
        ):  # not a member of the group: then only this user may write
            os.fchown(fd, -1, above.st_gid)
    own = os.fstat(fd)
    mode = DIRECTORY_MODE | (own.st_mode & stat.S_ISGID)
    if shared and own.st_gid == above.st_gid:
        mode |= stat.S_IWGRP | (above.st_mode & stat.S_ISGID)
    _set_mode(fd, mode)


def inherit_parent_access(fd: int, above_fd: int) -> None:
    """Give a new directory the write permissions and the sticky bit of its parent."""
    set_directory_access(fd, above_fd)
    above = os.fstat(above_fd).st_mode
    _set_mode(fd, os.fstat(fd).st_mode | (above & (stat.S_IWGRP | _STICKY_FOR_ALL)))


def restrict_files(dir_fd: int, names: Iterable[str], mode: int, group: int | None) -> None:
    """Remove permissions beyond `mode` from files of this user, and set `group`. Never raises, follows no links.

    Files of other users are not changed: the entry may be a hard link that another user created.
    """
    for name in names:
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
            try:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    if group is not None:
                        oserrors.set_group(fd, group)
                    os.fchmod(fd, stat.S_IMODE(status.st_mode) & mode)
            finally:
                os.close(fd)


def check_replaceable(dir_fd: int, name: str, where: str) -> None:
    """Raise the error that replacing or deleting `name` would meet, as far as known in advance.

    `where` is the path of the entry, used to detect mounts.

    Raises:
        Refused: `EPERM`: the sticky bit protects the entry; `EACCES`: the directory is not writable.
        OSError: `EBUSY`: the entry is a mount point.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    check_sticky(os.fstat(dir_fd), status)
    check_not_mounted(name, where)


def check_not_mounted(name: str, where: str) -> None:
    """Raise `OSError` (`EBUSY`) if the entry is a mount point."""
    if mounts.is_mount_point(where):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)


def check_sticky(directory: os.stat_result, status: os.stat_result) -> None:
    """Raise `Refused` if the sticky bit of the directory forbids this user to replace the entry (unlink(2))."""
    if not directory.st_mode & stat.S_ISVTX:
        return
    user = os.geteuid()
    if user in (status.st_uid, directory.st_uid) or _ignores_owners():
        return
    raise Refused(
        errno.EPERM,
        f"it belongs to user {status.st_uid}, and in a directory with the sticky bit user {user} may not replace it"
        f" (publish it as user {status.st_uid}, let that user remove it, or take the bit away: chmod -t)",
    )


def check_writable(dir_fd: int) -> None:
    """Raise `Refused` (`EACCES`) if this user may not write to the directory, `OSError` (`EROFS`) if it is read-only."""
    if os.fstatvfs(dir_fd).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not os.access(f"/proc/self/fd/{dir_fd}", os.W_OK | os.X_OK, effective_ids=True):
        status = os.fstat(dir_fd)
        by_pod = f", or {oserrors.share_remedy()}" if oserrors.in_pod() else ""
        raise Refused(
            errno.EACCES,
            f"the directory belongs to user {status.st_uid} and group {status.st_gid},"
            f" mode {stat.S_IMODE(status.st_mode):04o}, and user {os.geteuid()} may not write there"
            f" (let its owner give it to a group of this user and chmod g+w it{by_pod})",
        )


def explain(error: PermissionError, dir_fd: int, name: str) -> PermissionError:
    """Return the error for a failed change of `name`, with the reason if it can be determined."""
    try:
        check_writable(dir_fd)
        check_sticky(os.fstat(dir_fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except Refused as refused:
        return refused
    except OSError:
        pass
    return error


def blocks_foreign_links(directory: os.stat_result) -> bool:
    """Whether other users cannot follow links created in the directory; see proc_sys_fs(5), `protected_symlinks`.

    In a sticky directory that is writable for all, only the owner of a link can follow it,
    unless the owner of the link also owns the directory.
    """
    if directory.st_mode & _STICKY_FOR_ALL != _STICKY_FOR_ALL or directory.st_uid == os.geteuid():
        return False
    try:
        with open("/proc/sys/fs/protected_symlinks", "rb") as setting:
            return setting.read().strip() != b"0"
    except OSError:
        return True  # as nearly everywhere


def _is_shared_by_group(directory: os.stat_result) -> bool:
    """Whether the directory is shared by a group. Mode 0777 alone is not, unless the set-group-ID bit is set."""
    mode = directory.st_mode
    if not mode & stat.S_IWGRP or mode & stat.S_ISVTX:
        return False
    return bool(mode & stat.S_ISGID) or not mode & stat.S_IWOTH


def _set_mode(fd: int, mode: int) -> None:
    if os.fstat(fd).st_mode & 0o7777 != mode & 0o7777:
        with contextlib.suppress(PermissionError):  # the mount fixes the modes (vfat, CIFS)
            os.fchmod(fd, mode & 0o7777)


def _ignores_owners() -> bool:
    """Whether the process may act as the owner of any file: capabilities(7), CAP_FOWNER."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_FOWNER & 1)
    return os.geteuid() == 0
