"""The keys of a bucket of NATS (https://docs.nats.io/nats-concepts/jetstream/key-value-store), by a consumer of its stream.

The consumer sends the last value of each key, then each change, numbered, and says at an interval what its last number is:
so nothing is missed unnoticed, and a server that is silent is known to be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from sidecar._errors import ConfigError
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit
from sidecar.process import arguments, http_endpoint, metrics
from sidecar.process.secret_file import read_secret

_log = logging.getLogger(__name__)

_BUCKET_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CLOSE_SECONDS = 1.0
_MOST_CHANGES = 1000
"""Changes in one state, where more come without a pause."""
_MOST_SUBJECTS = 100_000
"""Names in one answer of the server."""
_SEVERAL_WAYS = "give one of user with password_file, token_file, creds_file and nkey_file"
_DELETED = frozenset(("DEL", "PURGE"))


class NatsSource:
    """Follow a bucket: `nats://host:4222/BUCKET`, or its keys with a prefix: `nats://host:4222/BUCKET/PREFIX`.

    Each key is a unit: NATS changes no two of them together. `nats+tls` refuses a server without TLS.
    Several servers are tried in turn: `nats://one:4222,two:4222/BUCKET`.

    Args:
        user, password_file, token_file, creds_file, nkey_file: credentials; the files are read for each connection.
        ping: seconds between two signs of life.
        recheck: seconds between two comparisons with the keys that the bucket has: it may remove some without saying so.
        max_bytes: limit of the values that come at once.

    >>> NatsSource("nats://127.0.0.1:4222/app/menu.")
    <NatsSource nats://127.0.0.1:4222/app/menu.>
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password_file: str | None = None,
        token_file: str | None = None,
        creds_file: str | None = None,
        nkey_file: str | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        timeout: float = 10.0,
        ping: float = 5.0,
        recheck: float = 60.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        parts = urlsplit(url)
        before, _, hosts = parts.netloc.rpartition("@")
        bucket, _, self._prefix = unquote(parts.path).lstrip("/").partition("/")
        self.name = f"{parts.scheme}://{hosts}{parts.path}"
        if before:
            raise ConfigError(f"{self.name}: put user and password into options: #user=NAME&password_file=FILE")  # fmt: skip
        if not hosts or not _BUCKET_NAME.fullmatch(bucket):
            raise ConfigError(f"{self.name!r} names no bucket: write nats://host:4222/BUCKET")
        if (user is None) != (password_file is None):
            raise ConfigError(f"{self.name}: user and password_file go together")
        if sum(one is not None for one in (user, token_file, creds_file, nkey_file)) > 1:
            raise ConfigError(f"{self.name}: {_SEVERAL_WAYS}")
        self._servers = [f"nats://{host}" for host in hosts.split(",")]
        self._stream, self._keys = f"KV_{bucket}", f"$KV.{bucket}."
        self._user, self._password_file, self._token_file = user, password_file, token_file
        self._creds_file, self._nkey_file = creds_file, nkey_file
        self._tls: http_endpoint.Tls | None = None
        if parts.scheme == "nats+tls":
            self._tls = http_endpoint.Tls(
                self.name, "https://", ca_file=ca_file, cert_file=cert_file, key_file=key_file
            )
        elif ca_file or cert_file or key_file:
            raise ConfigError(f"{self.name}: certificates are for nats+tls://")
        self._timeout = arguments.check_seconds("timeout", timeout, zero=False)
        self._ping = arguments.check_seconds("ping", ping, zero=False)
        self._recheck = arguments.check_seconds("recheck", recheck, zero=False)
        self._max_bytes = max_bytes
        self.interval: float | None = ping + timeout
        self._created: object = None
        """When the stream was made whose state was accepted last."""

    def __repr__(self) -> str:
        return f"<NatsSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the keys of the bucket, and again after each change."""
        token, is_rescue = since, False
        said: list[Exception] = []
        try:
            while True:
                async with self._connection(said) as client:
                    async for found in self._watch(client, token, is_rescue=is_rescue):
                        yield found
                        token = found.token
                metrics.MIRROR_RELISTS_TOTAL.labels("history").inc()
                is_rescue = True
        except nats.js.errors.NotFoundError:
            raise self._failed("there is no such bucket") from None
        except TimeoutError as error:
            raise self._failed(_last(said) or "no answer in time (is it stuck?)") from error
        except (OSError, ValueError, nats.errors.Error) as error:
            raise self._failed(_last(said) or str(error) or type(error).__name__) from error

    @asynccontextmanager
    async def _connection(self, said: list[Exception]) -> AsyncIterator[Any]:
        """Enter a connection; what it complains of is added to `said`."""

        async def note(error: Exception) -> None:
            said.append(error)

        client = Client()
        try:
            async with asyncio.timeout(self._timeout):
                await client.connect(
                    self._servers,
                    name="sidecar mirror",
                    error_cb=note,
                    # The runner connects again, with its pauses, and with the files as they are then.
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=self._timeout,  # type: ignore[arg-type, unused-ignore]
                    **self._credentials(client),
                )
            self._check_tls(client)
            yield client
        finally:
            with contextlib.suppress(OSError, nats.errors.Error):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()

    def _credentials(self, client: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._tls is not None:
            found["tls"] = self._tls.context()
        if self._creds_file is not None:
            found["user_credentials"] = self._creds_file
        if self._nkey_file is not None:
            found["nkeys_seed"] = self._nkey_file

        def secret(path: str) -> Any:
            text = read_secret(path)

            def give() -> str:
                self._check_tls(client)
                return text

            return give

        if self._token_file is not None:
            found["token"] = secret(self._token_file)
        if self._password_file is not None:
            found |= {"user": self._user, "password": secret(self._password_file)}
        return found

    def _check_tls(self, client: Any) -> None:
        """Refuse a server without TLS where that is wanted: the client would send it the password."""
        if self._tls is not None and not client._server_info.get("tls_required"):  # noqa: SLF001 (the client does not tell it)
            raise ValueError("the server offers no TLS")

    async def _watch(
        self, client: Any, token: str | None, *, is_rescue: bool
    ) -> AsyncIterator[State | Alive]:
        """Yield what a new consumer of the stream sends; it ends where that may lack something."""
        loop = asyncio.get_running_loop()
        stream = client.jetstream(timeout=self._timeout)
        subscription = await client.subscribe(inbox := client.new_inbox())
        info = await stream.stream_info(self._stream)
        view = _Bucket(self._keys + self._prefix, info.state.last_seq)
        view.pending = (await stream.add_consumer(self._stream, self._consumer(inbox))).num_pending
        due = loop.time() + self._pause()
        while True:
            if view.is_due(subscription.pending_msgs):
                state = self._state(view, info.created, is_rescue=is_rescue)
                yield Alive(token) if token == state.token else state
                self._created, token, is_rescue = info.created, state.token, False
                del state
            wait = 2 * self._ping if view.was_told else self._timeout
            message = await subscription.next_msg(timeout=wait)
            metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(len(message.data))
            if _is_status(message):
                await self._answer(client, message)
                if not view.is_complete(message):
                    return
                if token is not None and view.was_told:
                    yield Alive(token)
            elif not view.apply(message):
                return
            if view.fresh_bytes > self._max_bytes:
                raise ValueError(f"its values are larger than {self._max_bytes} bytes together (raise max_bytes)")  # fmt: skip
            if loop.time() >= due:
                due = loop.time() + self._pause()
                if not await self._has_all_keys(stream, view):
                    return

    def _consumer(self, inbox: str) -> Any:
        # A wildcard of NATS stands for whole parts between dots; the rest of a prefix is compared here.
        whole = self._prefix.rpartition(".")[0]
        return ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            filter_subject=f"{self._keys}{whole}.>" if whole else f"{self._keys}>",
            idle_heartbeat=self._ping,
            flow_control=True,
            mem_storage=True,
            num_replicas=1,
        )

    async def _answer(self, client: Any, message: Any) -> None:
        """Let the server go on: it sends no more than a client says that it has taken."""
        stalled = (message.headers or {}).get("Nats-Consumer-Stalled")
        if reply := message.reply or stalled:
            await client.publish(reply, b"")

    async def _has_all_keys(self, stream: Any, view: _Bucket) -> bool:
        """Ask for the names alone: keys that expire, or are purged with their stream, are not told of."""
        info = await stream.stream_info(self._stream, subjects_filter=f"{self._keys}>")
        found = info.state.subjects or {}
        return len(found) >= _MOST_SUBJECTS or all(view.subject + key in found for key in view.keys)

    def _state(self, view: _Bucket, created: object, *, is_rescue: bool) -> State:
        order: int | None = view.sequence if view.keys else None
        if order is not None and self._created not in (None, created):
            _log.warning("%s is another bucket than before", self.name)
            order = -1  # its numbers cannot be compared with those of the one before
        token = hashlib.sha256(repr(sorted(view.keys.items())).encode()).hexdigest()
        units = {
            key: Unit(version, {key: view.fresh[key]} if key in view.fresh else None)
            for key, version in view.keys.items()
        }
        changed_at = view.changed_at if view.was_told else None
        view.fresh, view.fresh_bytes, view.changes, view.was_told = {}, 0, 0, True
        return State(units, token, order, changed_at, rescued=is_rescue)

    def _pause(self) -> float:
        return self._recheck * random.uniform(0.5, 1.5)  # noqa: S311

    def _failed(self, problem: str) -> SourceUnavailable:
        return SourceUnavailable(f"cannot read {self.name}: {problem}")


