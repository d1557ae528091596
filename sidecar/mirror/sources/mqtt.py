"""Retained messages of an MQTT broker, version 5 (https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html).

A broker does not say when it has sent all of them. So they are read until nothing more comes for a while, and read again,
until two readings have the same topics: that is taken for complete.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit

import aiomqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from sidecar._errors import ConfigError
from sidecar.mirror.states import Alive, SourceUnavailable, State, Unit, digest_of
from sidecar.process import arguments, http_endpoint, metrics
from sidecar.process.secret_file import read_secret

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MOST_READINGS = 10
_MOST_WAITING_MESSAGES = 10_000
_NOWHERE = "sidecar/alive"
"""A topic that nobody has subscribed to: to end that subscription is answered, and changes nothing."""
_CLIENT_LOG = logging.getLogger(f"{__name__}.client")
_CLIENT_LOG.setLevel(logging.CRITICAL)  # what it complains of is raised, too


class MqttSource:
    """Follow retained messages: `mqtt://host:1883/TOPIC`, or those below a prefix that ends with a slash: `mqtt://host:1883/PREFIX/`.

    Each topic is a unit. A retained message without a payload removes its topic, as MQTT has it; others are ignored
    unless they are retained.

    Args:
        user, password_file: the file is read for each connection.
        settle: seconds without another topic after which a reading has ended.
        ping: seconds between two signs of life.
        recheck: seconds between two readings.
        max_bytes: limit of the payloads that come at once.

    >>> MqttSource("mqtt://127.0.0.1/shop/config/")
    <MqttSource mqtt://127.0.0.1/shop/config/>
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
        settle: float = 1.0,
        ping: float = 5.0,
        recheck: float = 60.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.name = f"{parts.scheme}://{host}{parts.path}"
        topic = unquote(parts.path).removeprefix("/")
        if "@" in parts.netloc:
            raise ConfigError(f"{self.name}: put user and password into options: #user=NAME&password_file=FILE")  # fmt: skip
        if not parts.hostname or not topic or "+" in topic or "#" in topic:
            raise ConfigError(f"{self.name!r} names no topic: write mqtt://host:1883/TOPIC or mqtt://host:1883/PREFIX/")  # fmt: skip
        if password_file is not None and user is None:
            raise ConfigError(f"{self.name}: user and password_file go together")
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._filter = f"{topic}#" if topic.endswith("/") else topic
        self._prefix = "".join(topic.rpartition("/")[:2])
        self._user, self._password_file = user, password_file
        self._tls: http_endpoint.Tls | None = None
        if parts.scheme == "mqtts":
            self._tls = http_endpoint.Tls(
                self.name, "https://", ca_file=ca_file, cert_file=cert_file, key_file=key_file
            )
        elif ca_file or cert_file or key_file:
            raise ConfigError(f"{self.name}: certificates are for mqtts://")
        self._timeout = arguments.check_seconds("timeout", timeout, zero=False)
        self._settle = arguments.check_seconds("settle", settle, zero=False)
        self._ping = arguments.check_seconds("ping", ping, zero=False)
        self._recheck = arguments.check_seconds("recheck", recheck, zero=False)
        self._max_bytes = max_bytes
        self.interval: float | None = ping + timeout + settle

    def __repr__(self) -> str:
        return f"<MqttSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the retained messages, and again after each change."""
        try:
            waiting = _Waiting(_MOST_WAITING_MESSAGES)
            async with self._client(waiting) as client:
                messages = _Messages(client, waiting)
                try:
                    async for found in self._follow(client, messages, since):
                        yield found
                finally:
                    messages.close()
        except (aiomqtt.MqttError, OSError, ValueError) as error:
            raise SourceUnavailable(f"cannot read {self.name}: {error}") from error

    def _client(self, waiting: _Waiting) -> aiomqtt.Client:
        password = None if self._password_file is None else read_secret(self._password_file)
        context = None if self._tls is None else self._tls.context()
        queue: Any = lambda maxsize: waiting  # noqa: ARG005, E731
        return aiomqtt.Client(
            self._host,
            self._port,
            username=self._user,
            password=password,
            protocol=aiomqtt.ProtocolVersion.V5,
            timeout=self._timeout,
            tls_context=None if isinstance(context, bool) else context,
            queue_type=queue,
            logger=_CLIENT_LOG,
        )

    async def _follow(
        self, client: aiomqtt.Client, messages: _Messages, since: str | None
    ) -> AsyncIterator[State | Alive]:
        loop = asyncio.get_running_loop()
        topics = _Topics(self._prefix, self._max_bytes)
        token, due, has_read = since, 0.0, False
        while True:
            is_reading = loop.time() >= due
            if is_reading:
                async for _ in self._read(client, messages, topics):
                    yield Alive(token or "")
                due = loop.time() + self._recheck * random.uniform(0.5, 1.5)  # noqa: S311
            elif (message := await messages.next(self._ping)) is not None:
                topics.apply(message)
                # Changes that have come already are one state.
                for _ in range(len(client.messages)):
                    if (more := await messages.next(self._ping)) is not None:
                        topics.apply(more)
            else:
                await client.unsubscribe(_NOWHERE)
            state = topics.state(is_rescue=is_reading and has_read)
            yield Alive(state.token) if state.token == token else state
            token, has_read = state.token, True
            del state

    async def _read(
        self, client: aiomqtt.Client, messages: _Messages, topics: _Topics
    ) -> AsyncIterator[None]:
        """Read all retained messages until two readings have found the same topics; what neither has found is gone."""
        loop = asyncio.get_running_loop()
        before: set[str] | None = None
        for _ in range(_MOST_READINGS):
            found: set[str] = set()
            # The broker sends retained messages again with each subscription.
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            codes: Any = await client.subscribe(self._filter, options=options)
            if refused := [code for code in codes if getattr(code, "is_failure", False)]:
                raise ValueError(f"the broker refuses the subscription: {refused[0]}")
            limit = loop.time() + self._timeout
            settled = loop.time() + self._settle
            while message := await messages.next(min(settled, limit) - loop.time()):
                name = topics.apply(message)
                if name not in found:
                    # Others are changes, which may come for ever.
                    found.add(name)
                    settled = loop.time() + self._settle
            yield None
            found &= topics.digests.keys()
            if found == before and settled < limit:
                topics.keep(found)
                return
            before = found
        raise ValueError(f"no two of {_MOST_READINGS} readings had the same topics")


