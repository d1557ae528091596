"""Map errors of the operating system to publish errors, with an explanation and a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import TracebackType

from sidecar import _errors

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
#: Errors that concern only one name.
_NAME_CONFLICT_ERRNOS = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR)

#: The mount point of the service account token, unless the Pod disables it.
_POD_SECRETS = "/var/run/secrets/kubernetes.io"
_STORAGE_FAILING = "(the storage behind the volume is failing)"
_OWN_MOUNT = (
    "the target is a mount of its own and cannot be replaced"
    " (mount the directory, not a single file by subPath)"
)
_NO_DESCRIPTOR = "no file descriptor is left (raise the limit RLIMIT_NOFILE)"
_REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "no space or no inodes left on the volume"
    " (it needs space for the new content in addition to the old; enlarge it or delete files)",
    errno.EDQUOT: "the disk quota is used up (raise the quota or delete files)",
    errno.EROFS: "read-only file system (is the volume mounted readOnly?)",
    errno.EBUSY: _OWN_MOUNT,
    errno.EXDEV: _OWN_MOUNT,
    errno.ENOENT: "the directory does not exist (is the volume mounted there?)",
    errno.ENOTDIR: "a part of the path is a file or a link, not a directory"
    " (remove it or choose another name)",
    errno.ELOOP: "a part of the path is a symbolic link, which is not followed here (remove it)",
    errno.EISDIR: "a directory lies in the place of the file (remove it or choose another name)",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EIO: f"{os.strerror(errno.EIO).lower()} {_STORAGE_FAILING}",
    errno.ESTALE: f"{os.strerror(errno.ESTALE).lower()} {_STORAGE_FAILING}",
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.ENFILE: _NO_DESCRIPTOR,
    errno.EFBIG: "the file would be larger than the file system or RLIMIT_FSIZE permits",
}


class Refused(PermissionError):
    """An error whose text already explains what is not permitted, and the remedy."""


class ChownDenied(Refused):
    """The process may not change a file to that group."""


class ChmodDenied(Refused):
    """A file cannot have the requested mode, because the mount fixes the modes of all its files."""


class SymlinksUnsupported(Refused):
    """The file system has no symbolic links."""


class map_publish_errors:  # noqa: N801 (used as a function; a class costs a fraction of a generator, several times a publish)
    """Convert an `OSError` into a `PublishError` that names the remedy.

    `what` completes "cannot …", as in "publish /shared/config".

    Raises:
        VolumeFull: `ENOSPC`, `EDQUOT`.
        VolumeUnavailable: every other error of the operating system.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, _errors.SidecarError):
            full = error.errno in NO_SPACE_ERRNOS
            raised = _errors.VolumeFull if full else _errors.VolumeUnavailable
            raise raised(error.errno, f"cannot {self._what}: {hint(error)}") from error


class map_name_errors(map_publish_errors):  # noqa: N801
    """As `map_publish_errors`, for one name in an open directory: a conflict of the name is not an error of the volume.

    Raises:
        NameTaken: `ENOTDIR`, `ELOOP`, `EISDIR`.
        NameRefused: `ENAMETOOLONG`: the limit of this file system is lower than usual.
        VolumeFull, VolumeUnavailable: as `map_publish_errors`.
    """

    __slots__ = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, _errors.SidecarError):
            if error.errno in _NAME_CONFLICT_ERRNOS:
                raise _errors.NameTaken(f"cannot {self._what}: {hint(error)}") from error
            if error.errno == errno.ENAMETOOLONG:
                raise _errors.NameRefused(f"cannot {self._what}: {hint(error)}") from error
        super().__exit__(kind, error, traceback)


def hint(error: OSError) -> str:
    """Return the explanation of an error of the operating system, and its remedy."""
    if isinstance(error, Refused):
        return str(error.strerror)
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied for user {os.geteuid()} and group {os.getegid()}"
            f" (give the directory to them, or {share_remedy()})"
        )
    return _REMEDIES.get(error.errno or 0) or os.strerror(error.errno or 0).lower()


def in_pod() -> bool:
    """Whether the process runs in a Kubernetes Pod, whose securityContext can be changed."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or os.path.isdir(_POD_SECRETS)


def share_remedy() -> str:
    """Return how to give a directory a shared group: in the Pod, or by hand."""
    if in_pod():
        return "set fsGroup in the Pod's securityContext"
    return "chgrp it to a group of this user and chmod g+rwx it"


def set_group(fd: int, group: int) -> None:
    """Set the group of an open file or directory.

    Raises:
        ChownDenied: not permitted, or the mount fixes the groups of all its files.
    """
    if os.fstat(fd).st_gid == group:
        return
    try:
        os.fchown(fd, -1, group)
    except PermissionError as error:
        membership = "fsGroup or supplementalGroups" if in_pod() else "usermod --append --groups"
        raise ChownDenied(
            error.errno,
            f"user {os.geteuid()} may not give files to group {group}"
            f" (make it a member by {membership}, or leave the group out;"
            " where the mount fixes the group of all files, as with vfat and CIFS, set it there: gid=)",
        ) from error
