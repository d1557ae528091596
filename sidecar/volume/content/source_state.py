"""Whether the source of a content is stale: what a publisher that copies from elsewhere says beside the content.

It is a hidden file, `..source.json`, written when a source becomes stale and when it is fresh again:

    {"stale": true, "since": "2026-11-30T12:00:00+00:00", "reasons": {"etcd+http://etcd:2379/app/": "no answer within 10 s"}}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson

from sidecar.fs import layout, openat

_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class SourceState:
    """What the publisher says of its sources: why they are stale, by their names, and since when (Unix seconds)."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    since: float = 0.0

    @property
    def stale(self) -> str | None:
        """Why the content may be out of date, None while it is not.

        >>> SourceState({"etcd": "no answer"}).stale
        'the source etcd is stale: no answer'
        """
        for name, reason in self.reasons.items():
            return f"the source {name} is stale: {reason}"
        return None

    def json(self) -> bytes:
        """Return it as it is written beside the content."""
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        return orjson.dumps(
            {"stale": bool(self.reasons), "since": since, "reasons": dict(self.reasons)}
        )


def parse(data: bytes) -> SourceState:
    """Return what a file says; what cannot be understood says nothing: it must not make a content unreadable.

    >>> parse(SourceState({"etcd": "away"}, 60.0).json())
    SourceState(reasons={'etcd': 'away'}, since=60.0)
    >>> parse(b"{")
    SourceState(reasons={}, since=0.0)
    """
    try:
        found = orjson.loads(data)
        reasons = {
            name: reason for name, reason in found["reasons"].items() if isinstance(reason, str)
        }
        return SourceState(reasons, datetime.fromisoformat(found["since"]).timestamp())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return SourceState()


def read(dir_fd: int) -> SourceState:
    """Return what is said in an open directory; nothing where there is no such file, or one that is not plain.

    >>> fd = os.open("/", os.O_RDONLY)
    >>> read(fd), os.close(fd)
    (SourceState(reasons={}, since=0.0), None)
    """
    try:
        fd = openat.open_beneath(dir_fd, layout.SOURCE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return SourceState()
    try:
        return parse(os.read(fd, _MAX_BYTES))
    except OSError:
        return SourceState()
    finally:
        openat.close(fd)
