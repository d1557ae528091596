"""A strict Loki: what `POST /loki/api/v1/push` takes in JSON, and what it says to everything else.

After pkg/loghttp/push and pkg/validation of Loki, see `field/log-tailers.md` section 6.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from aiohttp import web

from logs.fakes.receiver import Receiver, Request, WireError

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_STAMP = re.compile(r"\d{1,19}")
_LONGEST_LINE = 256 << 10
_OLDEST = 7 * 86400
_FUTURE = 600


class FakeLoki(Receiver):
    """Deduplicates (stream, time, line) as Loki does. Takes the valid part of a batch that it answers with 400."""

    path = "/loki/api/v1/push"

    def __init__(
        self, *, tenant: str | None = None, check_age: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.tenant = tenant
        self.check_age = check_age
        self.repeated = 0
        self.streams: dict[tuple[tuple[str, str], ...], list[tuple[int, str]]] = {}
        self.metadata: list[dict[str, str]] = []
        self._entries: set[tuple[object, int, str]] = set()

    def take(self, request: Request) -> web.Response:
        if not request.headers.get("Content-Type", "").startswith("application/json"):
            raise WireError("read as snappy: not a protobuf")
        if self.tenant is not None and request.headers.get("X-Scope-OrgID") != self.tenant:
            return web.Response(status=401, text="no org id")
        refused = []
        for stream, values in _streams(request.body):
            for moment, line, metadata in values:
                if reason := self._refusal(moment, line):
                    refused.append(reason)
                    continue
                self._keep(stream, moment, line, metadata)
        if refused:
            return web.Response(status=400, text=refused[0])
        return web.Response(status=204)

    def _refusal(self, moment: int, line: str) -> str | None:
        if len(line.encode()) > _LONGEST_LINE:
            return f"Max entry size '{_LONGEST_LINE}' bytes exceeded"
        age = time.time() - moment / 1e9
        if self.check_age and age > _OLDEST:
            return "entry has timestamp too old"
        if self.check_age and age < -_FUTURE:
            return "entry has timestamp too new"
        return "entry is poison" if self.poison(line) else None

    def _keep(self, stream: Any, moment: int, line: str, metadata: dict[str, str]) -> None:
        if (stream, moment, line) in self._entries:
            self.repeated += 1
            return
        self._entries.add((stream, moment, line))
        self.streams.setdefault(stream, []).append((moment, line))
        self.texts.append(line)
        self.metadata.append(metadata)


def _streams(body: bytes) -> list[tuple[Any, list[tuple[int, str, dict[str, str]]]]]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise WireError(f"no JSON: {error}") from error
    _only(found, {"streams"}, "the body")
    if not isinstance(found["streams"], list) or not found["streams"]:
        raise WireError("no streams")
    made = []
    for stream in found["streams"]:
        _only(stream, {"stream", "values"}, "a stream")
        labels = stream["stream"]
        if not isinstance(labels, dict) or not labels:
            raise WireError("at least one label pair is required per stream")
        if len(labels) > 15:
            raise WireError(f"stream has {len(labels)} label names; limit 15")
        for name, value in labels.items():
            if not _NAME.fullmatch(name) or not isinstance(value, str) or len(value) > 2048:
                raise WireError(f"label {name}={value!r}")
        if not isinstance(stream["values"], list) or not stream["values"]:
            raise WireError("no values")
        made.append((tuple(sorted(labels.items())), [_entry(one) for one in stream["values"]]))
    return made


def _entry(value: Any) -> tuple[int, str, dict[str, str]]:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise WireError(f"a value of {value!r}")
    stamp, line = value[0], value[1]
    if not isinstance(stamp, str) or not _STAMP.fullmatch(stamp):
        raise WireError(f"the time {stamp!r} is no decimal string")
    if not isinstance(line, str):
        raise WireError("a line that is no string")
    metadata = value[2] if len(value) == 3 else {}
    if not isinstance(metadata, dict) or not all(
        _NAME.fullmatch(name) and isinstance(one, str) for name, one in metadata.items()
    ):
        raise WireError(f"structured metadata {metadata!r}")
    return int(stamp), line, metadata


def _only(found: Any, names: set[str], where: str) -> None:
    if not isinstance(found, dict) or set(found) != names:
        raise WireError(f"{where} is {str(found)[:80]}, not an object of {', '.join(names)}")
