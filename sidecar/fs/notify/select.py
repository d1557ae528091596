"""Where hints come from: which source suits a file system, and how it is had.

Three of them behind one small protocol, `Notifier`:
`InotifyNotifier` on Linux, which wakes nobody while nothing happens;
`WatchfilesNotifier` elsewhere;
`PollNotifier`, which gives none, for where events cannot be trusted.
All of them ring a `WakeupPipe` or are waited for together with one, so that one thread can wait for everything at once.
"""

from __future__ import annotations

import errno
import sys

from sidecar.fs.notify.base import Mode, Notifier, PollNotifier
from sidecar.fs.notify.inotify import InotifyNotifier
from sidecar.fs.notify.wakeup import WakeupPipe

#: Changes made on another machine, or behind the mount, send no events here.
REMOTE_FILESYSTEMS = frozenset(
    (
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "drvfs", "fakeowner", "fuse"),
        *("gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs"),
        *("pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    )
)


def is_remote(filesystem: str) -> bool:
    """Whether files of this type of file system can change without an event (`fuse.sshfs` too)."""
    return filesystem.split(".", 1)[0] in REMOTE_FILESYSTEMS


def best_mode(filesystem: str) -> Mode:
    """Return the mode for a type of file system on this platform, as `--watch auto` does."""
    if is_remote(filesystem):
        return "poll"
    return "inotify" if sys.platform == "linux" else "watchfiles"


def open_notifier(mode: Mode, wakeup: WakeupPipe) -> Notifier:
    """Make the source of hints of that mode.

    Raises:
        OSError: `EMFILE` where no further inotify instance is to be had, `ENOSYS` where there is no such source at all.
    """
    try:
        return _create(mode, wakeup)
    except (ImportError, RuntimeError) as error:
        raise OSError(errno.ENOSYS, f"{mode} cannot be used here: {error}") from error


def _create(mode: Mode, wakeup: WakeupPipe) -> Notifier:
    match mode:
        case "inotify":
            return InotifyNotifier(wakeup)
        case "watchfiles":
            # Imported here: nobody pays for it on Linux.
            from sidecar.fs.notify.watchfiles_backend import WatchfilesNotifier

            return WatchfilesNotifier(wakeup)
        case "poll":
            return PollNotifier(wakeup)
