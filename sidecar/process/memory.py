"""Return unused memory to the kernel, and tune the garbage collector.

Importing and configuring leaves holes in the C library's heap that nothing else closes:
half a MB of a reader's 39. The call takes a few milliseconds, so it runs not while requests wait
but once, after the start. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def trim_heap() -> bool:
    """Return unused heap pages to the kernel; returns whether the C library supports that.

    >>> trim_heap() in (True, False)
    True
    """
    import ctypes  # 0.2 MB of memory, so not at module level

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # musl and macOS have no such thing
        return False
    return True


def lower_mmap_threshold(size: int = 64 << 10) -> bool:
    """Make the C library return each buffer of at least `size` bytes when it is freed, in the whole process.

    It does so by default until the first one is freed, and from then on keeps them for reuse:
    a megabyte of a collector that creates bodies of a few hundred kilobytes all the time.
    It costs a page fault per 4 KiB.

    >>> lower_mmap_threshold() in (True, False)
    True
    """
    return _set(_M_MMAP_THRESHOLD, size)


def raise_mmap_threshold(size: int = 8 << 20) -> bool:
    """Keep about `size` freed bytes for reuse, in the whole process, until `trim_heap`.

    The opposite of `lower_mmap_threshold`, for programs that fill and free the same buffers thousands of times a second:
    fetching their pages from the kernel each time cost a collector as much as copying the lines.

    >>> raise_mmap_threshold() in (True, False)
    True
    """
    return _set(_M_MMAP_THRESHOLD, size) and _set(_M_TRIM_THRESHOLD, size)


def use_single_arena() -> bool:
    """Make all threads started from now on allocate from one heap instead of one each.

    Threads that wait for a disk and hand over what they have read do not compete for it,
    and memory freed by one thread is reused by the next: 4 MB less of a collector that moves lines.

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
    """Run the cyclic garbage collector after 10,000 new container objects instead of 700.

    With ten thousand waiting clients each run takes 0.2 s in which no request is answered,
    half of the time of answering them. There are few cycles to find: a request leaves none.
    Only for our commands: in a user's program the thresholds are the user's choice.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
