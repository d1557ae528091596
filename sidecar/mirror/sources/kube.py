"""ConfigMaps and Secrets of Kubernetes, by LIST and WATCH of its API (https://kubernetes.io/docs/reference/using-api/api-concepts/).

An object is a unit: its keys become files together. Deletions while nobody watched are found by comparing lists.
"""

from __future__ import annotations

import asyncio
import base64
import os
import posixpath
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import orjson

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.sources.url_keys import SUFFIX, UrlKeys
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit
from sidecar.process import arguments, metrics

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_KINDS = {"configmaps": "configmap", "secrets": "secret"}
_PAGE_OBJECTS = 500
_NAMES_ONLY = {
    "Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
}
# The server sends a bookmark each minute.
_SILENCE_SECONDS = 90.0
# As client-go: a fleet whose watches end at the same time comes back together.
_SHORTEST_WATCH_SECONDS, _LONGEST_WATCH_SECONDS = 300, 600
_GONE = 410
_RECHECK_SECONDS = 600.0
# What comparisons may cost for each watch, beside its bookmarks: they become rarer with many objects.
_COMPARED_BYTES_PER_SECOND = 5


class Expired(Exception):
    """The history since a version is gone: the objects must be listed again."""


class _Resource:
    """The objects of one kind in one namespace (or in all)."""

    def __init__(self, kind: str, namespace: str | None, name: str | None) -> None:
        self.kind = kind
        place = "" if namespace is None else f"/namespaces/{namespace}"
        self.path = f"/api/v1{place}/{kind}"
        self.selector = {} if name is None else {"fieldSelector": f"metadata.name={name}"}
        self.version: str | None = None
        """The version of the last list or event; None where it must be listed."""
        self.units: dict[str, Unit] = {}
        self.recheck_at = 0.0
        """When names and versions are compared next, by the clock of the loop; a new watch does not put it off."""
        self.compared_bytes = 0
        """Of the answer to the last comparison."""


