"""A process among several that do the same work: what it asks the others, and what it tells them.

Their parent (`process/prefork/supervisor`) starts them and passes questions and answers on; they never speak to each other.
A process that is alone, as most programs are, has no siblings: nothing of this is used.

A message is one packet with one JSON array:

    ["started"]                     worker → parent     the work is being done from now on
    ["ask", id, topic]              worker → parent     what do all say about this?
    ["question", id, topic]         parent → worker     what do you say?
    ["answer", id, said]            worker → parent     this
    ["answers", id, said]           parent → worker     what all have said
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

Answer: TypeAlias = Callable[[], Awaitable[object]]
"""What this process says about a topic, as data that JSON can hold."""

METRICS = "metrics"
"""The topic whose answers are numbers, and added up; about others the answer is what each worker has said."""
REPLY_TIMEOUT = 0.5
"""Seconds in which a worker has to answer: less than a probe of Kubernetes waits."""
MAX_REPLY_BYTES = 1 << 20
"""Bytes of a message."""

_log = logging.getLogger(__name__)


class NoReply(SidecarError):
    """The parent does not answer: it has been stopped, or the machine has no time for it."""


class _WorkerState:
    """What is true of this process as a whole."""

    link: ControlChannel | None = None


def is_single() -> bool:
    """Tell whether this process has no siblings."""
    return _WorkerState.link is None


def number() -> int:
    """Return the number of this process among its siblings, from 1 on; 0 if it is alone."""
    return _WorkerState.link.number if _WorkerState.link is not None else 0


async def query_all(topic: str) -> Any:
    """Return what the parent has gathered about a topic from all workers, this one included.

    Raises:
        NoAnswer: nothing came in time.
    """
    if _WorkerState.link is None:
        raise NoReply("this process has no siblings to ask")
    return await _WorkerState.link.ask(topic)


def attach(number: int, link: socket.socket, parent_pid: int) -> None:
    """Be worker `number` of a parent from now on, and no longer than it lives; for `process/prefork/supervisor`."""
    # Not SIGTERM: when a program is killed its port is free at once, also where there are several processes.
    parent_death.die_with_parent(parent_pid, signal.SIGKILL)
    _WorkerState.link = ControlChannel(number, link)
    name_worker(number)


def started() -> None:
    """Tell the parent that the work is being done."""
    if _WorkerState.link is not None:
        _WorkerState.link.send("started")


@contextmanager
def serve_queries(answers: dict[str, Answer]) -> Iterator[None]:
    """Answer questions, and end when the parent says so, as long as the block runs; needs a running loop."""
    if _WorkerState.link is None:
        yield
        return
    with _WorkerState.link.open(answers):
        yield


class ControlChannel:
    """The worker's end of the line to its parent."""

    def __init__(self, number: int, link: socket.socket) -> None:
        self.number = number
        self._socket = link
        self._socket.setblocking(False)
        self._answers: dict[str, Answer] = {}
        self._queries: dict[int, asyncio.Future[Any]] = {}
        self._ids = count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Link of worker {self.number} asked={len(self._queries)}>"

    @contextmanager
    def open(self, answers: dict[str, Answer]) -> Iterator[None]:
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
            # The parent waits as long for a worker that says nothing, and then answers without it.
            async with asyncio.timeout(2 * REPLY_TIMEOUT):
                return await future
        except TimeoutError as error:
            raise NoReply(
                f"the parent process {os.getppid()} of the workers does not answer"
            ) from error
        finally:
            del self._queries[query_id]

    def send(self, *message: object) -> None:
        # A parent that takes nothing more is missed by whoever waits for its answer.
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
            _log.warning("the parent process is gone")
            lifecycle.stop()
            return
        match json.loads(data):
            case ["question", int(query_id), str(topic)]:
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
    """Return a message as a packet."""
    return json.dumps(message, separators=(",", ":")).encode()