class _Waiting(asyncio.Queue[aiomqtt.Message]):
    """The messages that have come and were not taken yet; the client discards what does not fit, and goes on."""

    has_discarded = False

    def put_nowait(self, item: aiomqtt.Message) -> None:
        try:
            super().put_nowait(item)
        except asyncio.QueueFull:
            self.has_discarded = True
            raise


class _Messages:
    """The messages of a client, one after the other; to wait for one with a limit loses none."""

    def __init__(self, client: aiomqtt.Client, waiting: _Waiting) -> None:
        self._client, self._waiting = client, waiting
        self._pending: asyncio.Task[aiomqtt.Message] | None = None

    async def next(self, seconds: float) -> aiomqtt.Message | None:
        """Return the next message, None if there is none within so many seconds.

        Raises:
            ValueError: one was discarded, so what is known is not all.
        """
        if self._waiting.has_discarded:
            raise ValueError(f"more than {self._waiting.maxsize} messages came at once")
        if self._pending is None and not self._waiting.empty():
            return self._waiting.get_nowait()  # it comes before those for which a task waits
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._anext())
        done, _ = await asyncio.wait({self._pending}, timeout=seconds)
        if not done:
            return None
        found, self._pending = self._pending, None
        return found.result()

    def close(self) -> None:
        if self._pending is not None and not self._pending.cancel():
            self._pending.exception()  # that of the connection, which others have been told

    async def _anext(self) -> aiomqtt.Message:
        return await anext(self._client.messages)


class _Topics:
    """The retained messages: digests of payloads, and the payloads that have just come."""

    def __init__(self, prefix: str, limit: int) -> None:
        self._prefix, self._limit = prefix, limit
        self.digests: dict[str, str] = {}
        self._fresh: dict[str, bytes] = {}
        self._fresh_bytes = 0

    def apply(self, message: aiomqtt.Message) -> str:
        """Take a message over, and return the name of its file."""
        name = str(message.topic).removeprefix(self._prefix)
        data = message.payload
        metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(len(data))
        if not message.retain:
            pass  # it is gone as soon as it was sent
        elif not data:
            self._forget(name)
        elif self.digests.get(name) != (digest := digest_of(data)):
            self._forget(name)
            self.digests[name], self._fresh[name] = digest, data
            self._fresh_bytes += len(data)
        if self._fresh_bytes > self._limit:
            raise ValueError(f"its messages are larger than {self._limit} bytes together (raise max_bytes)")  # fmt: skip
        return name

    def keep(self, names: set[str]) -> None:
        """Forget all topics but these."""
        for name in self.digests.keys() - names:
            self._forget(name)

    def state(self, *, is_rescue: bool) -> State:
        """Return what is known, and forget the payloads."""
        token = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()
        units = {
            name: Unit(digest, {name: self._fresh[name]} if name in self._fresh else None)
            for name, digest in self.digests.items()
        }
        self._fresh, self._fresh_bytes = {}, 0
        return State(units, token, rescued=is_rescue)

    def _forget(self, name: str) -> None:
        self.digests.pop(name, None)
        self._fresh_bytes -= len(self._fresh.pop(name, b""))
