"""One look at the disk: what was found, how far it can be trusted, and by what it is known again."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sidecar import _errors
from sidecar.fs import openat
from sidecar.volume.content.snapshot import Snapshot


class FileStates(NamedTuple):
    """What was seen on the disk, to tell without reading whether it is still the same."""

    directory: tuple[int, int]
    """Device and inode of the directory."""
    generation: str | None
    """What `..data` pointed at, None for files that lie loose."""
    signatures: Mapping[str, openat.StatSignature]
    """The state of each file that was read."""
    folders: Mapping[str, openat.StatSignature]
    """The state of each directory that was listed: it changes when names come, go or are replaced."""
    doubtful: Mapping[str, float]
    """Names that a coarse clock could hide a further change of, since when (monotonic seconds)."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """One look at the disk: a snapshot, and how far it can be trusted."""

    snapshot: Snapshot[None]
    mark: FileStates
    unsettled: frozenset[str]
    """Names that changed while they were read."""
    linked: frozenset[str]
    """Names of files that have another name too: they were not made where they were found."""
    problems: Mapping[str, str]
    """Why a name of a directory could not be read, in words; its last good content stands in."""
    unread: frozenset[str] = frozenset()
    """Unsettled names of large files that were not read to the end: they have no version."""
    touched: frozenset[str] | None = None
    """The names that were looked at, where the others were taken over from the sighting before; None for all."""

    def whole(self) -> Snapshot[None]:
        """Return the snapshot, for one who looks only once.

        Raises:
            ReadError: a large file changed while it was read.
        """
        for name in self.unread:
            raise _errors.ReadError(
                errno.EBUSY,
                f"cannot read {name}: it changes while it is read (is it being written?)",
            )
        return self.snapshot

    def without(self, held: frozenset[str], before: ScanResult | None) -> ScanResult:
        """Return the same look with the content of `held` names as it was before, or without them."""
        old = before.mark.signatures if before is not None else {}
        known = {
            name: content
            for name in held
            if before is not None and (content := before.snapshot.get_content(name)) is not None
        }
        signatures = dict(self.mark.signatures)
        for name in held:
            signatures.pop(name, None)
            if name in old and name in known:
                signatures[name] = old[name]
        snapshot = self.snapshot.replaced(known, held - known.keys())
        return replace(self, snapshot=snapshot, mark=self.mark._replace(signatures=signatures))

    def altered(self, before: ScanResult | None) -> list[str]:
        """Return the names of files that are other ones than those of `before`, or were read anew."""
        if self.touched is not None:
            return [name for name in self.touched if name in self.snapshot]
        return self.snapshot.other_than(before.snapshot.contents() if before is not None else {})

    def gone(self, before: ScanResult) -> frozenset[str]:
        """Return the names of `before` that are not there any more."""
        names = before.snapshot.keys() if self.touched is None else self.touched
        now, then = self.snapshot.keys(), before.snapshot.keys()
        return frozenset(name for name in names if name not in now and name in then)
