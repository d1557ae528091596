"""An action that sends an HTTP request."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from sidecar.process import arguments
from sidecar.process.redaction import redact_url
from sidecar.reload import client
from sidecar.reload.change import ActionFailed, Change

_NOT_NOW = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses of a server that is not ready or not reached (RFC 9110, 15.5 and 15.6; RFC 6585)."""
_NOT_ADMITTED = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 407})
"""Statuses that are about the request: its address, credentials, path or method (RFC 9110, 15.4 and 15.5).
A proxy in front of a server that starts sends 404, too.
"""


@dataclass(frozen=True, slots=True)
class Webhook:
    """POST to an address, without a body, for each version.

    The headers `Sidecar-Version` and `ETag` say which version it is, `Sidecar-Changed` which files have changed:
    their names percent-encoded, with commas between, or `*` where that is longer than 4 KiB.
    It has succeeded when the status is 2xx, or one of `expect_status`; redirects are not followed.
    The request goes out once for each attempt, on a connection of its own, and by no proxy.
    In messages and logs the address is without credentials and values of the query.
    A status that says "not now" (408, 425, 429, 502, 503, 504), or is about the request (a redirect, 401, 403, 404, 405, 407),
    is no refusal of the version; `Retry-After` is heeded, up to five minutes.

    Args:
        url: the address; `http://user:password@host/` sends those as Basic credentials.
        expect_status: the statuses that are a success; none means 200 to 299.
        timeout: seconds for the whole answer.
        ca_file: authorities (PEM) to verify the server's certificate against, in place of those of the system.
        token_file: file with a bearer token, for an address without credentials.
        user, password_file: Basic credentials in place of it. Files are read for each request.

    Raises:
        ConfigError: an argument makes no sense.

    >>> str(Webhook("http://localhost:9090/-/reload?key=secret"))
    'webhook http://localhost:9090/-/reload?key=***'
    """

    kind: ClassVar[str] = "webhook"

    url: str
    expect_status: Collection[int] = ()
    timeout: float = 10.0
    ca_file: str | os.PathLike[str] | None = None
    token_file: str | os.PathLike[str] | None = None
    user: str | None = None
    password_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        client.check_url("url", self.url)
        self._access.check()
        arguments.check_seconds("timeout", self.timeout, zero=False)
        for status in self.expect_status:
            arguments.check_integer("expect_status", status, least=100)

    @property
    def _access(self) -> client.Access:
        return client.Access(self.ca_file, self.token_file, self.user, self.password_file)

    def __str__(self) -> str:
        return f"webhook {redact_url(self.url)}"

    async def run(self, change: Change) -> None:
        """Send the request. Raises `ActionFailed` if it was not answered with success in time."""
        answer = await client.request(
            "POST", self.url, change.headers(), self.timeout, self._access
        )
        expected = self.expect_status or range(200, 300)
        if answer.status not in expected:
            wanted = ", ".join(map(str, self.expect_status)) or "2xx"
            said = answer.first_line and f": {answer.first_line}"
            raise ActionFailed(
                f"POST {redact_url(self.url)} was answered with {answer.status}, not {wanted}{said}",
                refused=answer.status not in _NOT_NOW | _NOT_ADMITTED,
                retry_after=answer.retry_after,
            )
