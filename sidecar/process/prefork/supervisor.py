"""The supervisor of prefork workers: it starts, replaces and stops them.

It has no event loop and no thread, so it can fork at any time; it does not know what the workers do.

    fork_workers(4)   forks the first worker, waits until it has started, then forks the others
    worker exit       logged; a new worker starts at once, then after growing delays
    SIGTERM           all workers drain at the same time; the program ends when they have,
                      and a worker that exceeds the drain timeout is killed
    second signal     the workers are killed; but SIGHUP is always graceful, see `process/lifecycle`
    query             the replies of all workers on a topic are collected for one of them (`process/prefork/worker`)

A worker that fails again and again is not replaced for ever: the program ends with its status,
and whatever has started the program decides, as with a single process.
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
"""`MAX_DEATHS` exits of one worker within `DEATH_WINDOW` seconds end the program."""
_FIRST_RESTART_DELAY = 0.25
"""Seconds between the second exit of a worker and its restart; doubled after each further exit.

After the first exit it restarts at once: its share of new connections waits for it.
"""

KILL_GRACE_PERIOD = 7.0
"""Seconds after the drain timeout that a worker has for clean-up: two to stop its watch, two for aiohttp, two for its last spans."""
_REAP_TIMEOUT = 1.0

_FORK_RETRY_DELAY = 1.0
"""Seconds until fork is tried again after the system has refused it: its limits are shared with other programs."""
_log = logging.getLogger(__name__)


def fork_workers(size: int, *, release: Callable[[], None], drain: float = math.inf) -> int:
    """Fork `size` workers: return in each of them, with its number from 1 on.

    In the parent it never returns: it raises SystemExit when all workers have ended.
    The status is 0 if all have ended with 0 after the signal;
    that of a worker that cannot start, or fails again and again; 128 + the signal's number after a second signal.

    Call it in a process without threads and without an event loop, after everything they share is in memory.

    Args:
        size: the number of workers.
        release: called in the parent when it drains: closes what it holds for future workers.
        drain: seconds that a worker may take to drain; `KILL_GRACE_PERIOD` later it is killed.
    """
    memory.trim_heap()
    # Objects that exist now are never garbage, so the collectors of the workers do not write to their pages: they stay shared.
    gc.collect()
    gc.freeze()
    numbers = (*signals.stop_signals(), signal.SIGCHLD)
    with signals.captured_signals(*numbers) as signal_socket:
        number = _Supervisor(size, numbers, signal_socket, release, drain).run()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return number


@dataclass(eq=False)
class _Worker:
    """A worker process, and the parent's end of its control channel."""

    number: int
    pid: int
    link: socket.socket
    started: bool = False

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    def send(self, *message: object) -> bool:
        """Send without blocking; False if the worker hangs or is gone."""
        try:
            self.link.send(encode(message))
        except OSError:
            return False
        return True


@dataclass(eq=False)
class _Query:
    """A query of one worker to all."""

    requester: _Worker
    query_id: int
    topic: str
    limit: float
    pending: set[int]
    replies: dict[int, Any] = field(default_factory=dict)


