"""Where an HTTP sink posts to, and how both sides know whom they talk to: address, credentials, certificates."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies_environment

from sidecar._errors import ConfigError
from sidecar.logs.sinks.base import SinkUnavailable, shown


def address(url: str, standard_path: str) -> tuple[str, str | None]:
    """Return the URL to post to, and the credentials that stood in it as `user:password`."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.rpartition("+")[2]
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{shown(url)!r} is no URL: {error}") from None
    if scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{shown(url)!r} is no URL for a sink: write it like http://host:port/path"
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
    """Return the proxy by which the environment wants a receiver to be reached: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.

    NO_PROXY holds names (with all that end with them), addresses and networks (`10.0.0.0/8`), with commas, or `*`.
    This machine itself is never asked for by a proxy: in a Pod that is the container next door.

    Raises:
        ConfigError: it names nothing that can be a proxy.
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
        f"{shown(url)}: the variable {receiver.scheme.upper()}_PROXY names no proxy, it is {shown(found)!r}:"
        " write it like http://proxy:3128, or name the receiver in NO_PROXY"
    )


def _is_direct(host: str, port: int | None, without: str) -> bool:
    """Whether a receiver is reached without the proxy, by its name or address and by what NO_PROXY holds."""
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
    """What goes into `Authorization`, looked up for each request: files may be rotated."""

    def __init__(
        self,
        sink: str,
        in_url: str | None,
        user: str | None,
        password_file: str | os.PathLike[str] | None,
        token_file: str | os.PathLike[str] | None,
    ) -> None:
        ways = [in_url is not None, user is not None, token_file is not None]
        if sum(ways) > 1:
            raise ConfigError(f"{sink}: give either user and password, or token_file")
        if (user is None) != (password_file is None):
            raise ConfigError(f"{sink}: user and password_file go together")
        self._sink, self._in_url, self._user = sink, in_url, user
        self._password_file, self._token_file = password_file, token_file

    def headers(self) -> dict[str, str]:
        if self._token_file is not None:
            return {"Authorization": f"Bearer {_secret(self._sink, self._token_file)}"}
        pair = self._in_url
        if self._password_file is not None:
            pair = f"{self._user}:{_secret(self._sink, self._password_file)}"
        if pair is None:
            return {}
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _secret(sink: str, path: str | os.PathLike[str]) -> str:
    """Read a small file on a volume in memory: not worth a thread."""
    where = f"{sink}: cannot read the secret in {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(64 << 10).strip()
    except OSError as error:
        raise SinkUnavailable(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SinkUnavailable(f"{where}: it is no text") from None
    if not secret.isprintable() or not secret:
        raise SinkUnavailable(f"{where}: it must be one line of text")
    return secret


def tls(
    sink: str,
    url: str,
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
) -> ssl.SSLContext | bool:
    """Return how to speak with a receiver over TLS; True where nobody does.

    A context of its own in any case: the one that aiohttp makes at its import may have no certificates.
    """
    if not url.startswith("https:") and ca_file is None and cert_file is None:
        return True
    what = (
        "the certificates of the system"
        if ca_file is None
        else f"the certificates in ca_file {ca_file}"
    )
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            what = f"the certificate in cert_file {cert_file}"
            what += "" if key_file is None else f" with key_file {key_file}"
            context.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        said = error.strerror or error
        raise ConfigError(f"{sink}: cannot use {what}: {said}") from error
    return context
