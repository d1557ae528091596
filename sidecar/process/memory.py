"""Memory that is not needed any more is given back to the kernel; and how often garbage is looked for.

Importing and configuring leaves holes in the C library's heap, and nothing else ever closes them:
half a MB of a reader's 39. The call costs a few milliseconds, so it is not made while requests wait on it
but once, when the program has settled. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def trim_heap() -> bool:
    """Return unused pages of the heap to the kernel; tells whether this C library can.

    >>> trim_heap() in (True, False)
    True
    """
    import ctypes  # a fifth of a megabyte: only for those who come here

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # musl and macOS have no such thing
        return False
    return True


def lower_mmap_threshold(size: int = 64 << 10) -> bool:
    """Have each buffer of at least so many bytes returned as soon as it is freed, in the whole process.

    The C library does so by itself until the first one is freed, and from then on keeps them for the next:
    a megabyte of a collector that makes bodies of a few hundred kilobytes all the time.
    It costs a page fault for every 4 KiB.

    >>> lower_mmap_threshold() in (True, False)
    True
    """
    return _set(_M_MMAP_THRESHOLD, size)


def raise_mmap_threshold(size: int = 8 << 20) -> bool:
    """Keep up to about so many freed bytes for the next buffers, in the whole process, until `trim_heap`.

    The opposite of `lower_mmap_threshold`, for who fills and frees the same buffers thousands of times a second:
    fetching their pages from the kernel each time cost a collector as much as copying the lines into them.

    >>> raise_mmap_threshold() in (True, False)
    True
    """
    return _set(_M_MMAP_THRESHOLD, size) and _set(_M_TRIM_THRESHOLD, size)


def use_single_arena() -> bool:
    """Let all threads that begin from now on allocate from one heap, not from one each.

    Threads that wait for a disk and hand over what they have read do not compete for it,
    and what one has freed the next one takes: 4 MB less of a collector that moves lines.

    >>> use_single_arena() in (True, False)
    True
    """
    return _set(_M_ARENA_MAX, 1)


def _set(parameter: int, value: int) -> bool:
    """Set one of the parameters of malloc. https://man7.org/linux/man-pages/man3/mallopt.3.html."""
    import ctypes

    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except (AttributeError, OSError):  # musl and macOS have no such thing
        return False


def relax_gc() -> None:
    """Look for garbage in cycles when there are 10,000 new objects that could be some, not 700.

    With ten thousand clients that wait, each look at all objects is 0.2 s in which nobody is answered,
    and answering them was half that. There are hardly any cycles to find: a request leaves none behind.
    For the commands alone: how often a program of a user's collects is the user's own matter.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
