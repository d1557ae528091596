"""Memory that is not needed any more is given back to the kernel; and how often garbage is looked for.

Importing and configuring leaves holes in the C library's heap, and nothing else ever closes them:
half a MB of a reader's 39. The call costs a few milliseconds, so it is not made while requests wait on it
but once, when the program has settled. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

import gc

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


def collect_seldom() -> None:
    """Look for garbage in cycles when there are 10,000 new objects that could be some, not 700.

    With ten thousand clients that wait, each look at all objects is 0.2 s in which nobody is answered,
    and answering them was half that. There are hardly any cycles to find: a request leaves none behind.
    For the commands alone: how often a program of a user's collects is the user's own matter.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
