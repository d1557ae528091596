"""What events have told of names whose content has not been accepted since. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.fs.notify import base
from sidecar.fs.notify.inotify import Inotify

_MAX_NAMES = 1 << 16


@dataclass
class EventLog:
    """What events have told of names whose content has not been accepted since."""

    last: dict[str, int] = field(default_factory=dict)
    """The state of each name by its last event."""
    before_scan: dict[str, int] = field(default_factory=dict)
    """The same when the look began."""
    during_scan: dict[str, int] = field(default_factory=dict)
    """All events of each name since then, joined."""
    renamed_in: bool = False
    """The directory as a whole came by rename."""

    def add(self, batch: base.EventBatch, aliases: Mapping[str, str]) -> None:
        """Take over what events have told."""
        if batch.lost:
            self.forget()
        if batch.moved:
            self.renamed_in = batch.renamed_in
        if len(self.last) > _MAX_NAMES:
            self.forget()  # a neighbour makes names without end: none of them is worth the memory
        for raw, kinds in batch.kinds.items():
            name = os.fsdecode(raw)
            name = aliases.get(name, name)
            self.during_scan[name] = self.during_scan.get(name, 0) | kinds
            if raw in batch.last:
                self.last[name] = batch.last[raw]

    def scan_started(self) -> None:
        """Tell apart what was known before a look from what happens during it."""
        self.before_scan = dict(self.last)
        self.during_scan.clear()

    def forget(self) -> None:
        """Forget all names: events are missing, so nothing is known of who writes what."""
        self.last.clear()
        self.before_scan.clear()
        self.during_scan.clear()

    def mark_closed(self, name: str) -> None:
        """Take a name for closed although no event said so."""
        self.last.pop(name, None)

    def prune(self, present: Mapping[str, object], waiting: Mapping[str, object]) -> None:
        """Forget what has been accepted, and what is not there."""
        self.last = {
            name: state
            for name, state in self.last.items()
            if name in present
            and (name in waiting or name in self.during_scan or state == Inotify.MODIFY)
        }
        self.renamed_in = False
