"""A hash or a string of Redis or Valkey, by client-side caching (https://redis.io/docs/latest/develop/reference/client-side-caching/).

The server tells on one connection when the key changes; it needs no configuration for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit

from sidecar._errors import ConfigError
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit, digest_of
from sidecar.process import arguments, http_endpoint, metrics
from sidecar.process.secret_file import read_secret

_DEFAULT_PORT = 6379
_LINE_BYTES = 64 << 10


class RedisError(SourceUnavailable):
    """The server answered with an error."""


class RedisSource:
    """Follow `redis://host:6379/DB/KEY`: the fields of a hash become files, a string one file with the key's last part.

    A hash is read at once, so its fields are never mixed. `rediss` is TLS.

    Args:
        user, password_file: as for AUTH; the file is read for each connection.
        ping: seconds between two signs of life.
        recheck: seconds between two comparisons with what the server has.

    >>> RedisSource("redis://127.0.0.1/0/app")
    <RedisSource redis://127.0.0.1/0/app>
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password_file: str | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        timeout: float = 10.0,
        ping: float = 5.0,
        recheck: float = 60.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        parts = urlsplit(url)
        database, _, key = unquote(parts.path).lstrip("/").partition("/")
        if parts.password is not None:
            raise ConfigError(f"{parts.scheme}://{parts.hostname}{parts.path}: put the password into a file: #password_file=FILE")  # fmt: skip
        if not parts.hostname or not database.isdecimal() or not key:
            raise ConfigError(f"{url!r} names no key: write redis://host:6379/DB/KEY")
        self.name = url
        self._host, self._port = parts.hostname, parts.port or _DEFAULT_PORT
        self._database, self._key = database, key
        self._user, self._password_file = user or parts.username, password_file
        self._tls: http_endpoint.Tls | None = None
        if parts.scheme == "rediss":
            self._tls = http_endpoint.Tls(
                url, f"https://{parts.netloc}", ca_file=ca_file, cert_file=cert_file, key_file=key_file
            )  # fmt: skip
        elif ca_file or cert_file or key_file:
            raise ConfigError(f"{self.name}: certificates are for rediss://")
        if self._user is not None and password_file is None:
            raise ConfigError(f"{self.name}: user and password_file go together")
        self._timeout = arguments.check_seconds("timeout", timeout, zero=False)
        self._ping = arguments.check_seconds("ping", ping, zero=False)
        self._recheck = arguments.check_seconds("recheck", recheck, zero=False)
        self._max_bytes = max_bytes
        self.interval: float | None = ping + timeout

    def __repr__(self) -> str:
        return f"<RedisSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield what the key holds, and again after each change."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connect()
        except (OSError, TimeoutError) as error:
            raise self._failed(str(error) or "no answer to the connection") from error
        try:
            async for found in self._follow(connection, since):
                yield found
        except (
            OSError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ValueError,
        ) as error:
            raise self._failed(str(error) or "the connection was closed") from error
        except TimeoutError:
            raise self._failed(f"no answer within {self._timeout:g} s (is it stuck?)") from None
        finally:
            await connection.close()

    async def _follow(
        self, connection: _Connection, since: str | None
    ) -> AsyncIterator[State | Alive]:
        loop = asyncio.get_running_loop()
        token, is_changed, was_told = since, True, True
        due = loop.time() + self._pause()
        while True:
            if is_changed:
                state = await self._read(connection)
                if state.token == token:
                    yield Alive(state.token)
                else:
                    yield State(state.units, state.token, rescued=not was_told)
                token = state.token
            is_changed = was_told = await connection.invalidated(self._ping)
            if not is_changed:
                await connection.call("PING")
                if loop.time() >= due:
                    is_changed, due = True, loop.time() + self._pause()
                else:
                    yield Alive(token or "")

    async def _connect(self) -> _Connection:
        context = self._tls.context() if self._tls is not None else None
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=None if context is True else context, limit=_LINE_BYTES
        )
        connection = _Connection(reader, writer, self._key.encode(), self._timeout, self._max_bytes)
        try:
            hello = ["HELLO", "3"]
            if self._password_file is not None:
                hello += ["AUTH", self._user or "default", self._password()]
            await connection.call(*hello)
            await connection.call("SELECT", self._database)
            await connection.call("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._key)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _password(self) -> str:
        try:
            return read_secret(self._password_file or "")
        except ValueError as error:
            raise self._failed(str(error)) from error

    async def _read(self, connection: _Connection) -> State:
        kind = await connection.call("TYPE", self._key)
        files: dict[str, bytes] = {}
        if kind == b"hash":
            found = await connection.call("HGETALL", self._key)
            files = {_name(field): value for field, value in found.items()}
        elif kind == b"string":
            value = await connection.call("GET", self._key)
            files = {} if value is None else {self._key.rpartition("/")[2]: value}
        elif kind != b"none":
            raise self._failed(f"the key is a {_name(kind)}: a hash or a string is wanted")
        token = ";".join(f"{name}={digest_of(value)}" for name, value in sorted(files.items()))
        return State({"": Unit(token, files)} if files else {}, token)

    def _pause(self) -> float:
        return self._recheck * random.uniform(0.5, 1.5)  # noqa: S311

    def _failed(self, problem: str) -> SourceUnavailable:
        return SourceUnavailable(f"cannot read {self.name}: {problem}")


class _Connection:
    """A connection in the protocol RESP3 (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, timeout: float, max_bytes: int
    ) -> None:  # fmt: skip
        self._reader, self._writer = reader, writer
        self._key, self._timeout, self._max_bytes = key, timeout, max_bytes
        self._received = 0
        """Bytes of the answer that is being read."""
        self._is_changed = False
        self._pending: asyncio.Task[Any] | None = None

    async def call(self, *words: str) -> Any:
        """Send a command, and return the answer; what the server tells on the way is noted."""
        parts = [word.encode() for word in words]
        data = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._writer.write(b"*%d\r\n%b" % (len(parts), data))
        async with asyncio.timeout(self._timeout):
            await self._writer.drain()
            while True:
                kind, value = await self._message()
                if kind == b">":
                    self._note(value)
                elif kind in (b"-", b"!"):
                    raise RedisError(f"the server answered {words[0]} with {_name(value)}")
                else:
                    return value

    async def invalidated(self, seconds: float) -> bool:
        """Wait until the server tells that the key has changed, at most so long; whether it did."""
        with contextlib.suppress(TimeoutError):
            while not self._is_changed:
                waiting = self._pending or asyncio.ensure_future(self._message())
                self._pending = waiting
                done, _ = await asyncio.wait({waiting}, timeout=seconds)
                if not done:
                    break
                self._pending = None
                kind, value = waiting.result()
                if kind == b">":
                    self._note(value)
        changed, self._is_changed = self._is_changed, False
        return changed

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait({self._pending})
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _note(self, push: Any) -> None:
        if push and push[0] == b"invalidate":
            # None: all keys, after FLUSHALL.
            self._is_changed |= push[1] is None or self._key in push[1]

    async def _message(self) -> tuple[bytes, Any]:
        if self._pending is not None and self._pending is not asyncio.current_task():
            pending, self._pending = self._pending, None
            found: tuple[bytes, Any] = await pending
            return found
        self._received = 0
        line = await self._line()
        return line[:1], await self._value(line)

    async def _line(self) -> bytes:
        line = (await self._reader.readuntil(b"\r\n"))[:-2]
        self._count(len(line) + 2)
        return line

    def _count(self, size: int) -> None:
        """Count bytes, before they are read. Raises `ValueError` if the answer is too large."""
        self._received += size
        if self._received > self._max_bytes:
            raise ValueError(f"the answer is larger than {self._max_bytes} bytes")
        metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(size)

    async def _value(self, line: bytes) -> Any:
        kind, rest = line[:1], line[1:]
        if kind in (b"$", b"!", b"="):
            size = int(rest)
            if size < 0:
                return None
            self._count(size + 2)
            return (await self._reader.readexactly(size + 2))[:-2]
        if kind in (b"*", b"~", b">"):
            return None if rest == b"-1" else [await self._item() for _ in range(int(rest))]
        if kind == b"%":
            return {await self._item(): await self._item() for _ in range(int(rest))}
        if kind == b"_":
            return None
        if kind == b":":
            return int(rest)
        if kind in (b"+", b"-", b",", b"#", b"("):
            return rest
        raise ValueError(f"the answer is not in RESP3: {line[:40]!r}")

    async def _item(self) -> Any:
        value = await self._value(await self._line())
        return tuple(value) if isinstance(value, list) else value


def _name(data: bytes) -> str:
    return data.decode(errors="replace")
