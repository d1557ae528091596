"""What events have told of names whose content has not been accepted since. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.fs.notify import base
from sidecar.fs.notify.inotify import Inotify

_MOST_NAMES = 1 << 16


@dataclass
class EventLog:
    """What events have told of names whose content has not been accepted since."""

    last: dict[str, int] = field(default_factory=dict)
    """The state of each name by its last event."""
    known: dict[str, int] = field(default_factory=dict)
    """The same when the look began."""
    late: dict[str, int] = field(default_factory=dict)
    """All events of each name since then, joined."""
    arrived: bool = False
    """The directory as a whole came by rename."""

    def add(self, activity: base.EventBatch, aliases: Mapping[str, str]) -> None:
        """Take over what events have told."""
        if activity.lost:
            self.forget()
        if activity.moved:
            self.arrived = activity.arrived
        if len(self.last) > _MOST_NAMES:
            self.forget()  # a neighbour makes names without end: none of them is worth the memory
        for raw, kinds in activity.kinds.items():
            name = os.fsdecode(raw)
            name = aliases.get(name, name)
            self.late[name] = self.late.get(name, 0) | kinds
            if raw in activity.last:
                self.last[name] = activity.last[raw]

    def scan_started(self) -> None:
        """Tell apart what was known before a look from what happens during it."""
        self.known = dict(self.last)
        self.late.clear()

    def forget(self) -> None:
        """Forget all names: events are missing, so nothing is known of who writes what."""
        self.last.clear()
        self.known.clear()
        self.late.clear()

    def close(self, name: str) -> None:
        """Take a name for closed although no event said so."""
        self.last.pop(name, None)

    def settle(self, present: Mapping[str, object], waiting: Mapping[str, object]) -> None:
        """Forget what has been accepted, and what is not there."""
        self.last = {
            name: state
            for name, state in self.last.items()
            if name in present and (name in waiting or name in self.late or state == Inotify.MODIFY)
        }
        self.arrived = False
