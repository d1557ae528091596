"""System calls that Python, or the Python at hand, has no function for."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable


def call(name: str, *arguments: int | bytes) -> int:
    """Call a function of the C library that returns -1 in case of an error, and return its result.

    Raises:
        OSError: the error that it set; `ENOSYS` if the library does not have it.
    """
    function = _find(name)
    result = -1 if function is None else function(*arguments)
    if result < 0:
        code = errno.ENOSYS if function is None else ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@functools.cache
def _find(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
