"""A TLS certificate that can be replaced while connections are served, as cert-manager does every few weeks.

`load_cert_chain` with a key that does not match raises, but leaves the context broken:
every handshake after it fails. So a new pair is loaded into a scratch context first,
from bytes in memory and not from the files, which may have changed again in between.
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
"""Seconds between checks of the files: a new certificate is valid long before the old one expires."""

_MAX_FILE_BYTES = 1 << 20


class ReloadingCertificate:
    """A certificate chain and its key, and the SSL context with the newest valid pair.

    Args:
        cert: the file of the chain in PEM.
        key: the file of the private key in PEM; None if it is in the same file.

    Raises:
        ConfigError: the files cannot be read, or do not match.
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
                f"{self._mismatch(error)} (give a chain and its key)"
            ) from error

    def __repr__(self) -> str:
        return f"<Certificate {self._cert}>"

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[ssl.SSLContext]:
        """Reload the pair when the files change."""
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
                await self.reload()
            except Exception:  # noqa: BLE001 (the old pair stays in use)
                _log.exception(
                    "cannot look at the certificate %s",
                    self._cert,
                    extra={"event": "tls.certificate_problem"},
                )

    async def reload(self) -> None:
        """Load the pair from the files if it has changed and is valid."""
        try:
            pair = await executor.run_in_thread(self._read)
            if pair == self._loaded:
                return
            await executor.run_in_thread(_load, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
        except (_errors.ConfigError, ssl.SSLError, ValueError) as error:
            self._log_problem(
                str(error) if isinstance(error, _errors.ConfigError) else self._mismatch(error)
            )
            return
        # On the event loop: no handshake can run between loading the certificate and its key.
        _load(self.context, pair)
        self._loaded, self._problem = pair, None
        _log.info(
            "the certificate %s has been replaced",
            self._cert,
            extra={"event": "tls.certificate_replaced"},
        )

    def _read(self) -> CertKeyPair:
        try:
            return _read_file(self._cert), None if self._key is None else _read_file(self._key)
        except OSError as error:
            raise _errors.ConfigError(
                f"cannot read the certificate {error.filename}: {error.strerror}"
            ) from error

    def _mismatch(self, error: Exception) -> str:
        reason = getattr(error, "reason", None) or str(error)
        return (
            f"cannot use the certificate {self._cert} with the key {self._key or 'in it'}: {reason}"
        )

    def _log_problem(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning(
                "%s; the one in force stays", problem, extra={"event": "tls.certificate_problem"}
            )
        self._problem = problem


CertKeyPair = tuple[bytes, bytes | None]


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_FILE_BYTES)


def _load(context: ssl.SSLContext, pair: CertKeyPair) -> None:
    cert, key = pair
    with ExitStack() as stack:
        cert_path = stack.enter_context(_write_to_memfd(cert))
        key_path = None if key is None else stack.enter_context(_write_to_memfd(key))
        # Without a password function OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert_path, key_path, password=lambda: "")


@contextmanager
def _write_to_memfd(data: bytes) -> Iterator[str]:
    """Give bytes a path for OpenSSL, which accepts only paths; keys do not belong in temporary files."""
    fd = memfd.create("sidecar-tls")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
