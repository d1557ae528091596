"""Filters for the loose files of a directory: name patterns as in shells and `.gitignore`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

#: Temporary files of editors and copying tools: swap files, backups, locks, and Vim's probe file.
EDITORS = ("*.swp", "*.swx", "*.swpx", "*~", "#*#", ".#*", "4913", "*.kate-swp", ".goutputstream-*")


@dataclass(frozen=True)
class Filter:
    """Patterns that a name must and must not match; an empty `include` means all.

    A pattern with a `/` is compared with the whole relative name, any other pattern with the last component.
    Directories are compared with `exclude` only; excluded directories are skipped completely.

    >>> wanted = Filter(include=("*.conf",), exclude=("old-*", "sites/b.conf"))
    >>> [n for n in ("a.conf", "a.txt", "old-a.conf", "sites/b.conf") if wanted.takes(n)]
    ['a.conf']
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = EDITORS
    _included: _Patterns = field(init=False, repr=False, compare=False)
    _excluded: _Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _Patterns(self.include))
        object.__setattr__(self, "_excluded", _Patterns(self.exclude))

    def takes(self, name: str) -> bool:
        """Whether a file of that name is included."""
        return (not self.include or self._included.match(name)) and not self._excluded.match(name)

    def enters(self, name: str) -> bool:
        """Whether a directory of that name is entered."""
        return not self._excluded.match(name)


class _Patterns:
    """Compiled patterns for whole names and for last components."""

    def __init__(self, patterns: Collection[str]) -> None:
        self._full_name = _compile([pattern.lstrip("/") for pattern in patterns if "/" in pattern])
        self._last_part = _compile([pattern for pattern in patterns if "/" not in pattern])

    def match(self, name: str) -> bool:
        if self._last_part is not None and self._last_part(name.rpartition("/")[2]):
            return True
        return self._full_name is not None and self._full_name(name) is not None


def _compile(patterns: Collection[str]) -> Callable[[str], object] | None:
    return re.compile("|".join(map(fnmatch.translate, patterns))).match if patterns else None


#: The filter that includes all names.
EVERYTHING = Filter(exclude=())
