"""One HTTP request to an application, by webhooks and confirmations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import yarl

from sidecar import _errors
from sidecar.process import arguments, executor, retry, tls_trust
from sidecar.process.redaction import redact_url
from sidecar.process.secret_file import read_secret
from sidecar.reload.change import ActionFailed

if TYPE_CHECKING:
    import ssl

_BODY_BYTES = 64 << 10


class Answer(NamedTuple):
    """What was answered: the status, the entity tag, the first 64 KiB of the body, and the pause that was asked for."""

    status: int
    etag: str | None
    body: bytes
    retry_after: float | None = None

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


class Access(NamedTuple):
    """How a server is reached; both files are read for each request, so that they can be renewed.

    With `ca_file` (PEM) its certificate is verified against those authorities; without, against those of the system,
    but not one of this machine itself. `token_file` is a bearer token, for an address without credentials.
    """

    ca_file: str | os.PathLike[str] | None = None
    token_file: str | os.PathLike[str] | None = None

    def check(self) -> None:
        """Raise `ConfigError` if one of the paths is none."""
        for name, path in zip(self._fields, self, strict=True):
            if path is not None:
                arguments.check_path(name, path)


DEFAULT_ACCESS = Access()


async def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    access: Access,
    *,
    body: bytes | None = None,
) -> Answer:
    """Send a request on a connection of its own, within `timeout` seconds. Redirects are not followed.

    Raises:
        ActionFailed: there was no answer.
    """
    where = redact_url(url)
    headers = {**headers, **_authorization(url, access)}
    try:
        async with (
            asyncio.timeout(timeout),
            aiohttp.TCPConnector(ssl=await _trust(url, access)) as connector,
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as answer,
        ):
            etag = answer.headers.get("ETag", "").removeprefix("W/") or None
            pause = retry.requested_pause(
                retry.parse_retry_after(answer.headers.get("Retry-After"))
            )
            return Answer(answer.status, etag, await _beginning(answer), pause)
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


def _authorization(url: str, access: Access) -> dict[str, str]:
    if access.token_file is None or yarl.URL(url).user is not None:
        return {}
    try:
        return {"Authorization": f"Bearer {read_secret(access.token_file)}"}
    except ValueError as error:
        raise ActionFailed(f"{error} (see token_file)") from error


async def _trust(url: str, access: Access) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return True
    host = (yarl.URL(url).host or "").lower().rstrip(".")
    ca_file = None if access.ca_file is None else os.fspath(access.ca_file)
    here = ca_file is None and (host == "localhost" or tls_trust.is_this_machine(host))
    try:
        # A context of its own: the one that aiohttp makes at its import may have no certificates.
        return await executor.run_in_thread(tls_trust.client_context, ca_file, verify=not here)
    except OSError as error:
        raise ActionFailed(
            f"cannot use the authorities in {ca_file or 'the system'}: {error.strerror or error} (see ca_file)"
        ) from error