class _Supervisor:
    def __init__(
        self,
        size: int,
        numbers: Sequence[signal.Signals],
        signal_socket: socket.socket,
        release: Callable[[], None],
        drain: float,
    ) -> None:
        self._drain_time = drain
        self._kill_at = math.inf
        """When the remaining workers are killed, and after that abandoned: SIGKILL does not end a process that waits for a dead disk."""
        self._size = size
        self._signals = numbers
        self._signal_socket = signal_socket
        self._release = release
        self._workers: dict[int, _Worker] = {}
        self._start_times: dict[int, float] = {}
        """Start time of the next process, by worker number."""
        self._deaths: dict[int, deque[float]] = {}
        self._queries: dict[int, _Query] = {}
        self._ids = count(1)
        self._totals = MetricAggregator()
        self._first_started = False
        """The first worker has started, so starting is possible."""
        self._stopping: signal.Signals | None = None
        self._killed = False
        self._status = 0
        # Not epoll: a child would have to unregister what it shares with the parent.
        self._selector = selectors.PollSelector()
        self._selector.register(signal_socket, selectors.EVENT_READ, self._read_signals)

    def run(self) -> int:
        """Return in a worker, with its number and with our signals blocked."""
        self._start_times = {1: 0.0}  # alone, so that a common error is reported once
        while True:
            for number in [
                n for n, moment in self._start_times.items() if moment <= time.monotonic()
            ]:
                del self._start_times[number]
                if self._fork(number):
                    return number
            for key, _ in self._selector.select(self._time_left()):
                key.data()
            self._finish_expired_queries()
            self._kill_overdue()
            if not self._workers and not self._start_times:
                raise SystemExit(self._status)

    def _fork(self, number: int) -> bool:
        """Fork a worker; True in the child. If the system refuses a process or a descriptor, it is retried later."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._retry_later(number, error)
            return False
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REPLY_BYTES)
        # A signal that arrives before the worker's own handlers stays pending.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
            ours.close()
            theirs.close()
            self._retry_later(number, error)
            return False
        if pid == 0:
            ours.close()
            self._selector.close()
            for worker in self._workers.values():
                worker.link.close()
            attach(number, theirs, parent)
            metrics.WORKER_RESTARTS_TOTAL.reset()  # counted by the parent
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        theirs.close()
        ours.setblocking(False)
        worker = self._workers[number] = _Worker(number, pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read(worker))
        return False

    def _retry_later(self, number: int, error: OSError) -> None:
        """Retry a worker later if others are running; if the first one cannot start, raise."""
        if not self._first_started:
            raise error
        _log.warning(
            "cannot begin worker %d: %s (is a limit of processes or open files reached?); tried again in %g s",
            number,
            error.strerror,
            _FORK_RETRY_DELAY,
            extra={"event": "workers.fork_failed"},
        )
        self._start_times[number] = time.monotonic() + _FORK_RETRY_DELAY

    def _time_left(self) -> float | None:
        """Return the seconds until the next timeout, None if there is none."""
        limits = (one.limit for one in self._queries.values())
        nearest = min(self._kill_at, *self._start_times.values(), *limits, math.inf)
        return max(0.0, nearest - time.monotonic()) if nearest < math.inf else None

    # Beginning and end

    def _read_signals(self) -> None:
        for number in self._signal_socket.recv(1024):
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
            extra={"event": "process.draining"},
        )
        self._stopping = received
        self._drain()

    def _drain(self) -> None:
        self._start_times.clear()
        self._release()
        self._kill_at = time.monotonic() + self._drain_time + KILL_GRACE_PERIOD
        for worker in self._workers.values():
            if not worker.send("stop"):
                os.kill(worker.pid, signal.SIGTERM)

    def _kill_overdue(self) -> None:
        """Kill workers that exceed the drain timeout; a second later end without those that still exist."""
        if time.monotonic() < self._kill_at or not self._workers:
            return
        if self._killed:
            raise SystemExit(self._status or 128 + signal.SIGKILL)
        for worker in self._workers.values():
            _log.error(
                "%s has not ended %g s after the stop signal, and is killed",
                worker,
                self._drain_time + KILL_GRACE_PERIOD,
                extra={"event": "workers.killed"},
            )
        self._killed = True
        self._kill_at = time.monotonic() + _REAP_TIMEOUT
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
        """Reap all ended processes; as process 1 of a container also orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in [one for one in self._workers.values() if one.pid == pid]:
                self._on_exit(worker, os.waitstatus_to_exitcode(status))

    def _on_exit(self, worker: _Worker, code: int) -> None:
        self._remove(worker)
        status = code if code >= 0 else 128 - code
        how = f"with {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        if self._stopping is not None or self._status:
            self._status = self._status or status
            if status:
                _log.warning(
                    "%s has ended %s while draining", worker, how, extra={"event": "workers.ended"}
                )
            return
        if not worker.started and not self._first_started:
            self._give_up(status)  # it has logged the reason
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
                extra={"event": "workers.given_up"},
            )
            self._give_up(status)
            return
        pause = _FIRST_RESTART_DELAY * 2 ** (len(recent) - 2) if len(recent) > 1 else 0.0
        when = f"in {pause:g} s" if pause else "now"
        _log.warning(
            "%s has ended %s; another one begins %s",
            worker,
            how,
            when,
            extra={"event": "workers.ended"},
        )
        metrics.WORKER_RESTARTS_TOTAL.inc()
        self._start_times[worker.number] = deaths[-1] + pause

    def _give_up(self, status: int) -> None:
        self._status = status or 1
        self._drain()

    def _remove(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        self._totals.ended(worker.number)
        if worker.link in self._selector.get_map():
            self._selector.unregister(worker.link)
        worker.link.close()
        for key, query in list(self._queries.items()):
            if query.requester is worker:
                del self._queries[key]
            else:
                self._mark_replied(key, worker.number)

    # Questions and answers

    def _read(self, worker: _Worker) -> None:
        try:
            data = worker.link.recv(MAX_REPLY_BYTES)
        except OSError:
            return
        if not data:
            # The worker is ending, and SIGCHLD will follow. Until then its socket stays readable.
            self._selector.unregister(worker.link)
            return
        match json.loads(data):
            case ["started"]:
                self._has_started(worker)
            case ["ask", int(query_id), str(topic)]:
                self._start_query(worker, query_id, topic)
            case ["answer", int(key), replies]:
                self._store_reply(worker, key, replies)

    def _has_started(self, worker: _Worker) -> None:
        worker.started = True
        if not self._first_started:
            self._first_started = True
            self._start_times |= dict.fromkeys(range(2, self._size + 1), 0.0)
        elif len(self._workers) == self._size and all(
            one.started for one in self._workers.values()
        ):
            _log.info("all %d workers have started", self._size, extra={"event": "workers.started"})

    def _start_query(self, requester: _Worker, query_id: int, topic: str) -> None:
        limit = time.monotonic() + REPLY_TIMEOUT
        key, pending = next(self._ids), set(self._workers)
        self._queries[key] = _Query(requester, query_id, topic, limit, pending)
        for worker in list(self._workers.values()):
            worker.send("query", key, topic)

    def _store_reply(self, worker: _Worker, key: int, replies: Any) -> None:
        query = self._queries.get(key)
        if query is None:
            return  # too late
        if query.topic == METRICS:
            self._totals.note(worker.number, replies)
        else:
            query.replies[worker.number] = replies
        self._mark_replied(key, worker.number)

    def _mark_replied(self, key: int, number: int) -> None:
        """Mark a worker as replied, and finish the query if it was the last one."""
        query = self._queries[key]
        query.pending.discard(number)
        if not query.pending:
            self._finish_query(key)

    def _finish_query(self, key: int) -> None:
        query = self._queries.pop(key)
        if query.topic == METRICS:
            replies: object = self._totals.sum(metrics.export_families())
        else:
            replies = query.replies | dict.fromkeys(query.pending)
        query.requester.send("answers", query.query_id, replies)

    def _finish_expired_queries(self) -> None:
        now = time.monotonic()
        for key in [key for key, one in self._queries.items() if one.limit <= now]:
            self._finish_query(key)