class _Bucket:
    """The keys of the bucket: versions of values, and the values that have just come."""

    def __init__(self, subject: str, sequence: int) -> None:
        self.subject = subject
        self.sequence = sequence
        """The number of the newest message of the stream that is known."""
        self.pending = 0
        """Messages that the consumer has yet to send."""
        self.changes = 0
        """Messages since the last state."""
        self.was_told = False
        """Whether a state was yielded: before that, keys may be missing."""
        self.keys: dict[str, str] = {}
        self.fresh: dict[str, bytes] = {}
        self.fresh_bytes = 0
        self.changed_at: float | None = None
        self._delivered = 0

    def is_due(self, waiting: int) -> bool:
        """Return whether there is a state to yield; changes that have come already, `waiting`, are part of it."""
        if not self.was_told:
            return self.pending == 0
        return self.changes >= _MOST_CHANGES or (self.changes > 0 and waiting == 0)

    def apply(self, message: Any) -> bool:
        """Take a message over; False if one before it is missing."""
        data = message.metadata
        if data.sequence.consumer != self._delivered + 1:
            return False
        self._delivered += 1
        self.pending = data.num_pending
        self.sequence = max(self.sequence, data.sequence.stream)
        key = message.subject.removeprefix(self.subject)
        if key and message.subject.startswith(self.subject):
            self.changes += 1
            self.changed_at = data.timestamp.timestamp()
            # The time tells values of a restored stream apart, whose numbers are given out a second time.
            self._set(key, message, f"{data.sequence.stream}@{self.changed_at!r}")
        return True

    def _set(self, key: str, message: Any, version: str) -> None:
        self.fresh_bytes -= len(self.fresh.pop(key, b""))
        headers = message.headers or {}
        if headers.get("KV-Operation") in _DELETED or "Nats-Marker-Reason" in headers:
            self.keys.pop(key, None)
            return
        self.keys[key] = version
        self.fresh[key] = message.data
        self.fresh_bytes += len(message.data)

    def is_complete(self, heartbeat: Any) -> bool:
        """Return whether all has come of what the server has sent, as its heartbeat says."""
        last = heartbeat.headers.get("Nats-Last-Consumer")
        return last is None or int(last) == self._delivered


def _is_status(message: Any) -> bool:
    """Return whether it is no value: a heartbeat, or the question how far this is."""
    return (message.headers or {}).get("Status") == "100"


def _last(said: list[Exception]) -> str:
    return str(said[-1]) if said else ""
