"""Several processes that do the same work, under one parent that starts, replaces and ends them.

The parent has no event loop and no thread, so it can fork whenever it must; what the work is, it does not know.

    begin(4)      forks the first, waits until it has started, then forks the others
    a death       is logged, and another process takes the place: at once, then after growing pauses
    SIGTERM       all are told to drain, at the same time; the program ends when they have,
                  and whoever hangs for longer than that may take is killed
    a second one  they are killed; but SIGHUP only ever asks, see `process/lifecycle`
    ask           what each worker says about a topic is gathered for the one who wants to know (`process/prefork/worker`)

A worker that dies again and again is not replaced for ever: the program ends with its status,
and whoever has started the program decides, as with one process.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from sidecar.process import memory, metrics, signals
from sidecar.process.prefork.aggregate import MetricAggregator
from sidecar.process.prefork.worker import (
    MAX_REPLY_BYTES,
    METRICS,
    REPLY_TIMEOUT,
    attach,
    encode,
)

MAX_DEATHS = 5
DEATH_WINDOW = 60.0
"""So many ends of one worker in so many seconds end the program."""
_FIRST_PAUSE = 0.25
"""Seconds between the second end of a worker and its next beginning; twice as many after each further end.

The first time it begins at once: new connections that are its share wait for it.
"""

KILL_AFTER = 5.0
"""Seconds beyond the time for draining in which a worker cleans up: two to stop its watch, two for aiohttp."""
_REAPED_WITHIN = 1.0

_REFUSED_PAUSE = 1.0
"""Seconds until it is tried again where the system refuses a process: its limits are shared with others."""
_log = logging.getLogger(__name__)


def fork_workers(size: int, *, release: Callable[[], None], drain: float = math.inf) -> int:
    """Become `size` processes: return in each of them, with its number from 1 on.

    In the parent it never returns: it leaves with SystemExit when all have ended.
    The status is 0 if all have ended with 0 after they had been told to;
    that of a worker that cannot start, or dies again and again; 128 + its number after a second signal.

    Call it in a process without threads and without an event loop, after all that they have in common is in memory.

    Args:
        size: the number of processes.
        release: called in the parent when it drains: gives up what it holds for workers to come.
        drain: seconds that the end of a worker may take; one that takes `KILL_AFTER` longer hangs, and is killed.
    """
    memory.trim_heap()
    # What is there now is never garbage, so no worker's collector writes to its pages: they stay shared.
    gc.collect()
    gc.freeze()
    numbers = (*signals.stop_signals(), signal.SIGCHLD)
    with signals.captured_signals(*numbers) as arrived:
        number = _Supervisor(size, numbers, arrived, release, drain).run()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return number


@dataclass(eq=False)
class _Worker:
    """One process, and our end of the line to it."""

    number: int
    pid: int
    link: socket.socket
    started: bool = False

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    def send(self, *message: object) -> bool:
        """Send without waiting; False if it takes nothing more, because it hangs or is gone."""
        try:
            self.link.send(encode(message))
        except OSError:
            return False
        return True


@dataclass(eq=False)
class _Query:
    """What one worker wants to know from all."""

    asker: _Worker
    asked: int
    topic: str
    limit: float
    waiting: set[int]
    said: dict[int, Any] = field(default_factory=dict)


class _Supervisor:
    def __init__(
        self,
        size: int,
        numbers: Sequence[signal.Signals],
        arrived: socket.socket,
        release: Callable[[], None],
        drain: float,
    ) -> None:
        self._drain_time = drain
        self._kill_at = math.inf
        """When those that have not ended are killed, and after that left behind: not even SIGKILL ends who waits for a dead disk."""
        self._size = size
        self._signals = numbers
        self._arrived = arrived
        self._release = release
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}
        """When the next process of a number begins."""
        self._deaths: dict[int, deque[float]] = {}
        self._questions: dict[int, _Query] = {}
        self._ids = count(1)
        self._totals = MetricAggregator()
        self._up = False
        """The first worker has started, so a start can succeed."""
        self._stopping: signal.Signals | None = None
        self._killed = False
        self._status = 0
        # Not epoll: a child that closes its copy would have to take care of what it shares with us.
        self._selector = selectors.PollSelector()
        self._selector.register(arrived, selectors.EVENT_READ, self._signalled)

    def run(self) -> int:
        """Return in a worker, with its number and with our signals blocked."""
        self._due = {1: 0.0}  # alone: what is wrong with all of them is said once
        while True:
            for number in [n for n, moment in self._due.items() if moment <= time.monotonic()]:
                del self._due[number]
                if self._fork(number):
                    return number
            for key, _ in self._selector.select(self._time_left()):
                key.data()
            self._end_late_questions()
            self._kill_late()
            if not self._workers and not self._due:
                raise SystemExit(self._status)

    def _fork(self, number: int) -> bool:
        """Start a process; True in it. If the system has none to give, or no descriptor, it is tried again a little later."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._put_off(number, error)
            return False
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REPLY_BYTES)
        # A signal between here and the worker's own handlers waits for those.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
            ours.close()
            theirs.close()
            self._put_off(number, error)
            return False
        if pid == 0:
            ours.close()
            self._selector.close()
            for worker in self._workers.values():
                worker.link.close()
            attach(number, theirs, parent)
            metrics.WORKER_RESTARTS_TOTAL.reset()  # that was counted by the parent
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        theirs.close()
        ours.setblocking(False)
        worker = self._workers[number] = _Worker(number, pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read(worker))
        return False

    def _put_off(self, number: int, error: OSError) -> None:
        """Let the others go on while there is no process for one; without the first, nothing works."""
        if not self._up:
            raise error
        _log.warning(
            "cannot begin worker %d: %s (is a limit of processes or open files reached?); tried again in %g s",
            number,
            error.strerror,
            _REFUSED_PAUSE,
        )
        self._due[number] = time.monotonic() + _REFUSED_PAUSE

    def _time_left(self) -> float | None:
        """Return the seconds until there is something to do, None if nothing is planned."""
        limits = (one.limit for one in self._questions.values())
        nearest = min(self._kill_at, *self._due.values(), *limits, math.inf)
        return max(0.0, nearest - time.monotonic()) if nearest < math.inf else None

    # Beginning and end

    def _signalled(self) -> None:
        for number in self._arrived.recv(1024):
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self._stop(signal.Signals(number))

    def _stop(self, received: signal.Signals) -> None:
        if self._stopping is not None:
            if received == signal.SIGHUP:
                return
            self._kill()
            raise SystemExit(128 + received)
        _log.info(
            "%s: %d workers drain, a second signal ends them at once",
            received.name,
            len(self._workers),
        )
        self._stopping = received
        self._drain()

    def _drain(self) -> None:
        self._due.clear()
        self._release()
        self._kill_at = time.monotonic() + self._drain_time + KILL_AFTER
        for worker in self._workers.values():
            if not worker.send("stop"):
                os.kill(worker.pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        """Kill those that hang, and a second later end without those that even then are there."""
        if time.monotonic() < self._kill_at or not self._workers:
            return
        if self._killed:
            raise SystemExit(self._status or 128 + signal.SIGKILL)
        for worker in self._workers.values():
            _log.error(
                "%s has not ended %g s after it was told to, and is killed",
                worker,
                self._drain_time + KILL_AFTER,
            )
        self._killed = True
        self._kill_at = time.monotonic() + _REAPED_WITHIN
        self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _kill(self) -> None:
        self._kill_all()
        for worker in self._workers.values():
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)

    def _reap(self) -> None:
        """Take note of all that have ended; as process 1 of a container also of those that are nobody's."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in [one for one in self._workers.values() if one.pid == pid]:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        self._forget(worker)
        status = code if code >= 0 else 128 - code
        how = f"with {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if self._stopping is not None or self._status:
            self._status = self._status or status
            if status:
                _log.warning("%s has ended %s while draining", worker, how)
            return
        if not worker.started and not self._up:
            self._give_up(status)  # it has said why
            return
        deaths = self._deaths.setdefault(worker.number, deque(maxlen=MAX_DEATHS))
        deaths.append(time.monotonic())
        recent = [moment for moment in deaths if moment > deaths[-1] - DEATH_WINDOW]
        if len(recent) == MAX_DEATHS:
            _log.error(
                "%s has ended %s, the %dth time within %.0f s: giving up",
                worker,
                how,
                MAX_DEATHS,
                DEATH_WINDOW,
            )
            self._give_up(status)
            return
        pause = _FIRST_PAUSE * 2 ** (len(recent) - 2) if len(recent) > 1 else 0.0
        when = f"in {pause:g} s" if pause else "now"
        _log.warning("%s has ended %s; another one begins %s", worker, how, when)
        metrics.WORKER_RESTARTS_TOTAL.inc()
        self._due[worker.number] = deaths[-1] + pause

    def _give_up(self, status: int) -> None:
        self._status = status or 1
        self._drain()

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        self._totals.ended(worker.number)
        if worker.link in self._selector.get_map():
            self._selector.unregister(worker.link)
        worker.link.close()
        for key, question in list(self._questions.items()):
            if question.asker is worker:
                del self._questions[key]
            else:
                self._heard(key, worker.number)

    # Questions and answers

    def _read(self, worker: _Worker) -> None:
        try:
            data = worker.link.recv(MAX_REPLY_BYTES)
        except OSError:
            return
        if not data:
            # It is ending, and SIGCHLD will tell. Until then its end of the line is ready to be read for ever.
            self._selector.unregister(worker.link)
            return
        match json.loads(data):
            case ["started"]:
                self._has_started(worker)
            case ["ask", int(asked), str(topic)]:
                self._ask(worker, asked, topic)
            case ["answer", int(key), said]:
                self._take(worker, key, said)

    def _has_started(self, worker: _Worker) -> None:
        worker.started = True
        if not self._up:
            self._up = True
            self._due |= dict.fromkeys(range(2, self._size + 1), 0.0)
        elif len(self._workers) == self._size and all(
            one.started for one in self._workers.values()
        ):
            _log.info("all %d workers have started", self._size)

    def _ask(self, asker: _Worker, asked: int, topic: str) -> None:
        limit = time.monotonic() + REPLY_TIMEOUT
        key, waiting = next(self._ids), set(self._workers)
        self._questions[key] = _Query(asker, asked, topic, limit, waiting)
        for worker in list(self._workers.values()):
            worker.send("question", key, topic)

    def _take(self, worker: _Worker, key: int, said: Any) -> None:
        question = self._questions.get(key)
        if question is None:
            return  # it comes too late
        if question.topic == METRICS:
            self._totals.note(worker.number, said)
        else:
            question.said[worker.number] = said
        self._heard(key, worker.number)

    def _heard(self, key: int, number: int) -> None:
        """Wait for this worker no longer, and answer if it was the last one."""
        question = self._questions[key]
        question.waiting.discard(number)
        if not question.waiting:
            self._answer(key)

    def _answer(self, key: int) -> None:
        question = self._questions.pop(key)
        if question.topic == METRICS:
            said: object = self._totals.sum(metrics.export_families())
        else:
            said = question.said | dict.fromkeys(question.waiting)
        question.asker.send("answers", question.asked, said)

    def _end_late_questions(self) -> None:
        now = time.monotonic()
        for key in [key for key, one in self._questions.items() if one.limit <= now]:
            self._answer(key)
