"""The names that may have changed since a scan, according to events. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.fs import layout
from sidecar.fs.notify import base

#: Above this number of names, everything is scanned; bounds the memory.
_MAX_CHANGED_NAMES = 4096


@dataclass
class Changes:
    """Names and directories to scan again, or everything."""

    everything: bool = False
    names: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.names or self.folders)

    def add(self, batch: base.EventBatch, aliases: Mapping[str, str]) -> None:
        """Add a batch of events; an event without a name may concern any name."""
        nameless = batch.count > 0 and not batch.kinds
        if batch.lost or batch.moved or nameless:
            self.everything = True
        for raw in batch.kinds:
            name = os.fsdecode(raw)
            self.names.add(aliases.get(name, name))
        self.folders |= {key[:-1] for key in batch.ended if key.endswith("/")}
        if layout.DATA in self.names or len(self.names) > _MAX_CHANGED_NAMES:
            self.everything = True

    def join(self, other: Changes) -> None:
        """Add the changes of another object."""
        self.everything = self.everything or other.everything
        self.names |= other.names
        self.folders |= other.folders
