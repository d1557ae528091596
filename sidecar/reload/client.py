"""One HTTP request to an application, by webhooks and confirmations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import yarl

from sidecar import _errors
from sidecar.process import executor, tls_trust
from sidecar.process.redaction import redact_url
from sidecar.reload.change import ActionFailed

if TYPE_CHECKING:
    import ssl

_BODY_BYTES = 64 << 10


class Answer(NamedTuple):
    """What was answered: the status, the entity tag, and the first 64 KiB of the body."""

    status: int
    etag: str | None
    body: bytes

    @property
    def first_line(self) -> str:
        """The beginning of what it says, for a message."""
        lines = self.body[:300].decode(errors="replace").split("\n")
        return next((line.strip() for line in lines if line.strip()), "")


def check_url(name: str, value: object) -> str:
    """Take an address with http:// or https:// and a host.

    Raises:
        ConfigError: it is none.
    """
    try:
        url = yarl.URL(str(value))
        fits = isinstance(value, str) and url.scheme in ("http", "https") and url.host
    except ValueError:
        fits = False
    if not fits:
        raise _errors.ConfigError(
            f"{name}: {redact_url(str(value))!r} is no address: it must begin with http:// or https://"
        )
    return str(value)


async def request(method: str, url: str, headers: Mapping[str, str], timeout: float) -> Answer:
    """Send a request without a body on a connection of its own, within `timeout` seconds. Redirects are not followed.

    A certificate is verified against the authorities of the system, but not one of this machine itself.

    Raises:
        ActionFailed: there was no answer.
    """
    where = redact_url(url)
    try:
        async with (
            asyncio.timeout(timeout),
            aiohttp.TCPConnector(ssl=await _trust(url)) as connector,
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.request(method, url, headers=headers, allow_redirects=False) as answer,
        ):
            etag = answer.headers.get("ETag", "").removeprefix("W/") or None
            return Answer(answer.status, etag, await _beginning(answer))
    except TimeoutError:
        raise ActionFailed(
            f"{method} {where}: no answer within {timeout:g} s (is the application stuck?)"
        ) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        said = (str(error) or type(error).__name__).replace(url, where)
        raise ActionFailed(
            f"{method} {where}: {said} (does the application listen there?)"
        ) from error


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    body = b""
    while len(body) < _BODY_BYTES and (chunk := await answer.content.read(_BODY_BYTES)):
        body += chunk
    return body[:_BODY_BYTES]


async def _trust(url: str) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return True
    host = (yarl.URL(url).host or "").lower().rstrip(".")
    here = host == "localhost" or tls_trust.is_this_machine(host)
    # A context of its own: the one that aiohttp makes at its import may have no certificates.
    return await executor.run_in_thread(tls_trust.client_context, None, verify=not here)
