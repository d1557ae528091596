"""The notifier for the `watchfiles` library, for systems without inotify."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence

from sidecar.fs.notify.base import EventBatch, Mode, WatchTarget
from sidecar.fs.notify.wakeup import WakeupPipe

_DEBOUNCE_MS = 50
_STEP_MS = 5
#: The first timeout without a change is the only sign that the watcher works.
_TIMEOUT_MS = 50
_START_TIMEOUT = 2.0
#: A watcher that fails later than this failed because of an event, and is restarted.
_MIN_LIFETIME = 1.0


class WatchfilesNotifier:
    """The events of `watchfiles`, which a thread waits for."""

    mode: Mode = "watchfiles"
    supports_nested = False

    def __init__(self, wakeup: WakeupPipe) -> None:
        self.fd: int | None = None
        self._wakeup = wakeup
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._batch = EventBatch()
        self._error: Exception | None = None
        self._paths: dict[str, WatchTarget] = {}

    def arm(self, targets: Sequence[WatchTarget]) -> None:
        self._end_thread()
        self._paths = {target.path: target for target in targets}
        if self._paths:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="sidecar-watchfiles", daemon=True
            )
            self._ready.clear()
            self._thread.start()
            self._ready.wait(_START_TIMEOUT)
            self._raise_error()

    def follow(self, target: WatchTarget) -> None: ...

    def unfollow(self, key: str) -> None: ...

    def drain(self) -> EventBatch:
        with self._lock:
            batch, self._batch = self._batch, EventBatch()
        self._raise_error()
        return batch

    def close(self) -> None:
        self._end_thread()

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise OSError(getattr(error, "errno", None) or errno.EIO, str(error)) from error

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            try:
                self._watch(stop)
            except Exception as error:  # noqa: BLE001 (any exception of the library must be reported)
                # A file name that is not UTF-8 raises here: request a full scan, and restart.
                failed = time.monotonic() - started < _MIN_LIFETIME
                self._add(0, lost=True, error=error if failed else None)
                self._ready.set()
                if failed:
                    return

    def _watch(self, stop: threading.Event) -> None:
        import watchfiles

        for changes in watchfiles.watch(
            *self._paths,
            watch_filter=None,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            rust_timeout=_TIMEOUT_MS,
            yield_on_timeout=True,
            stop_event=stop,
            recursive=False,
            force_polling=False,
            raise_interrupt=False,
        ):
            self._add(sum(self._matters(path) for _, path in changes))
            self._ready.set()

    def _matters(self, path: str) -> bool:
        directory, name = os.path.split(path)
        target = self._paths.get(directory)
        # macOS reports the real path: if no directory matches, every change is relevant.
        return target is None or target.matches(os.fsencode(name))

    def _add(self, count: int, *, lost: bool = False, error: Exception | None = None) -> None:
        if not count and not lost:
            return
        with self._lock:
            self._batch.count += count
            self._batch.urgent = True
            self._batch.lost = self._batch.lost or lost
            self._error = self._error or error
        self._wakeup.wake()
