"""Contents that an object only names: of a key that ends with `.url`, what its address answers.

Each is fetched apart from the others, so that an address that is away delays nobody and keeps its last good content.
Who may write such an object chooses what the mirror asks for, so hosts must be allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from sidecar._errors import ConfigError
from sidecar.mirror import backoff
from sidecar.mirror.client import Client, Response
from sidecar.mirror.states import SourceUnavailable, Unit, digest_of
from sidecar.process import http_endpoint
from sidecar.process.http_endpoint import Tls
from sidecar.process.redaction import redact_url

_log = logging.getLogger(__name__)

SUFFIX = ".url"
_ALL_HOSTS = "*"
_FETCHES_AT_ONCE = 16
_MOST_ADDRESSES = 1000
_MOST_REDIRECTS = 5
_NOT_MODIFIED = 304
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
# Cloud metadata outside of the link-local ranges: IPv6 of AWS, Alibaba.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))


@dataclass(slots=True)
class _Address:
    """An address, the file it is for, and what it has answered."""

    unit: str
    url: str
    file: str
    base_version: str
    """Of the object that names it."""
    created: float
    digest: str = ""
    etag: str = ""
    content: bytes | None = field(default=None, repr=False)
    """What was fetched and not taken over yet."""
    is_tried: bool = False
    problem: str | None = None

    def take(self) -> Unit:
        """Return the unit, with a content that was not returned before."""
        version = f"{self.base_version}/{self.digest}"
        if not self.digest:
            return Unit(version, {self.file: None}, self.created)
        files = None if self.content is None else {self.file: self.content}
        self.content = None
        return Unit(version, files, self.created)


class UrlKeys:
    """The addresses that the objects of a source name.

    Args:
        hosts: names whose addresses may be fetched; `.example.com` includes subdomains. `*` is every host, except
            for addresses of the Pod and of the node itself (loopback, link-local, cloud metadata).
        changed: called when a content has changed, or an address was tried for the first time.
        interval: seconds between two conditional requests to an address.
        timeout: seconds for one fetch, redirects included.
        max_bytes: limit of one content.
        ca_file: authority (PEM) of the servers; None takes those of the system.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        changed: Callable[[], None],
        *,
        interval: float,
        timeout: float,
        max_bytes: int,
        ca_file: str | None = None,
    ) -> None:
        self._hosts = [one.lower() for one in hosts]
        self._changed = changed
        self._interval, self._timeout, self._max_bytes = interval, timeout, max_bytes
        self._ca_file = ca_file
        self._tls: Tls | None = None
        self._owners: dict[str, tuple[str, list[_Address]]] = {}
        """By the name of an object: its version, and what it names."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_running = False
        self._slots = asyncio.Semaphore(_FETCHES_AT_ONCE)

    @property
    def is_settled(self) -> bool:
        """Whether each address was asked once, with success or without."""
        return all(one.is_tried for one in self._addresses())

    def units(self) -> dict[str, Unit]:
        """Return a unit for each address. Contents are returned once."""
        return {one.unit: one.take() for one in self._addresses()}

    def set(
        self, owner: str, version: str, created: float, named: Mapping[str, tuple[str, bytes]]
    ) -> None:
        """Follow what a version of an object names: for each key, the file and the address."""
        if owner in self._owners and self._owners[owner][0] == version:
            return
        self.remove(owner)
        free = _MOST_ADDRESSES - sum(1 for _ in self._addresses())
        if len(named) > free:
            _log.warning(
                "%s names more addresses than can be followed (%d)", owner, _MOST_ADDRESSES
            )
        found = [
            _Address(f"{owner}/{key}", url.decode(errors="replace").strip(), file, version, created)
            for key, (file, url) in list(named.items())[: max(free, 0)]
        ]
        if found:
            self._owners[owner] = version, found
        for one in found if self._is_running else ():
            self._start(one)

    def remove(self, owner: str) -> None:
        """Follow nothing of an object any more."""
        _, addresses = self._owners.pop(owner, ("", []))
        for one in addresses:
            if (task := self._tasks.pop(one.unit, None)) is not None:
                task.cancel()

    def clear(self) -> None:
        """Forget all; what is set again is fetched again."""
        for owner in list(self._owners):
            self.remove(owner)

    def start(self) -> None:
        """Begin to fetch."""
        self._is_running = True
        for one in self._addresses():
            self._start(one)

    async def stop(self) -> None:
        """Stop to fetch; what was fetched stays known."""
        self._is_running = False
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _addresses(self) -> Iterator[_Address]:
        return (one for _, addresses in self._owners.values() for one in addresses)

    def _start(self, one: _Address) -> None:
        self._tasks[one.unit] = asyncio.create_task(self._follow(one), name=f"fetch {one.unit}")

    async def _follow(self, one: _Address) -> None:
        attempt = 0
        while True:
            try:
                async with self._slots:
                    is_new = await self._fetch(one)
            except SourceUnavailable as error:
                if one.problem != str(error):
                    _log.warning("%s: %s; trying again, and its file stays", one.unit, error)
                one.problem, is_new = str(error), False
                error.busy = (
                    True  # its pauses grow up to 30 s: an address is asked for one file alone
                )
                pause = backoff.pause(attempt, error)
                attempt += 1
            else:
                if one.problem is not None:
                    _log.info("%s is fetched again", one.unit)
                one.problem, attempt = None, 0
                pause = self._interval * backoff.spread()
            if is_new or not one.is_tried:
                one.is_tried = True
                self._changed()
            await asyncio.sleep(pause)

    async def _fetch(self, one: _Address) -> bool:
        """Ask for the content; return whether it is another one than before. Raises `SourceUnavailable`."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._follow_redirects(one)
        except TimeoutError:
            raise _failed(one.url, f"no answer within {self._timeout:g} s") from None
        except (ConfigError, ValueError) as error:
            raise _failed(one.url, str(error)) from None
        if answer.status == _NOT_MODIFIED:
            return False
        one.etag = answer.headers.get("ETag", "")
        digest = digest_of(answer.body)
        if digest == one.digest:
            return False
        one.digest, one.content = digest, answer.body
        return True

    async def _follow_redirects(self, one: _Address) -> Response:
        url = one.url
        headers = {"If-None-Match": one.etag} if one.etag else {}
        accept = _REDIRECTS | {200} | ({_NOT_MODIFIED} if headers else set())
        for _ in range(_MOST_REDIRECTS + 1):
            self._check(url)
            client = Client(
                url,
                timeout=self._timeout,
                max_bytes=self._max_bytes,
                tls=self._tls_for(url),
                resolver=None if self._is_named(url) else _OutsideResolver(),
            )
            async with client.session():
                answer = await client.request("GET", client.url, headers=headers, accept=accept)
            if answer.status not in _REDIRECTS:
                return answer
            url = urljoin(client.url, answer.headers.get("Location", ""))
        raise _failed(one.url, f"more than {_MOST_REDIRECTS} redirects")

    def _tls_for(self, url: str) -> Tls | None:
        """Return the TLS settings of all addresses: the certificates of the system take a megabyte."""
        if self._tls is None and url.lower().startswith("https:"):
            self._tls = Tls("the addresses of keys", "https:", ca_file=self._ca_file)
        return self._tls

    def _check(self, url: str) -> None:
        """Raise `SourceUnavailable` if an address must not be fetched."""
        scheme, host = _parts(url)
        if not host or scheme not in ("http", "https"):
            raise _failed(url, "it is no http or https address")
        if self._is_named(url):
            return
        if _ALL_HOSTS not in self._hosts:
            raise _failed(url, f"the host {host} is not among url_keys")
        with suppress(ValueError):
            # As the client reads it: it takes the digits of other scripts for digits.
            asked = URL(http_endpoint.address(url, "")[0]).raw_host or ""
            _check_outside(ipaddress.ip_address(asked), url)

    def _is_named(self, url: str) -> bool:
        _, host = _parts(url)
        return any(
            host == one or (one.startswith(".") and host.endswith(one)) for one in self._hosts
        )


class _OutsideResolver(AbstractResolver):
    """A resolver that returns no address of the Pod or the node: a name may lead anywhere, and change."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            _check_outside(ipaddress.ip_address(one["host"].partition("%")[0]), host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _check_outside(address: Any, url: str) -> None:
    """Raise `SourceUnavailable` for an address of the Pod itself, of the node, or of no host at all."""
    plain = getattr(address, "ipv4_mapped", None) or address
    is_inside = (
        plain.is_loopback
        or plain.is_link_local
        or plain.is_multicast
        or plain.is_unspecified
        or plain in _METADATA
    )
    if is_inside:
        raise _failed(
            url, f"{plain} is the Pod's own, or the node's (a host must be named in url_keys)"
        )


def _parts(url: str) -> tuple[str, str]:
    """Return the scheme and the host of a URL, both empty if it is none."""
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower()
    except ValueError:
        return "", ""


def _failed(url: str, problem: str) -> SourceUnavailable:
    return SourceUnavailable(f"cannot read {redact_url(url)}: {problem}")
