"""Who may change what in a directory of several users: groups, the sticky bit, capabilities, mount points.

A rename is refused for reasons that its error does not tell apart: "operation not permitted" is a sticky directory,
a file that is immutable, or a mount. What is asked here before a change finds the reason, and says what to change.
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
    """Give a new directory the group and mode that the one above it allows, whatever the umask.

    It is mode 0755, and where a group shares the directory above, that group may write in it, too;
    the set-group-id bit stays, by which files get the group (Kubernetes sets it for `fsGroup`).
    Nothing is inherited from a directory with the sticky bit: there each user's names are protected from the others.

    Raises:
        ChownDenied: the process may not give it to `group`.
    """
    above = os.fstat(above_fd)
    shared = _is_shared_by_group(above)
    if group is not None:
        oserrors.set_group(fd, group)
    elif shared and os.fstat(fd).st_gid != above.st_gid:
        with contextlib.suppress(OSError):  # not a member: then it is ours alone
            os.fchown(fd, -1, above.st_gid)
    own = os.fstat(fd)
    mode = DIRECTORY_MODE | (own.st_mode & stat.S_ISGID)
    if shared and own.st_gid == above.st_gid:
        mode |= stat.S_IWGRP | (above.st_mode & stat.S_ISGID)
    _set_mode(fd, mode)


def inherit_parent_access(fd: int, above_fd: int) -> None:
    """Let all those write to a new directory who may write to the one above it, under the same sticky bit."""
    set_directory_access(fd, above_fd)
    above = os.fstat(above_fd).st_mode
    _set_mode(fd, os.fstat(fd).st_mode | (above & (stat.S_IWGRP | _STICKY_FOR_ALL)))


def restrict_files(dir_fd: int, names: Iterable[str], mode: int, group: int | None) -> None:
    """Take from files of ours what `mode` does not permit, and give them to `group`. Never raises, follows no link.

    Files of other users stay as they are: somebody may have planted a link to one of them.
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
    """Raise what a rename over `name`, or its removal, would meet, as far as that can be known before.

    `where` is the path of the entry, by which mounts are known.

    Raises:
        Refused: `EPERM`: the sticky bit protects it; `EACCES`: the directory may not be written.
        OSError: `EBUSY`: it is a mount of its own.
    """
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    check_sticky(os.fstat(dir_fd), status)
    check_not_mounted(name, where)


def check_not_mounted(name: str, where: str) -> None:
    """Raise `OSError` (`EBUSY`) if something is mounted on an entry, by its path."""
    if mounts.is_mount_point(where):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)


def check_sticky(directory: os.stat_result, status: os.stat_result) -> None:
    """Raise `Refused` if the sticky bit of a directory keeps this user from replacing an entry of it (unlink(2))."""
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
    """Raise `Refused` (`EACCES`) if this user may not make names in a directory, `OSError` (`EROFS`) if nobody may."""
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
    """Return the error of a change of `name` in a directory with the reason that can be found for it."""
    try:
        check_writable(dir_fd)
        check_sticky(os.fstat(dir_fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except Refused as refused:
        return refused
    except OSError:
        pass
    return error


def follows_no_links_of_others(directory: os.stat_result) -> bool:
    """Whether other users cannot follow the links that we make in a directory; see proc_sys_fs(5), `protected_symlinks`.

    In a directory that is sticky and writable for all only the owner of a link follows it,
    unless the directory is the link's owner's.
    """
    if directory.st_mode & _STICKY_FOR_ALL != _STICKY_FOR_ALL or directory.st_uid == os.geteuid():
        return False
    try:
        with open("/proc/sys/fs/protected_symlinks", "rb") as setting:
            return setting.read().strip() != b"0"
    except OSError:
        return True  # as nearly everywhere


def _is_shared_by_group(directory: os.stat_result) -> bool:
    """Whether a group is meant to write in it. Mode 0777 means nobody, unless the set-group-id bit names a group."""
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
