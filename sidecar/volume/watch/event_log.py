"""The events of names whose content has not been accepted yet. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.fs.notify import base
from sidecar.fs.notify.inotify import Inotify

_MAX_NAMES = 1 << 16


@dataclass
class EventLog:
    """The events of names whose content has not been accepted yet."""

    last: dict[str, int] = field(default_factory=dict)
    """The last state event of each name."""
    before_scan: dict[str, int] = field(default_factory=dict)
    """The same at the start of the scan."""
    during_scan: dict[str, int] = field(default_factory=dict)
    """All events of each name since the start of the scan, combined."""
    renamed_in: bool = False
    """Whether the directory itself arrived by rename."""

    def add(self, batch: base.EventBatch, aliases: Mapping[str, str]) -> None:
        """Record a batch of events."""
        if batch.lost:
            self.forget()
        if batch.moved:
            self.renamed_in = batch.renamed_in
        if len(self.last) > _MAX_NAMES:
            self.forget()  # bounds the memory if another process keeps creating names
        for raw, kinds in batch.kinds.items():
            name = os.fsdecode(raw)
            name = aliases.get(name, name)
            self.during_scan[name] = self.during_scan.get(name, 0) | kinds
            if raw in batch.last:
                self.last[name] = batch.last[raw]

    def scan_started(self) -> None:
        """Separate events before the scan from events during the scan."""
        self.before_scan = dict(self.last)
        self.during_scan.clear()

    def forget(self) -> None:
        """Discard all events: some were lost, so the state of every name is unknown."""
        self.last.clear()
        self.before_scan.clear()
        self.during_scan.clear()

    def mark_closed(self, name: str) -> None:
        """Treat a name as closed although no close event arrived."""
        self.last.pop(name, None)

    def prune(self, present: Mapping[str, object], waiting: Mapping[str, object]) -> None:
        """Discard the events of names that were accepted or no longer exist."""
        self.last = {
            name: state
            for name, state in self.last.items()
            if name in present
            and (name in waiting or name in self.during_scan or state == Inotify.MODIFY)
        }
        self.renamed_in = False
