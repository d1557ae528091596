"""The result of one scan: the snapshot, its reliability, and the signatures to detect changes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sidecar import _errors
from sidecar.fs import openat
from sidecar.volume.content.snapshot import Snapshot


class FileStates(NamedTuple):
    """Signatures of the scanned files and directories, to detect changes without reading files."""

    directory: tuple[int, int]
    """Device and inode of the directory."""
    generation: str | None
    """The target of `..data`, None for loose files."""
    signatures: Mapping[str, openat.StatSignature]
    """The signature of each file that was read."""
    folders: Mapping[str, openat.StatSignature]
    """The signature of each listed directory: it changes when entries are added, removed or replaced."""
    unreliable: Mapping[str, float]
    """Names whose signature may hide a later change because the clock is coarse, since when (monotonic seconds)."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of one scan: a snapshot, and how reliable it is."""

    snapshot: Snapshot[None]
    states: FileStates
    changed_while_read: frozenset[str]
    """Names that changed while they were read."""
    linked: frozenset[str]
    """Names of files with more than one hard link: they were not created where they were found."""
    problems: Mapping[str, str]
    """For each name that could not be read, the reason; its last good content is used instead."""
    incomplete: frozenset[str] = frozenset()
    """Names of large files that changed while they were read: they have no version."""
    rescanned: frozenset[str] | None = None
    """The names that were scanned, if the others were reused from the previous scan; None for all."""

    def require_complete(self) -> Snapshot[None]:
        """Return the snapshot, for callers that scan only once.

        Raises:
            ReadError: a large file changed while it was read.
        """
        for name in self.incomplete:
            raise _errors.ReadError(
                errno.EBUSY,
                f"cannot read {name}: it changes while it is read (is it being written?)",
            )
        return self.snapshot

    def excluding(self, held: frozenset[str], before: ScanResult | None) -> ScanResult:
        """Return this scan with the names in `held` as they were in `before`, or without them."""
        old = before.states.signatures if before is not None else {}
        known = {
            name: content
            for name in held
            if before is not None and (content := before.snapshot.get_content(name)) is not None
        }
        signatures = dict(self.states.signatures)
        for name in held:
            signatures.pop(name, None)
            if name in old and name in known:
                signatures[name] = old[name]
        snapshot = self.snapshot.replaced(known, held - known.keys())
        return replace(self, snapshot=snapshot, states=self.states._replace(signatures=signatures))

    def changed_names(self, before: ScanResult | None) -> list[str]:
        """Return the names of files that differ from `before` or were read again."""
        if self.rescanned is not None:
            return [name for name in self.rescanned if name in self.snapshot]
        return self.snapshot.other_than(before.snapshot.contents() if before is not None else {})

    def removed_names(self, before: ScanResult) -> frozenset[str]:
        """Return the names of `before` that no longer exist."""
        names = before.snapshot.keys() if self.rescanned is None else self.rescanned
        now, then = self.snapshot.keys(), before.snapshot.keys()
        return frozenset(name for name in names if name not in now and name in then)
