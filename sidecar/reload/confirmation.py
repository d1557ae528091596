"""Ask the application itself whether it has a version."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from sidecar.process import arguments
from sidecar.process.redaction import redact_url
from sidecar.reload import client
from sidecar.reload.change import ActionFailed, Change

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A URL that must answer with the version within a time: by its ETag, or anywhere in the first 64 KiB of its body.

    Where the application reads what `expand_to` has made of it, the version of that counts as well.
    """

    kind: ClassVar[str] = "confirm"

    url: str
    timeout: float = 10.0
    access: client.Access = client.DEFAULT_ACCESS

    def __post_init__(self) -> None:
        client.check_url("confirm_url", self.url)
        self.access.check()
        arguments.check_seconds("confirm_timeout", self.timeout, zero=False)

    def __str__(self) -> str:
        return f"confirmation by {redact_url(self.url)}"

    async def run(self, change: Change) -> None:
        """Ask until it answers with the version. Raises `ActionFailed` when it has not in time."""
        said, pause = "there was no answer", _FIRST_PAUSE
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    try:
                        answer = await client.request(
                            "GET", self.url, {}, self.timeout, self.access
                        )
                    except ActionFailed as error:
                        said = str(error)
                    else:
                        if _has(answer, change):
                            return
                        said = f"it answers {answer.status} with the ETag {answer.etag}"
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            raise ActionFailed(
                f"{redact_url(self.url)} did not report version {change.version} within {self.timeout:g} s: {said}",
            ) from None


def _has(answer: client.Answer, change: Change) -> bool:
    versions = {change.version, change.output_version} - {None}
    right = any(
        answer.etag == f'"{version}"' or str(version).encode() in answer.body
        for version in versions
    )
    return right and 200 <= answer.status < 300
