"""What may have changed on the disk since a look, as far as events tell. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.fs import layout
from sidecar.fs.notify import base

#: Names beyond which everything is looked at: a neighbour can make them without end.
_MAX_CHANGED_NAMES = 4096


@dataclass
class Changes:
    """Names and directories to look at again, or everything."""

    everything: bool = False
    names: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.names or self.folders)

    def add(self, batch: base.EventBatch, aliases: Mapping[str, str]) -> None:
        """Take over what events have told; one that tells no name may mean any."""
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
        """Add what another one holds."""
        self.everything = self.everything or other.everything
        self.names |= other.names
        self.folders |= other.folders
