"""Where an HTTP client connects to: URL, proxy, credentials and TLS, for log sinks, mirrors and webhooks."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies_environment

from sidecar._errors import ConfigError
from sidecar.process.redaction import redact_url
from sidecar.process.secret_file import read_secret

Path = str | os.PathLike[str]

_log = logging.getLogger(__name__)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def address(url: str, standard_path: str) -> tuple[str, str | None]:
    """Return the URL without credentials, and the credentials in it as `user:password`."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.rpartition("+")[2]
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{redact_url(url)!r} is no URL: {error}") from None
    if scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{redact_url(url)!r} is no URL for a sink: write it like http://host:port/path"
        )
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    path = parts.path
    if standard_path and not path.rstrip("/").endswith(standard_path):
        path = path.rstrip("/") + standard_path
    host = f"[{host}]" if ":" in host else host
    place = host if port is None else f"{host}:{port}"
    return urlunsplit((scheme, place, path or "/", parts.query, "")), credentials


def proxy(url: str) -> str | None:
    """Return the proxy of a receiver from the environment: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.

    NO_PROXY is a comma-separated list of domains (including their subdomains), addresses and networks (`10.0.0.0/8`),
    or `*`. Loopback addresses are never proxied: in a Pod they are another container.

    Raises:
        ConfigError: the value is not a valid proxy.
    """
    receiver, named = urlsplit(url), getproxies_environment()
    found = named.get(receiver.scheme)
    if not found or _is_direct(receiver.hostname or "", receiver.port, named.get("no", "")):
        return None
    found = found if "://" in found else f"http://{found}"
    try:
        proxy = urlsplit(found)
        fits = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
    except ValueError:
        fits = False
    if fits:
        return found
    raise ConfigError(
        f"{redact_url(url)}: the variable {receiver.scheme.upper()}_PROXY names no proxy, it is {redact_url(found)!r}:"
        " write it like http://proxy:3128, or name the receiver in NO_PROXY"
    )


def _is_direct(host: str, port: int | None, without: str) -> bool:
    """Whether a receiver is reached without the proxy, by its host and NO_PROXY."""
    entries = [entry.strip().lower().lstrip(".") for entry in without.split(",")]
    if host == "localhost" or {"*", host, f"{host}:{port}"} & set(entries):
        return True
    if any(entry and host.endswith(f".{entry}") for entry in entries):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or any(address in one for one in _networks(entries))
    return False


def _networks(entries: Iterable[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for entry in entries:
        with contextlib.suppress(ValueError):
            yield ipaddress.ip_network(entry, strict=False)


class Credentials:
    """The credentials for the receiver. Files are read for each request, so that they can be rotated."""

    def __init__(
        self,
        sink: str,
        in_url: str | None,
        *,
        user: str | None = None,
        password_file: Path | None = None,
        token_file: Path | None = None,
        api_key_file: Path | None = None,
        header_files: Mapping[str, Path] | None = None,
    ) -> None:
        in_header = any(name.lower() == "authorization" for name in header_files or {})
        given = (in_url, user, token_file, api_key_file, in_header or None)
        if sum(one is not None for one in given) > 1:
            raise ConfigError(
                f"{sink}: give one of user and password, token_file, api_key_file and an Authorization in header_files"
            )
        if (user is None) != (password_file is None):
            raise ConfigError(f"{sink}: user and password_file go together")
        check_headers(sink, dict.fromkeys(header_files or {}, ""))
        self._sink, self._in_url, self._user = sink, in_url, user
        self._password_file = password_file
        self._whole = {name: ("", path) for name, path in (header_files or {}).items()}
        for scheme, path in (("Bearer ", token_file), ("ApiKey ", api_key_file)):
            if path is not None:
                self._whole["Authorization"] = (scheme, path)

    def headers(self) -> dict[str, str]:
        """Return the headers for a request. Raises `ValueError`: a file cannot be read, or holds no line of text."""
        made = {
            name: f"{scheme}{_secret(self._sink, path)}"
            for name, (scheme, path) in self._whole.items()
        }
        pair = self._in_url
        if self._password_file is not None:
            pair = f"{self._user}:{_secret(self._sink, self._password_file)}"
        if pair is not None:
            made["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return made


def check_headers(sink: str, headers: Mapping[str, str]) -> None:
    """Check header names and values (RFC 9110, 5.1 and 5.5).

    Raises:
        ConfigError: a name is not a token, or a value has several lines.
    """
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ConfigError(f"{sink}: {name!r} cannot be the name of a header")
        if not f"{name}{value}".isprintable():
            raise ConfigError(f"{sink}: the header {name!r} must be one line of text")


def _secret(sink: str, path: Path) -> str:
    try:
        return read_secret(path)
    except ValueError as error:
        raise ValueError(f"{sink}: {error}") from error


class Tls:
    """The TLS settings of a sink, from files that are checked before each request.

    Renewed files (cert-manager) are used for the next connection. If certificate and key do not match,
    because only one was replaced yet, the previous pair stays in use.

    Raises:
        ConfigError: the files cannot be used; raised by the constructor only.
    """

    def __init__(
        self,
        sink: str,
        url: str,
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        self._sink, self._ca, self._cert, self._key = sink, ca_file, cert_file, key_file
        self._files = [one for one in (ca_file, cert_file, key_file) if one is not None]
        self._state = self._stat()
        self._context: ssl.SSLContext | bool = True
        if url.startswith("https:") or self._files:
            self._context = self._load()

    def context(self) -> ssl.SSLContext | bool:
        """Return the TLS context for the next connection; True for a receiver without TLS."""
        if self._files and (state := self._stat()) != self._state:
            self._state = state
            try:
                self._context = self._load()
            except ConfigError as error:
                _log.warning(
                    "%s (the last ones stay in use until that is mended)",
                    error,
                    extra={"event": "tls.certificate_problem"},
                )
            else:
                _log.info(
                    "%s: the renewed certificates are in use",
                    self._sink,
                    extra={"event": "tls.certificate_replaced"},
                )
        return self._context

    def _stat(self) -> Sequence[object]:
        return [_identity(path) for path in self._files]

    def _load(self) -> ssl.SSLContext:
        """Create a context. The one that aiohttp creates at its import may have no certificates."""
        what = "the certificates of the system"
        if self._ca is not None:
            what = f"the certificates in ca_file {os.fspath(self._ca)}"
        try:
            context = ssl.create_default_context(cafile=self._ca)
            if self._ca is not None:
                # From Python 3.13 on: certificates of older clusters lack extensions that RFC 5280 asks for.
                # Who is trusted is the same; the client of Go does not ask for them either.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if self._cert is not None:
                what = f"the certificate in cert_file {os.fspath(self._cert)}"
                what += "" if self._key is None else f" with key_file {os.fspath(self._key)}"
                context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            said = error.strerror or error
            raise ConfigError(f"{self._sink}: cannot use {what}: {said}") from error
        return context


def _identity(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