class KubeSource:
    """Follow the ConfigMaps and Secrets that are selected.

        kube://NAMESPACE[,NAMESPACE]/configmaps[+secrets][/NAME[,NAME]]?labelSelector=grafana_dashboard

    A namespace of `.` is the Pod's own, `*` is all of them. In a Pod, server, token and authority are those
    of its service account, read again for each request; elsewhere `server`, `token_file` and `ca_file` name them.

    Args:
        folder_annotation: annotation of an object that names a directory for its files.
        folder: an absolute path in that annotation must lie below this one, and is taken relative to it.
        unique_names: name files `namespace_NS.KIND_NAME.KEY`.
        url_keys: hosts from which the contents of keys that end with `.url` are fetched, `*` for every one;
            none publishes such keys as they are. `UrlKeys` says which addresses are refused.
        url_interval: seconds between two conditional requests to such an address.
        url_ca_file: authority (PEM) of these servers.
        recheck: seconds between two comparisons of names and versions with the server; None is 600,
            and longer where the answers are so large that they would be more than 5 bytes a second.

    >>> KubeSource("kube://shop/configmaps?labelSelector=app", server="https://10.0.0.1")
    <KubeSource kube://shop/configmaps?labelSelector=app>
    """

    def __init__(
        self,
        url: str,
        *,
        server: str | None = None,
        token_file: str | None = None,
        ca_file: str | None = None,
        folder_annotation: str | None = None,
        folder: str | None = None,
        unique_names: bool = False,
        url_keys: Sequence[str] = (),
        url_interval: float = 60.0,
        url_ca_file: str | None = None,
        recheck: float | None = None,
        timeout: float = 10.0,
        max_bytes: int = 64 << 20,
        **options: Any,
    ) -> None:
        self.name = url
        self.interval: float | None = _SILENCE_SECONDS
        parts = urlsplit(url)
        self._selector = dict(parse_qsl(parts.query, keep_blank_values=True))
        if wrong := self._selector.keys() - {"labelSelector", "fieldSelector"}:
            raise ConfigError(f"{url}: there is no {wrong.pop()!r} (write ?labelSelector=…)")
        kinds, slash, names = parts.path.strip("/").partition("/")
        if "/" in names or (slash and not all(unquote(names).split(","))):
            raise ConfigError(f"{url}: write the names of objects as /NAME,NAME")
        self._resources = [
            _Resource(kind, namespace, name or None)
            for name in unquote(names).split(",")
            for namespace in _namespaces(url, unquote(parts.netloc))
            for kind in kinds.split("+")
        ]
        if unknown := [one.kind for one in self._resources if one.kind not in _KINDS]:
            raise ConfigError(f"{url}: there is no kind {unknown[0]!r}: write configmaps, secrets or configmaps+secrets")  # fmt: skip
        if server is None:
            server = _server_of_pod(url)
            token_file, ca_file = token_file or f"{_ACCOUNT}/token", ca_file or f"{_ACCOUNT}/ca.crt"
        self._client = Client(
            server,
            token_file=token_file,
            ca_file=ca_file,
            timeout=timeout,
            max_bytes=max_bytes,
            **options,
        )
        self._urls: UrlKeys | None = None
        if url_keys:
            arguments.check_seconds("url_interval", url_interval, zero=False)
            self._urls = UrlKeys(
                url_keys,
                lambda: self._tell(new=True),
                interval=url_interval,
                timeout=timeout,
                max_bytes=max_bytes,
                ca_file=url_ca_file,
            )
        self._folder_annotation, self._folder = folder_annotation, folder
        self._unique_names = unique_names
        self._recheck = recheck
        self._changed = asyncio.Event()
        self._has_new_state = False
        self._was_rescued = False

    def __repr__(self) -> str:
        return f"<KubeSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield all selected objects, and again after each change."""
        if since is None or since != self._token():
            for one in self._resources:
                one.version, one.units = None, {}
            if self._urls is not None:
                self._urls.clear()
        self._changed = asyncio.Event()
        async with self._client.session():
            if self._urls is not None:
                self._urls.start()
            tasks = [asyncio.create_task(self._follow_resource(one)) for one in self._resources]
            try:
                while True:
                    await self._wait(tasks)
                    if any(one.version is None for one in self._resources):
                        continue
                    if self._has_new_state:
                        yield self._state()
                    else:
                        yield Alive(self._token())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                if self._urls is not None:
                    await self._urls.stop()

    async def _wait(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait until a resource says something; raise the error of one that failed."""
        changed = asyncio.create_task(self._changed.wait())
        try:
            done, _ = await asyncio.wait({changed, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        self._changed.clear()
        for task in tasks:
            if task in done:
                task.result()

    async def _follow_resource(self, one: _Resource) -> None:
        while True:
            if one.version is None:
                await self._list(one)
            try:
                await self._watch(one)
            except Expired:
                metrics.MIRROR_RELISTS_TOTAL.labels("expired").inc()
                one.version = None

    async def _list(self, one: _Resource) -> None:
        """List the objects, in pages that are all of one version."""
        while True:
            with suppress(Expired):  # of a page, while the list was read: begin again
                items, version = [], ""
                async for page in self._pages(one, {}):
                    items += page.get("items", ())
                    version = page["metadata"]["resourceVersion"]
                before, one.units = one.units, dict(self._unit(one, item) for item in items)
                for name in before.keys() - one.units.keys():
                    self._forget_addresses(name)
                break
        one.version = version
        one.compared_bytes = 0  # those of contents were counted
        self._schedule_comparison(one)
        self._tell(new=True)

    async def _pages(
        self, one: _Resource, headers: Mapping[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        more, size = "", 0
        while True:
            query = {**self._selector, **one.selector, "limit": str(_PAGE_OBJECTS)}
            url = self._url(one, {**query, "continue": more} if more else query)
            answer = await self._client.request(
                "GET", url, headers=headers, accept=frozenset((200, _GONE))
            )
            if answer.status == _GONE:
                raise Expired
            one.compared_bytes += len(answer.body)
            size += len(answer.body)
            self._client.check_size(url, size)
            page = self._client.parse(url, answer.body)
            try:
                more = page["metadata"].get("continue", "")
            except (KeyError, TypeError, AttributeError):
                raise self._client.failed(url, "the answer is no list of objects") from None
            yield page
            if not more:
                return

    async def _watch(self, one: _Resource) -> None:
        """Apply events until the server ends the watch.

        Raises:
            Expired: the history is gone.
            SourceUnavailable: the server failed, or is silent.
        """
        seconds = random.randint(_SHORTEST_WATCH_SECONDS, _LONGEST_WATCH_SECONDS)  # noqa: S311
        query = {
            **self._selector,
            **one.selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": one.version or "",
            "timeoutSeconds": str(seconds),
        }
        url = self._url(one, query)
        lines = self._client.lines("GET", url)
        loop = asyncio.get_running_loop()
        next_line = asyncio.ensure_future(anext(lines, None))
        heard = loop.time()
        try:
            while True:
                limit = min(one.recheck_at, heard + _SILENCE_SECONDS)
                await asyncio.wait({next_line}, timeout=max(limit - loop.time(), 0.0))
                if next_line.done():
                    line = next_line.result()
                    if line is None:
                        return
                    heard = loop.time()
                    self._apply(one, url, line)
                    next_line = asyncio.ensure_future(anext(lines, None))
                elif loop.time() >= heard + _SILENCE_SECONDS:
                    # A watch from a version that does not exist (a restored backup) is silent, too.
                    one.version = None
                    raise self._client.failed(url, "no bookmark for 90 s (is the server stuck?)")
                else:
                    await self._compare(one)
        finally:
            next_line.cancel()
            with suppress(asyncio.CancelledError, SourceUnavailable):
                await next_line
            await lines.aclose()

    def _apply(self, one: _Resource, url: str, line: bytes) -> None:
        """Apply one event."""
        try:
            event = orjson.loads(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                if item.get("code") == _GONE:
                    raise Expired
                raise self._client.failed(url, str(item.get("message", item)))
            one.version = item["metadata"]["resourceVersion"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._client.failed(url, f"it sent {line[:60]!r}") from None
        if kind == "BOOKMARK":
            self._tell(new=False)
            return
        name, unit = self._unit(one, item)
        if kind == "DELETED":
            one.units.pop(name, None)
            self._forget_addresses(name)
        else:
            one.units[name] = unit
        self._tell(new=True)

    async def _compare(self, one: _Resource) -> None:
        """Ask for names and versions alone; what the watch has not told is listed."""
        found: dict[str, str] = {}
        one.compared_bytes = 0
        async for page in self._pages(one, _NAMES_ONLY):
            for item in page.get("items", ()):
                meta = item["metadata"]
                key = _unit_name(one.kind, meta)
                found[key] = _version(meta)
        self._schedule_comparison(one)
        if found == {name: unit.version for name, unit in one.units.items()}:
            self._tell(new=False)
            return
        self._was_rescued = True
        await self._list(one)

    def _tell(self, *, new: bool) -> None:
        self._has_new_state |= new
        self._changed.set()

    def _state(self) -> State:
        """Return the objects, with the contents that were not yielded yet; those are not kept."""
        units = {name: unit for one in self._resources for name, unit in one.units.items()}
        for one in self._resources:
            one.units = {
                name: Unit(unit.version, None, unit.created) for name, unit in one.units.items()
            }
        urls = self._urls
        if urls is not None:
            units |= urls.units()
        rescued, self._was_rescued, self._has_new_state = self._was_rescued, False, False
        versions = [one.version or "" for one in self._resources]
        order = sum(map(int, versions)) if all(map(str.isdecimal, versions)) else None
        is_settled = urls is None or urls.is_settled
        return State(units, self._token(), order, rescued=rescued, is_settled=is_settled)

    def _token(self) -> str:
        return ";".join(one.version or "" for one in self._resources)

    def _unit(self, one: _Resource, item: Mapping[str, Any]) -> tuple[str, Unit]:
        meta = item["metadata"]
        created = datetime.fromisoformat(meta["creationTimestamp"]).timestamp()
        name, contents = _unit_name(one.kind, meta), dict(_contents(one.kind, item))
        if self._urls is not None:
            named = {key: contents.pop(key) for key in list(contents) if key.endswith(SUFFIX)}
            self._urls.set(
                name,
                _version(meta),
                created,
                {
                    key: (self._file_name(one, meta, key.removesuffix(SUFFIX)), url)
                    for key, url in named.items()
                    if key.removesuffix(SUFFIX) not in contents
                },
            )
        files = {self._file_name(one, meta, key): data for key, data in contents.items()}
        return name, Unit(_version(meta), files, created)

    def _forget_addresses(self, name: str) -> None:
        if self._urls is not None:
            self._urls.remove(name)

    def _file_name(self, one: _Resource, meta: Mapping[str, Any], key: str) -> str:
        if self._unique_names:
            key = f"namespace_{meta['namespace']}.{_KINDS[one.kind]}_{meta['name']}.{key}"
        folder = (meta.get("annotations") or {}).get(self._folder_annotation, "")
        if not folder:
            return key
        if self._folder:
            # With a slash at the end: the folder itself is below itself, and one whose name is longer is not.
            folder = f"{folder.rstrip('/')}/".removeprefix(f"{self._folder.rstrip('/')}/")
        # `./a` and `a//b` are allowed there; `..` and an absolute path stay what they are, and are refused.
        return posixpath.normpath(posixpath.join(folder, key))

    def _url(self, one: _Resource, query: Mapping[str, str]) -> str:
        return f"{self._client.url.rstrip('/')}{one.path}?{urlencode(query)}"

    def _schedule_comparison(self, one: _Resource) -> None:
        pause = self._recheck
        if pause is None:
            pause = max(_RECHECK_SECONDS, one.compared_bytes / _COMPARED_BYTES_PER_SECOND)
        now = asyncio.get_running_loop().time()
        one.recheck_at = now + pause * random.uniform(0.5, 1.5)  # noqa: S311


def _contents(kind: str, item: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    for key, text in (item.get("data") or {}).items():
        yield key, base64.b64decode(text) if kind == "secrets" else text.encode()
    for key, text in (item.get("binaryData") or {}).items():
        yield key, base64.b64decode(text)


def _unit_name(kind: str, meta: Mapping[str, Any]) -> str:
    return f"{meta['namespace']}/{kind}/{meta['name']}"


def _version(meta: Mapping[str, Any]) -> str:
    return f"{meta['uid']}/{meta['resourceVersion']}"


def _namespaces(url: str, text: str) -> list[str | None]:
    if text == "*":
        return [None]
    found = text.split(",")
    if "." in found:
        try:
            own = Path(_ACCOUNT, "namespace").read_text().strip()
        except OSError as error:
            raise ConfigError(f"{url}: the namespace of this Pod is not known: {error}") from error
        found = [own if one == "." else one for one in found]
    if not all(found):
        raise ConfigError(f"{url}: it names no namespace: kube://NAMESPACE/configmaps (. is the Pod's own, * all)")  # fmt: skip
    return list(found)


def _server_of_pod(url: str) -> str:
    host, port = (
        os.environ.get("KUBERNETES_SERVICE_HOST"),
        os.environ.get("KUBERNETES_SERVICE_PORT"),
    )
    if not host or not port:
        raise ConfigError(f"{url}: this is no Pod of Kubernetes: name the API server with #server=https://host:6443")  # fmt: skip
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
