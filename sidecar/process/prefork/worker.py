"""The worker's side of prefork: its control channel to the supervisor.

The supervisor (`process/prefork/supervisor`) starts the workers and relays queries and replies; workers never talk to each other.
A single process, as most programs are, uses nothing of this.

A message is one packet with one JSON array:

    ["started"]                     worker → parent     the worker serves from now on
    ["ask", id, topic]              worker → parent     query all workers on a topic
    ["query", id, topic]            parent → worker     query this worker
    ["answer", id, reply]           worker → parent     its reply
    ["answers", id, replies]        parent → worker     the replies of all workers
    ["stop"]                        parent → worker     as the first SIGTERM
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeAlias

from sidecar._errors import SidecarError
from sidecar.process import lifecycle, parent_death
from sidecar.process.logging import name_worker

QueryHandler: TypeAlias = Callable[[], Awaitable[object]]
"""Returns the reply of this process on a topic, as JSON data."""

METRICS = "metrics"
"""The topic whose replies are aggregated; for others each worker's reply is returned."""
REPLY_TIMEOUT = 0.5
"""Seconds that a worker has to reply: less than the timeout of a Kubernetes probe."""
MAX_REPLY_BYTES = 1 << 20
"""Largest message in bytes."""

_log = logging.getLogger(__name__)


class NoReply(SidecarError):
    """The parent does not reply: it has been stopped, or the machine is overloaded."""


class _WorkerState:
    """State of this process."""

    link: ControlChannel | None = None


def is_single() -> bool:
    """Return whether this process is the only one."""
    return _WorkerState.link is None


def number() -> int:
    """Return the worker number of this process, from 1 on; 0 for a single process."""
    return _WorkerState.link.number if _WorkerState.link is not None else 0


async def query_all(topic: str) -> Any:
    """Return the replies of all workers on a topic, collected by the parent.

    Raises:
        NoReply: nothing arrived in time.
    """
    if _WorkerState.link is None:
        raise NoReply("this process has no siblings to ask")
    return await _WorkerState.link.ask(topic)


def attach(number: int, link: socket.socket, parent_pid: int) -> None:
    """Make this process worker `number` of a parent; it ends with the parent. For `process/prefork/supervisor`."""
    # Not SIGTERM: after a kill the port must be free at once, also with several processes.
    parent_death.die_with_parent(parent_pid, signal.SIGKILL)
    _WorkerState.link = ControlChannel(number, link)
    name_worker(number)


def started() -> None:
    """Notify the parent that this worker serves."""
    if _WorkerState.link is not None:
        _WorkerState.link.send("started")


@contextmanager
def serve_queries(answers: dict[str, QueryHandler]) -> Iterator[None]:
    """Reply to queries, and stop when the parent says so, while the block runs; needs a running event loop."""
    if _WorkerState.link is None:
        yield
        return
    with _WorkerState.link.open(answers):
        yield


class ControlChannel:
    """The worker's end of its control channel."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self.number = number
        self._socket = link
        self._socket.setblocking(False)
        self._answers: dict[str, QueryHandler] = {}
        self._queries: dict[int, asyncio.Future[Any]] = {}
        self._ids = count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<ControlChannel of worker {self.number} asked={len(self._queries)}>"

    @contextmanager
    def open(self, answers: dict[str, QueryHandler]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._answers = answers
        loop.add_reader(self._socket, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._socket)
            for task in self._tasks:
                task.cancel()

    async def ask(self, topic: str) -> Any:
        query_id = next(self._ids)
        future = self._queries[query_id] = asyncio.get_running_loop().create_future()
        try:
            self.send("ask", query_id, topic)
            # The parent waits half of this for slow workers, and then replies without them.
            async with asyncio.timeout(2 * REPLY_TIMEOUT):
                return await future
        except TimeoutError as error:
            raise NoReply(
                f"the parent process {os.getppid()} of the workers does not answer"
            ) from error
        finally:
            del self._queries[query_id]

    def send(self, *message: object) -> None:
        # A parent that does not read is noticed by the caller that waits for its reply.
        with contextlib.suppress(OSError):
            self._socket.send(encode(message))

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            _log.warning("the parent process is gone", extra={"event": "workers.parent_gone"})
            lifecycle.stop()
            return
        match json.loads(data):
            case ["query", int(query_id), str(topic)]:
                task = asyncio.create_task(self._answer(query_id, topic), name=f"answer on {topic}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case ["answers", int(query_id), replies]:
                future = self._queries.get(query_id)
                if future is not None and not future.done():
                    future.set_result(replies)
            case ["stop"]:
                lifecycle.stop()

    async def _answer(self, query_id: int, topic: str) -> None:
        self.send("answer", query_id, await self._answers[topic]())


def encode(message: object) -> bytes:
    """Encode a message as a packet."""
    return json.dumps(message, separators=(",", ":")).encode()
