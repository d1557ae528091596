"""Memory that starting up has used is given back, once; and how often garbage is looked for.

Importing and configuring leaves holes in the C library's heap, and nothing else ever closes them:
half a MB of a reader's 39. The call costs a few milliseconds, so it is not made while requests wait on it
but once, when the program has settled. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

import gc


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


def collect_seldom() -> None:
    """Look for garbage in cycles when there are 10,000 new objects that could be some, not 700.

    With ten thousand clients that wait, each look at all objects is 0.2 s in which nobody is answered,
    and answering them was half that. There are hardly any cycles to find: a request leaves none behind.
    For the commands alone: how often a program of a user's collects is the user's own matter.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
