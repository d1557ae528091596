"""TLS whose certificate can be replaced while connections are served, as cert-manager does every few weeks.

`load_cert_chain` with a key that does not fit raises, and leaves the context broken all the same:
every handshake after it fails. So a new pair is tried on a context of no importance first,
and it is the bytes that were tried which are loaded, not the files, which may have changed once more by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from sidecar import _errors
from sidecar.http.server import memfd
from sidecar.process import executor

_log = logging.getLogger(__name__)

RECHECK = 5.0
"""Seconds between looks at the files: a new certificate is valid long before the old one ends."""

_LARGEST = 1 << 20


class ReloadingCertificate:
    """A certificate chain and its key, and the context that serves the newest good pair.

    Args:
        cert: the file of the chain in PEM.
        key: the file of the private key in PEM; None if it is in the same file.

    Raises:
        ConfigError: the files cannot be read, or do not fit each other.
    """

    def __init__(self, cert: str | os.PathLike[str], key: str | os.PathLike[str] | None) -> None:
        self._cert = os.fspath(cert)
        self._key = os.fspath(key) if key is not None else None
        self._problem: str | None = None
        self._loaded: CertKeyPair = self._read()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            _load(self.context, self._loaded)
        except (ssl.SSLError, ValueError) as error:
            raise _errors.ConfigError(
                f"{self._misfit(error)} (give a chain and its key)"
            ) from error

    def __repr__(self) -> str:
        return f"<Certificate {self._cert}>"

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[ssl.SSLContext]:
        """Serve a new pair as soon as the files hold one."""
        task = asyncio.create_task(self._follow(), name=f"certificate {self._cert}")
        try:
            yield self.context
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(RECHECK)
            try:
                await self.look()
            except Exception:  # noqa: BLE001 (the old pair goes on being served, whatever the new one is)
                _log.exception("cannot look at the certificate %s", self._cert)

    async def look(self) -> None:
        """Load the pair in the files, if it is another one and good."""
        try:
            pair = await executor.run_in_thread(self._read)
            if pair == self._loaded:
                return
            await executor.run_in_thread(_load, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
        except (_errors.ConfigError, ssl.SSLError, ValueError) as error:
            self._tell(
                str(error) if isinstance(error, _errors.ConfigError) else self._misfit(error)
            )
            return
        # On the loop itself: no handshake can come between the certificate and its key.
        _load(self.context, pair)
        self._loaded, self._problem = pair, None
        _log.info("the certificate %s has been replaced", self._cert)

    def _read(self) -> CertKeyPair:
        try:
            return _bytes(self._cert), None if self._key is None else _bytes(self._key)
        except OSError as error:
            raise _errors.ConfigError(
                f"cannot read the certificate {error.filename}: {error.strerror}"
            ) from error

    def _misfit(self, error: Exception) -> str:
        reason = getattr(error, "reason", None) or str(error)
        return (
            f"cannot use the certificate {self._cert} with the key {self._key or 'in it'}: {reason}"
        )

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("%s; the one in force stays", problem)
        self._problem = problem


CertKeyPair = tuple[bytes, bytes | None]


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LARGEST)


def _load(context: ssl.SSLContext, pair: CertKeyPair) -> None:
    cert, key = pair
    with ExitStack() as stack:
        cert_path = stack.enter_context(_in_memory(cert))
        key_path = None if key is None else stack.enter_context(_in_memory(key))
        # Without a password function OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert_path, key_path, password=lambda: "")


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Give bytes a path: OpenSSL takes nothing else, and keys do not belong in temporary files."""
    fd = memfd.create("sidecar-tls")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
