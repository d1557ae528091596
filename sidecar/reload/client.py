"""One HTTP request to an application, by webhooks, confirmations and rollouts.

With the HTTP client of the standard library, in a thread: such a request is made a few times a minute at most,
and the client of aiohttp would cost 3 MB for it, and 9 where nothing else needs aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from sidecar import _errors
from sidecar.process import arguments, http_endpoint, retry, tls_trust
from sidecar.process.redaction import redact_url
from sidecar.reload.change import ActionFailed

if TYPE_CHECKING:
    import ssl

_BODY_BYTES = 64 << 10
_SAFE = "/?&=;:@!$'()*+,-._~%"
"""Characters of a request target that are sent as they are (RFC 3986, 3.3 and 3.4)."""


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
    text = value if isinstance(value, str) else ""
    try:
        url = urlsplit(text)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
    fits = fits and text.isprintable() and " " not in text
    if not fits:
        raise _errors.ConfigError(
            f"{name}: {'this' if '@' in str(value) else repr(redact_url(str(value)))} is no address:"
            " it must begin with http:// or https://"
        )
    return text


class Access(NamedTuple):
    """How a server is reached; the files are read for each request, so that they can be renewed.

    With `ca_file` (PEM) its certificate is verified against those authorities; without, against those of the system,
    but not one of this machine itself. For an address without credentials, `token_file` is a bearer token,
    `user` and `password_file` are Basic credentials (RFC 7617).
    """

    ca_file: str | os.PathLike[str] | None = None
    token_file: str | os.PathLike[str] | None = None
    user: str | None = None
    password_file: str | os.PathLike[str] | None = None

    def check(self) -> None:
        """Raise `ConfigError` if one of the paths is none, or credentials are half or twice given."""
        for name in ("ca_file", "token_file", "password_file"):
            if (path := getattr(self, name)) is not None:
                arguments.check_path(name, path)
        self.credentials("credentials", None)

    def credentials(self, where: str, in_url: str | None) -> http_endpoint.Credentials:
        """Return the credentials for an address, which may have its own. Raises `ConfigError`."""
        if in_url is not None:
            return http_endpoint.Credentials(where, in_url)
        return http_endpoint.Credentials(
            where,
            None,
            user=self.user,
            password_file=self.password_file,
            token_file=self.token_file,
        )


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
    """Send a request on a connection of its own, within `timeout` seconds, by no proxy. Redirects are not followed.

    Raises:
        ActionFailed: there was no answer.
    """
    where = redact_url(url)
    address, credentials = http_endpoint.address(url, "")
    try:
        secrets = access.credentials(where, credentials).headers()
    except ValueError as error:
        file = "token_file" if access.password_file is None else "password_file"
        raise ActionFailed(f"{error} (see {file})") from error
    exchange = _Exchange(method, urlsplit(address), {**headers, **secrets}, timeout, access, body)
    try:
        answering = _run_in_daemon_thread(exchange.run)
    except RuntimeError as error:
        raise ActionFailed(
            f"{method} {where}: {error} (is a limit of processes reached?)"
        ) from error
    try:
        async with asyncio.timeout(timeout):
            await asyncio.wait({answering})
        return answering.result()
    except TimeoutError:
        raise ActionFailed(
            f"{method} {where}: no answer within {timeout:g} s (is the application stuck?)"
        ) from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        raise ActionFailed(
            f"{method} {where}: {said} (does the application listen there?)"
        ) from error
    finally:
        exchange.withdraw()
        answering.add_done_callback(_ignore)


@dataclass(slots=True)
class _Exchange:
    """A request in a thread, which ends early when it is withdrawn."""

    method: str
    url: SplitResult
    headers: dict[str, str]
    timeout: float
    access: Access
    body: bytes | None
    socket: socket.socket | None = None
    withdrawn: bool = False

    def run(self) -> Answer:
        """Send it, and return the answer. Blocking."""
        connection = self._connection()
        try:
            connection.connect()
            self.socket = connection.sock
            if self.withdrawn:
                raise TimeoutError
            target = self.url.path + (f"?{self.url.query}" if self.url.query else "")
            connection.request(self.method, quote(target, safe=_SAFE), self.body, self.headers)
            answer = connection.getresponse()
            etag = answer.headers.get("ETag", "").removeprefix("W/") or None
            pause = retry.requested_pause(
                retry.parse_retry_after(answer.headers.get("Retry-After"))
            )
            return Answer(answer.status, etag, answer.read(_BODY_BYTES), pause)
        finally:
            connection.close()

    def withdraw(self) -> None:
        """Have the thread end now, unless it waits for a name server or a connection: then nothing is sent any more."""
        self.withdrawn = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.url.hostname or "", self.url.port
        if self.url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        return http.client.HTTPSConnection(
            host, port, timeout=self.timeout, context=self._context(host)
        )

    def _context(self, host: str) -> ssl.SSLContext:
        ca_file = None if self.access.ca_file is None else os.fspath(self.access.ca_file)
        name = host.lower().rstrip(".")
        here = ca_file is None and (name == "localhost" or tls_trust.is_this_machine(name))
        try:
            return tls_trust.client_context(ca_file, verify=not here)
        except OSError as error:
            raise ValueError(
                f"cannot use the authorities in {ca_file or 'the system'}: {error.strerror or error}"
            ) from error


def _run_in_daemon_thread(function: Callable[[], Answer]) -> asyncio.Future[Answer]:
    """Run a function in a thread for which nothing waits: a name server, or a host that does not answer, must not delay the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif answer is not None:
            future.set_result(answer)

    def run() -> None:
        answer, failure = None, None
        try:
            answer = function()
        except BaseException as error:  # noqa: BLE001 (raised where it is awaited)
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, answer, failure)

    threading.Thread(target=run, name="sidecar-request", daemon=True).start()
    return future


def _ignore(answering: asyncio.Future[Answer]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not answering.cancelled():
        answering.exception()
