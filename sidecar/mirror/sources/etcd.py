"""The keys below a prefix of etcd, by its JSON gateway (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/).

What the prefix holds at one revision is one unit: keys that one transaction writes are never seen apart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import orjson

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.states import Alive, Blob, Reference, SourceUnavailable, State, Unit, digest_of
from sidecar.process import arguments, metrics
from sidecar.process.secret_file import read_secret

_log = logging.getLogger(__name__)

_PAGE_KEYS = 1000
# Without it, a member that has lost the quorum keeps a watch open in silence.
_HAS_LEADER = {"Grpc-Metadata-hasleader": "true"}


class _Key(NamedTuple):
    digest: str
    mod_revision: int


class _View:
    """What the prefix holds at a revision: digests of values, and the values that were just read."""

    def __init__(self, revision: int, cluster: str) -> None:
        self.revision = revision
        self.cluster = cluster
        self.keys: dict[str, _Key] = {}
        self.fresh: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, mod_revision: int) -> None:
        self.keys[key] = _Key(digest_of(value), mod_revision)
        self.fresh[key] = value

    def remove(self, key: str) -> None:
        self.keys.pop(key, None)
        self.fresh.pop(key, None)


class EtcdSource:
    """Follow a prefix: a range first, then a watch from its revision on, and a re-check of the names and revisions.

    Several members are asked in turn: `etcd+https://one:2379,two:2379/app/`.
    `user` and `password_file` are those of etcd's own authentication.

    >>> EtcdSource("etcd+http://etcd-0:2379,etcd-1:2379/app/")
    <EtcdSource etcd+http://etcd-0:2379,etcd-1:2379/app/>
    """

    def __init__(
        self,
        url: str,
        *,
        recheck: float = 30.0,
        user: str | None = None,
        password_file: str | None = None,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        parts = urlsplit(url)
        scheme = parts.scheme.removeprefix("etcd+")
        self._prefix = unquote(parts.path)
        if self._prefix in ("", "/"):
            raise ConfigError("a source in etcd needs a prefix: etcd+https://host:2379/prefix/")
        before, at, hosts = parts.netloc.rpartition("@")
        self._clients = [
            Client(
                urlunsplit((scheme, f"{before}{at}{host}", "/", "", "")), timeout=timeout, **options
            )
            for host in hosts.split(",")
        ]
        self.name = urlunsplit((parts.scheme, hosts, parts.path, "", ""))
        arguments.check_seconds("recheck", recheck, zero=False)
        self._recheck, self._timeout = recheck, timeout
        self.interval: float | None = 1.5 * recheck + timeout
        if (user is None) != (password_file is None):
            raise ConfigError(f"{self.name}: user and password_file go together")
        self._user, self._password_file = user, password_file
        self._client = self._clients[0]
        self._headers: dict[str, str] = {}
        self._cluster: str | None = None
        self._offset = self._highest = 0
        self._view: _View | None = None

    def __repr__(self) -> str:
        return f"<EtcdSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the prefix at its present revision, and at each newer one."""
        try:
            async with self._client.session():
                await self._authenticate()
                view = self._view
                if since is None or view is None or since != self._token(view):
                    view = await self._range()
                    yield self._state(view)
                while True:
                    async for found in self._watch(view):
                        yield found
                    metrics.MIRROR_RELISTS_TOTAL.labels("history").inc()
                    view = await self._range()
                    yield self._state(view)
        except SourceUnavailable:
            # The next member is asked the next time.
            self._clients.append(self._clients.pop(0))
            self._client = self._clients[0]
            raise

    async def _watch(self, view: _View) -> AsyncIterator[State | Alive]:
        """Yield what a watch and the re-check find; it ends where the history that it needs is gone."""
        events = self._events(view)
        next_event = asyncio.ensure_future(_next(events))
        try:
            while True:
                pause = self._recheck * random.uniform(0.5, 1.5)  # noqa: S311
                done, _ = await asyncio.wait({next_event}, timeout=pause)
                if not done:
                    if await self._is_current(view):
                        yield Alive(self._token(view))
                        continue
                    if next_event.done():
                        continue  # the event was on its way
                    view = self._view = await self._range()
                    yield self._state(view, rescued=True)
                    return
                is_valid = next_event.result()
                if not is_valid:
                    return
                yield self._state(view)
                next_event = asyncio.ensure_future(_next(events))
        finally:
            next_event.cancel()
            with contextlib.suppress(asyncio.CancelledError, SourceUnavailable, StopAsyncIteration):
                await next_event
            await events.aclose()

    async def _events(self, view: _View) -> AsyncGenerator[bool]:
        """Apply the events of a watch to the view; yield True after each batch, and False where it must be read anew."""
        request = {
            "create_request": {
                **self._key_range(),
                "start_revision": view.revision + 1,
                "progress_notify": True,
            }
        }
        lines = self._client.lines(
            "POST", self._at("watch"), json=request, headers={**self._headers, **_HAS_LEADER}
        )
        async with contextlib.aclosing(lines):
            try:
                async with asyncio.timeout(self._timeout):
                    first = await anext(lines, None)
            except TimeoutError:
                # A member that has just started may leave a watch open in silence.
                raise self._failed(
                    "watch", f"it did not begin within {self._timeout:g} s"
                ) from None
            async for line in _after(first, lines):
                is_valid = self._apply_line(view, line)
                if is_valid is not None:
                    yield is_valid
                if is_valid is False:
                    return
        raise self._failed("watch", "the server ended it")

    def _apply_line(self, view: _View, line: bytes) -> bool | None:
        """Apply the events of a line; return True if there were some, and False where the view must be read anew."""
        result = self._result(line)
        header = result.get("header", {})
        if result.get("canceled"):
            if "compact_revision" in result:
                return False
            raise self._failed("watch", result.get("cancel_reason") or "it was cancelled")
        revision = int(header.get("revision", 0))
        went_back = result.get("created") and revision < view.revision
        if went_back or header.get("cluster_id", view.cluster) != view.cluster:
            return False
        events = result.get("events")
        if not events:
            return None
        for event in events:
            self._apply(view, event)
        view.revision = max(view.revision, revision)
        return True

    def _apply(self, view: _View, event: dict[str, Any]) -> None:
        pair = event["kv"]
        key = _text(pair["key"])
        if event.get("type") == "DELETE":
            view.remove(key)
        else:
            value = base64.b64decode(pair.get("value", ""))
            view.set(key, value, int(pair["mod_revision"]))

    def _result(self, line: bytes) -> dict[str, Any]:
        try:
            found = orjson.loads(line)
            if "error" in found:
                raise self._failed("watch", str(found["error"].get("message", found["error"])))
            return dict(found["result"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._failed("watch", f"it answered {line[:60]!r}") from None

    async def _range(self) -> _View:
        """Read all keys below the prefix at one revision, in pages."""
        view: _View | None = None
        size = 0
        request: dict[str, Any] = {**self._key_range(), "limit": _PAGE_KEYS}
        while True:
            page = await self._post("kv/range", request)
            if view is None:
                header = page["header"]
                if "revision" not in header:
                    raise self._failed("kv/range", "the answer has no revision")
                view = _View(int(header["revision"]), header.get("cluster_id", ""))
                request["revision"] = view.revision
            for pair in page.get("kvs", ()):
                value = base64.b64decode(pair.get("value", ""))
                view.set(_text(pair["key"]), value, int(pair["mod_revision"]))
                size += len(value) + len(pair["key"])
            self._client.check_size(self._at("kv/range"), size)
            if not page.get("more"):
                break
            request["key"] = _base64(base64.b64decode(page["kvs"][-1]["key"]) + b"\0")
        if self._cluster not in (None, view.cluster):
            _log.warning("%s is another cluster than before", self.name)
            # Revisions of two clusters cannot be compared: the other one counts as a version that went back.
            self._offset = self._highest - 1 - view.revision
        self._cluster = view.cluster
        self._view = view
        return view

    async def _is_current(self, view: _View) -> bool:
        """Ask for the names and revisions alone, and compare; the server must have the quorum to answer."""
        request = {**self._key_range(), "keys_only": True, "limit": 0}
        page = await self._post("kv/range", request)
        if page["header"].get("cluster_id", "") != view.cluster:
            return False
        found = {_text(one["key"]): int(one["mod_revision"]) for one in page.get("kvs", ())}
        return found == {key: one.mod_revision for key, one in view.keys.items()}

    async def _value(self, key: str, digest: str) -> bytes:
        async with self._client.session():
            page = await self._post("kv/range", {"key": _base64(key.encode())})
        values = [base64.b64decode(one.get("value", "")) for one in page.get("kvs", ())]
        if not values or digest_of(values[0]) != digest:
            raise self._failed("kv/range", f"{key} has changed meanwhile")
        return values[0]

    def _state(self, view: _View, *, rescued: bool = False) -> State:
        files: dict[str, Blob] = {}
        for key, one in view.keys.items():
            name = key.removeprefix(self._prefix)
            if key in view.fresh:
                files[name] = view.fresh[key]
            else:
                files[name] = Reference(one.digest, partial(self._value, key, one.digest))
        view.fresh = {}
        order = view.revision + self._offset
        self._highest = max(self._highest, order)
        unit = Unit(str(view.revision), files)
        return State({"": unit}, self._token(view), order, rescued=rescued)

    async def _authenticate(self) -> None:
        self._headers = {}
        if self._user is None or self._password_file is None:
            return
        try:
            password = read_secret(self._password_file)
        except ValueError as error:
            raise SourceUnavailable(f"{self.name}: {error}") from error
        answer = await self._post("auth/authenticate", {"name": self._user, "password": password})
        self._headers = {"Authorization": answer["token"]}

    async def _post(self, method: str, request: object) -> dict[str, Any]:
        found = await self._client.post_json(self._at(method), request, headers=self._headers)
        if not isinstance(found, dict):
            raise self._failed(method, f"it answered {type(found).__name__}")
        return found

    def _key_range(self) -> dict[str, str]:
        start = self._prefix.encode()
        return {"key": _base64(start), "range_end": _base64(_end_of(start))}

    def _at(self, method: str) -> str:
        return f"{self._client.url}v3/{method}"

    def _failed(self, method: str, problem: str) -> SourceUnavailable:
        return self._client.failed(self._at(method), problem)

    @staticmethod
    def _token(view: _View) -> str:
        return f"{view.cluster}/{view.revision}"


async def _after(first: bytes | None, lines: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for line in lines:
            yield line


async def _next(events: AsyncGenerator[bool]) -> bool:
    return await anext(events)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")


def _end_of(prefix: bytes) -> bytes:
    """Return the first key that does not begin with the prefix (as `clientv3.GetPrefixRangeEnd`)."""
    for position in reversed(range(len(prefix))):
        if prefix[position] < 0xFF:
            return prefix[:position] + bytes([prefix[position] + 1])
    return b"\0"
