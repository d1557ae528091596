"""Have the Pods of one Deployment take a version one after the other, and stop when the first ones have failed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from dataclasses import dataclass
from typing import ClassVar

import orjson

from sidecar.process.redaction import redact_url
from sidecar.reload import client
from sidecar.reload.change import ActionFailed, Change

_log = logging.getLogger(__name__)
_TIMEOUT = 5.0


def splay_delay(pod: str, version: str, window: float) -> float:
    """Return the seconds in `window` after which a Pod takes a version: the same for the same Pod and version.

    The order of the Pods is another one for each version, so that it is not always the same that are first.

    >>> 0 <= splay_delay("web-5c9f-x7k2p", "e3b0c442", 60.0) < 60
    True
    """
    digest = hashlib.sha256(f"{pod}\n{version}".encode()).digest()
    return int.from_bytes(digest[:8]) / float(1 << 64) * window


def pod_name() -> str:
    """Return the name of the Pod: Kubernetes makes it the host name of its containers."""
    return socket.gethostname()


@dataclass(frozen=True, slots=True)
class StopUrl:
    """A URL that is asked before a version is taken, and told when the application has refused one.

    `GET` with `Sidecar-Version` and `Sidecar-Pod`: 2xx lets this Pod go on, anything else holds it.
    `POST` with the same headers and a JSON object with `pod`, `version` and `reason` reports a failure.
    """

    kind: ClassVar[str] = "hold"

    url: str
    pod: str
    access: client.Access = client.DEFAULT_ACCESS

    def __post_init__(self) -> None:
        client.check_url("stop_url", self.url)
        self.access.check()

    def __str__(self) -> str:
        return f"leave of {redact_url(self.url)}"

    async def run(self, change: Change) -> None:
        """Ask for leave to take a version. Raises `ActionFailed` when it is held, or when there is no answer."""
        headers = self._headers(change)
        answer = await client.request("GET", self.url, headers, _TIMEOUT, self.access)
        if not 200 <= answer.status < 300:
            said = answer.first_line and f": {answer.first_line}"
            raise ActionFailed(
                f"{redact_url(self.url)} holds it with {answer.status}{said}",
                retry_after=answer.retry_after,
            )

    async def report(self, change: Change, reason: str) -> None:
        """Report that the application has not taken a version. Raises `ActionFailed` if nobody took the report."""
        body = orjson.dumps({"pod": self.pod, "version": change.version, "reason": reason})
        headers = {**self._headers(change), "Content-Type": "application/json"}
        answer = await client.request("POST", self.url, headers, _TIMEOUT, self.access, body=body)
        if not 200 <= answer.status < 300:
            raise ActionFailed(f"POST {redact_url(self.url)} was answered with {answer.status}")

    def reports(self) -> FailureReports:
        """Return what sends reports in the background."""
        return FailureReports(self)

    def _headers(self, change: Change) -> dict[str, str]:
        return {"Sidecar-Version": change.version, "Sidecar-Pod": self.pod}


class FailureReports:
    """Reports to a `StopUrl`, in the background: the reloader does not wait for them."""

    def __init__(self, stop: StopUrl) -> None:
        self._stop = stop
        self._running: set[asyncio.Task[None]] = set()

    def send(self, change: Change, reason: str) -> None:
        """Begin to report that the application has not taken a version."""
        report = asyncio.create_task(self._send(change, reason), name="reload: report")
        self._running.add(report)
        report.add_done_callback(self._running.discard)

    async def finish(self, timeout: float) -> None:
        """Wait for the reports that are under way, at most so many seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)
        for report in self._running:
            report.cancel()

    async def _send(self, change: Change, reason: str) -> None:
        try:
            await self._stop.report(change, reason)
        except ActionFailed as error:
            _log.warning(
                "version %s of %s: %s",
                change.version,
                change.path,
                error,
                extra={"event": "reload.report_failed"},
            )
