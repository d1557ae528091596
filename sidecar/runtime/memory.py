"""Memory that is not needed any more is given back to the kernel.

Importing and configuring leaves holes in the C library's heap, and nothing else ever closes them:
1.7 MB of a reader's 44. The call costs a few milliseconds, so it is not made while requests wait on it
but once, when the program has settled. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

_M_MMAP_THRESHOLD = -3  # malloc.h


def give_back() -> bool:
    """Return unused pages of the heap to the kernel; tells whether this C library can.

    >>> give_back() in (True, False)
    True
    """
    import ctypes  # a fifth of a megabyte: only for those who come here

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # musl and macOS have no such thing
        return False
    return True


def keep_no_large(size: int = 64 << 10) -> bool:
    """Have each buffer of at least so many bytes returned as soon as it is freed, in the whole process.

    The C library does so by itself until the first one is freed, and from then on keeps them for the next:
    a megabyte of a collector that makes bodies of a few hundred kilobytes all the time.
    It costs a page fault for every 4 KiB. https://man7.org/linux/man-pages/man3/mallopt.3.html

    >>> keep_no_large() in (True, False)
    True
    """
    import ctypes

    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size))
    except (AttributeError, OSError):
        return False
