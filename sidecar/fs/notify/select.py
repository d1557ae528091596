"""Select and open the notifier for a file system.

Three notifiers implement the protocol `Notifier`:
`InotifyNotifier` on Linux, `WatchfilesNotifier` on other systems,
and `PollNotifier`, which has no events, for file systems whose events are not reliable.
Each one wakes a `WakeupPipe` or is polled together with it, so that one thread can wait for everything.
"""

from __future__ import annotations

import sys

from sidecar.fs.notify.base import Mode, Notifier, PollNotifier
from sidecar.fs.notify.inotify import InotifyNotifier
from sidecar.fs.notify.wakeup import WakeupPipe

#: On these file systems, changes made by another machine or behind the mount send no events.
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
    """Open the notifier of that mode.

    Raises:
        OSError: `EMFILE` if no inotify instance is left, `ENOSYS` if the mode is not available on this system.
    """
    match mode:
        case "inotify":
            return InotifyNotifier(wakeup)
        case "watchfiles":
            # Imported here because Linux does not need it.
            from sidecar.fs.notify.watchfiles_backend import WatchfilesNotifier

            return WatchfilesNotifier(wakeup)
        case "poll":
            return PollNotifier(wakeup)
