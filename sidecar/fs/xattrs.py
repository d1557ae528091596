"""The extended attribute `user.sidecar` of a file or a directory: a few bytes that belong to the inode.

It is written to a temporary file before the rename, so it becomes visible together with the content,
and each hard link of the file has it, too; see xattr(7).
Every process that can write to a volume can set it, so its value is never trusted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable
from typing import Final

NAME: Final = "user.sidecar"
MAX_BYTES: Final = 4096
"""Maximum size of a value. ext4 stores all attributes of a file in one block."""
#: The file system has no such attributes (`tmpfs` before Linux 6.6, NFS before 4.2, FAT, many FUSE), has no space
#: for this one, or a security module forbids it.
_REFUSED_ERRNOS = (
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.E2BIG,
    errno.ERANGE,
)
_RAW_NAME = NAME.encode()


def write(fd: int, value: bytes) -> bool:
    """Set the attribute of an open file or directory; return False if the file system does not take it.

    Raises:
        OSError: as fsetxattr(2).
    """
    if not hasattr(os, "setxattr"):
        return False
    try:
        os.setxattr(fd, NAME, value)
    except OSError as error:
        if error.errno in _REFUSED_ERRNOS:
            return False
        raise
    return True


def read(fd: int) -> bytes | None:
    """Return the attribute of an open file or directory; None if there is none, or one of more than `MAX_BYTES`.

    The descriptor must not be `O_PATH`. Never raises.
    """
    # Not os.getxattr: for a missing attribute, the usual case, its exception takes longer than the call.
    function = _fgetxattr()
    if function is None:
        return None
    buffer = ctypes.create_string_buffer(MAX_BYTES)
    size = function(fd, _RAW_NAME, buffer, MAX_BYTES)
    return buffer.raw[:size] if size >= 0 else None


def remove(fd: int) -> None:
    """Remove the attribute of an open file, if it has one. Never raises."""
    if hasattr(os, "removexattr"):
        with contextlib.suppress(OSError):
            os.removexattr(fd, NAME)


def copy(source: int, target: int) -> None:
    """Copy the attribute of one open file to another, if possible. Never raises."""
    value = read(source)
    if value is not None:
        with contextlib.suppress(OSError):
            write(target, value)


@functools.cache
def _fgetxattr() -> Callable[..., int] | None:
    if not hasattr(os, "setxattr"):
        return None  # macOS has a function of this name with other parameters
    function = ctypes.CDLL(None, use_errno=True).fgetxattr
    function.restype = ctypes.c_ssize_t
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    return function
