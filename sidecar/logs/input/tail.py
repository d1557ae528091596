"""The file input: `tail` follows the files that match patterns, returns blocks of lines and keeps the checkpoint.

Every call blocks and uses no event loop: it is one unit of work for one thread.
`collect` drives it; tests drive it with a clock of their own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sidecar import _errors
from sidecar.logs.input import framing
from sidecar.logs.input.block_framing import FramingConfig
from sidecar.logs.input.block_reader import BlockReader
from sidecar.logs.input.checkpoint import Checkpoint, CheckpointState, FileState
from sidecar.logs.input.close_policy import TailPolicy
from sidecar.logs.input.discovery import Discovery
from sidecar.logs.input.file_content import Content
from sidecar.logs.input.file_reader import LogStream
from sidecar.logs.input.reservation import Reservation
from sidecar.logs.input.rotation import RotationTracker
from sidecar.logs.records import Block
from sidecar.process import arguments

_RESERVED_FDS = 256
"""File descriptors that are kept free for other uses."""
_MAX_OPEN_FILES = 1 << 15
"""Each open file costs the kernel 1 KiB."""


class TailStats(NamedTuple):
    """How far a tail is behind its files."""

    lag_bytes: int
    """Bytes on the disk that at least one sink has not acknowledged."""
    unacknowledged_bytes: int
    """Bytes that were read but are not acknowledged."""
    lag_seconds: float
    """Estimated age of the oldest byte that is not acknowledged."""
    possible_copies: int
    """Files that are not read yet because they may be copies of other files."""


class Tail:
    """The log files that match the patterns, followed through rotations. Created by `tail`.

    >>> tail("/var/log/app/*.log").patterns
    ('/var/log/app/*.log',)
    """

    def __init__(
        self,
        patterns: Sequence[str],
        checkpoint: str | None,
        *,
        discovery: Discovery,
        framing_config: FramingConfig,
        policy: TailPolicy,
        recheck: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.patterns = tuple(patterns)
        self.checkpoint_path = checkpoint
        self.recheck = recheck
        self.resume: dict[str, Any] = {}
        """The latest `Receipt.resume` of each sink: from the checkpoint, or acknowledged since."""
        self._discovery, self._policy = discovery, policy
        self._reader = BlockReader(framing_config)
        self._checkpoint = Checkpoint(checkpoint)
        self._tracker: RotationTracker | None = None
        self._reservation = Reservation(" ".join(self.patterns))
        self._inherited: CheckpointState | None = None
        self._state_offsets: list[tuple[LogStream, int]] = []
        """The acknowledged offset of each stream at the last call of `state`."""
        self._adopted: list[tuple[FileState, Content]] = []
        """Open files without a name, handed over by another tail."""
        # No checkpoint is made during a scan: it would miss a stream that is being moved to another file.
        self._files_lock = threading.Lock()

    def __repr__(self) -> str:
        count = len(self._tracker.registry.streams) if self._tracker else 0
        return f"<Tail {' '.join(self.patterns)} files={count}>"

    # -- life cycle

    def open(self, sinks: Sequence[str] = ("",)) -> None:
        """Load the checkpoint and do the first scan. Each sink has positions of its own."""
        self._check_process()
        self._reader.open(sinks)
        self._tracker = RotationTracker(
            self._discovery,
            tuple(sinks),
            self._policy,
            wake=self._reader.wake,
            record_loss=self._reader.record_loss,
        )
        state = self._checkpoint.load() if self._inherited is None else self._inherited
        self.resume = dict(state.resume)
        self._tracker.restore(state)
        while self._adopted:
            self._tracker.registry.adopt(*self._adopted.pop(), self._clock())
        self._tracker.scan(self._clock())

    def inherit(self, state: CheckpointState) -> None:
        """Start from the state of another tail instead of the checkpoint. Call it before `open`."""
        self._inherited = state

    def deleted_unacknowledged(self) -> int:
        """Return how many unacknowledged bytes are in open files that have no name any more: only this tail can deliver them."""
        with self._checked_files_lock:
            nameless = self._require().registry.nameless()
            return sum(max(one.written - one.acknowledged_by_all, 0) for one in nameless)

    def hand_over(self, successor: Tail | None) -> None:
        """Hand the open files without a name over to the successor. Call it before the successor's `open`.

        Without a successor the unacknowledged bytes of these files are lost, and counted.
        """
        adopted, self._adopted = self._adopted, []
        if self._tracker is not None:
            with self._checked_files_lock:
                registry = self._tracker.registry
                adopted += [registry.release(stream) for stream in list(registry.nameless())]
        if successor is not None:
            successor.adopt(adopted)
            return
        for entry, content in adopted:
            if (size := content.length() - entry.lowest) > 0:
                self._reader.record_loss("deleted", size, entry.path)
            content.close()

    def adopt(self, files: Iterable[tuple[FileState, Content]]) -> None:
        """Take over open files from another tail; `open` attaches them. See `hand_over`."""
        self._adopted += files

    def limit_to_present(self) -> None:
        """Set the present end of each file as its target: `present_is_read` ignores what is written later."""
        self._reader.set_targets(self._require().registry.streams)

    def release_copies(self) -> None:
        """Deliver files that may be copies as well: no later scan will decide it."""
        with self._checked_files_lock:
            tracker = self._require()
            known = set(tracker.registry.streams)
            tracker.release_copies(self._clock())
            self._reader.set_targets(s for s in tracker.registry.streams if s not in known)

    @property
    def present_is_read(self) -> bool:
        """Whether every sink was given all data that existed at `limit_to_present`."""
        return self._reader.present_is_read

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The files and directories that cannot be read completely, each with the reason."""
        return {
            **self._discovery.errors.reasons,
            **self._require().errors.reasons,
            **self._reader.damaged,
        }

    @property
    def own_files(self) -> Sequence[str]:
        """Files that this tail writes: the checkpoint, the previous one, and damaged ones that were set aside."""
        return self._checkpoint.files

    def exclude_own(self, paths: Iterable[str]) -> None:
        """Exclude files that this collection writes, whatever the patterns match: each line would produce another one.

        Raises:
            ConfigError: a pattern is the path of one of them.
        """
        for path in paths:
            if self._discovery.exclude(path):
                raise _errors.ConfigError(
                    f"{path} cannot be collected: this collection writes to it (as sink, checkpoint or dead letters)"
                )

    def acquire(self) -> None:
        """Reserve this tail for one collection, until `release`.

        Raises:
            RuntimeError: another collection uses it, or it was in use when this process was forked.
        """
        self._check_process()
        self._reservation.acquire()

    @property
    def failure(self) -> str | None:
        """Why this process cannot use the tail (it was forked while the tail was in use); None if it can."""
        return self._reservation.failure(opened=self._tracker is not None)

    def _check_process(self) -> None:
        self._reservation.check(opened=self._tracker is not None)

    def lock_checkpoint(self) -> bool:
        """Lock the checkpoint for this tail; return False while another collection holds the lock."""
        return self._checkpoint.lock()

    def release(self) -> None:
        """Unlock the checkpoint and end the reservation of this tail."""
        self._checkpoint.unlock()
        self._reservation.release()

    def close(self) -> None:
        """Close all files. This does not save the checkpoint."""
        if self._tracker is not None:
            self._tracker.registry.close()
            self._tracker = None
        while self._adopted:
            self._adopted.pop()[1].close()
        self._reader.close()

    def save(self, state: CheckpointState | None = None) -> bool:
        """Write the checkpoint if the state has changed; return whether it was written.

        Args:
            state: an earlier result of `state()`; by default the present state.

        Raises:
            OSError: it could not be written. The previous checkpoint is unchanged.
        """
        self._check_process()
        written = self._checkpoint.save(self.state() if state is None else state)
        for stream, offset in self._state_offsets:
            stream.saved_offset = offset
        return written

    def state(self) -> CheckpointState:
        """Return the state that a checkpoint written now would contain."""
        with self._checked_files_lock, self._reader.windows_lock:
            streams = self._require().registry.streams
            if self.removes_files:
                self._state_offsets = [(stream, stream.acknowledged_by_all) for stream in streams]
            return CheckpointState(list(self._require().registry.entries()), dict(self.resume))

    # -- scanning and reading

    def scan(self, changed_directories: Iterable[str] = ()) -> None:
        """Compare the known files with the disk: new files, rotation, truncation, deletion, growth."""
        with self._checked_files_lock:
            self._require().scan(self._clock(), changed_directories)

    def on_write(self, paths: Iterable[str]) -> bool:
        """Check these files only, after events that report writes to them.

        Return False if one of them may be the target of a symbolic link: a full `scan` is needed then.
        """
        with self._checked_files_lock:
            tracker, now = self._require(), self._clock()
            registry, known = tracker.registry, True
            for path in paths:
                key = registry.index.inode_by_path.get(path)
                stream = registry.by_key.get(key) if key is not None else None
                if stream is not None:
                    tracker.check(stream, now)
                    self._reader.wake(stream)
                elif (
                    os.path.dirname(path) in registry.index.link_dirs
                    or path in registry.index.files
                ):
                    known = False
            return known

    def on_overflow(self) -> None:
        """Mark every stream as readable, after the kernel dropped events."""
        for stream in list(self._require().registry.streams):
            self._reader.wake(stream)

    @property
    def removes_files(self) -> bool:
        """Whether files are deleted once they are delivered (`remove_after`)."""
        return self._policy.remove_after is not None

    def remove_delivered(self) -> None:
        """Delete files that are delivered completely and saved in the checkpoint, if `remove_after` is set."""
        with self._checked_files_lock:
            self._require().remove_delivered(self._clock())

    def files_with_writers(self) -> list[str]:
        """Return the files that a process is known to have open for writing."""
        return [s.path for s in self._streams() if s.has_writer()]

    def writers_gone(self) -> bool:
        """Whether all files are known to have no writer."""
        return all(s.writers_gone() for s in self._streams() if s.content is not None)

    @property
    def incomplete(self) -> bool:
        """Whether the last scan stopped at its limit, so that another one is due at once."""
        return self._require().incomplete

    @property
    def revision(self) -> int:
        """Increases when a file is found, moved or removed: a checkpoint is due then, even without acknowledgements."""
        return self._require().registry.revision

    @property
    def directories(self) -> list[str]:
        """The directories to watch."""
        return list(self._require().registry.index.directories)

    @property
    def has_matches(self) -> bool:
        """Whether the patterns match any file, readable or not."""
        return bool(self._require().registry.index.files)

    def directory_patterns(self) -> list[str]:
        """Return the patterns that match a directory instead of files: probably a mistake."""
        named = (pattern.rstrip("/") or "/" for pattern in self.patterns)
        return [pattern for pattern in named if os.path.isdir(pattern)]

    def has_data(self, sink: str) -> bool:
        """Whether a file may have data for this sink."""
        return self._reader.has_data(sink)

    def read(self, sink: str, limit: int) -> list[Block]:
        """Return the next blocks for a sink, about `limit` bytes at most; files with data take turns."""
        with self._checked_files_lock:
            return self._reader.read(self._require(), sink, limit, self._clock())

    def flush(self, *, everything: bool = False) -> None:
        """Treat incomplete last lines and groups as complete where no writer is left, or everywhere."""
        tracker = self._require()
        for stream in list(tracker.registry.streams):
            if everything:
                tracker.warn_if_truncated(stream)
            if stream.has_partial and (everything or stream.writers_gone()):
                self._reader.flush(stream)

    def flush_present(self, quiet: float) -> None:
        """Do the same for files that existed at `limit_to_present` and were not written for `quiet` seconds."""
        self._reader.flush_present(quiet, self._clock())

    def acknowledge(self, sink: str, blocks: Iterable[Block], resume: Any = None) -> None:
        """Acknowledge blocks: the position of the sink moves up to the first gap."""
        self._check_process()
        with self._reader.windows_lock:
            self._reader.acknowledge(sink, blocks)
            if resume is not None:
                self.resume[sink] = resume

    # -- statistics

    @property
    def lost(self) -> Mapping[str, int]:
        """Bytes that were lost before they could be read, by reason."""
        return self._reader.lost

    def stats(self) -> TailStats:
        """Return how far this tail is behind its files."""
        now_ns, now = time.time_ns(), self._clock()
        behind = unacknowledged = 0
        oldest = 0.0
        for stream in self._streams():
            windows = stream.windows.values()
            lag = max([stream.written - window.offset for window in windows], default=0)
            if lag <= 0:
                continue
            behind += lag
            unacknowledged += sum(window.unacknowledged for window in windows)
            read = min((w.oldest.read_at for w in windows if w.oldest is not None), default=None)
            waiting = now - stream.last_growth if read is None else (now_ns - read) / 1e9
            oldest = max(oldest, waiting)
        copies = len(self._tracker.registry.copy_candidates) if self._tracker is not None else 0
        return TailStats(behind, unacknowledged, oldest, copies)

    def positions(self) -> Mapping[str, tuple[int, int]]:
        """Return the acknowledged offset and the size of each existing file, by path."""
        return {s.path: (s.acknowledged_by_all, s.size) for s in self._streams()}

    # -- internals

    def _streams(self) -> list[LogStream]:
        if self._tracker is None:
            return []
        return [s for s in list(self._tracker.registry.streams) if s.retired_at is None]

    @property
    def _checked_files_lock(self) -> threading.Lock:
        """The lock, unless this process was forked: a lock that was held at the fork is never released here."""
        self._check_process()
        return self._files_lock

    def _require(self) -> RotationTracker:
        if self._tracker is None:
            raise RuntimeError("this tail is not open")
        return self._tracker


def tail(
    *patterns: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    start: Literal["beginning", "end"] = "beginning",
    ignore_older: float | None = None,
    root: str | None = None,
    archives: Sequence[str] = (),
    multiline: framing.Multiline | None = None,
    encoding: str = "utf-8",
    max_line: int | str = 1 << 20,
    recheck: float = 1.0,
    rotate_wait: float = 30.0,
    partial_timeout: float | None = 10.0,
    held_limit: int | str = 1 << 30,
    remove_after: float | None = None,
) -> Tail:
    """Follow all files that match a pattern, now or later, through every kind of rotation.

    Patterns support `*`, `?`, `[…]`, `{a,b}` and `**`; `exclude` takes patterns for paths or for file names.
    No file is opened before `collect` starts.

    Args:
        patterns: the files to read.
        exclude: the files to skip.
        checkpoint: the file in which positions are saved. Without one, every start reads from `start`.
        start: where to begin in files that exist at the very first start. Later files are read from the beginning.
        ignore_older: begin at the end of those files that were not written for this many seconds.
        root: the directory that symbolic links must not leave (default: the part of each pattern before its first wildcard).
        archives: directories to which rotation moves or copies files (`olddir`), besides those of the patterns.
        multiline: which lines form one record.
        encoding: of files without a byte order mark. Lines are passed on in UTF-8.
        max_line: bytes; a longer line is split (`"1Mi"` is accepted).
        recheck: seconds between two full scans, whatever events report.
        rotate_wait: seconds without a write after which a rotated file that was read completely is closed.
        partial_timeout: seconds without a write after which a last line without a newline counts as complete; None: never.
        held_limit: unread bytes of deleted files that are kept open while a sink is slow;
            beyond it the oldest file is closed, with an error in the log, and its bytes count as `lost` (`deleted`).
            A limit below what is written and deleted between two scans loses lines even if no sink is slow.
        remove_after: delete a matching file once every sink has acknowledged all of it, the checkpoint is saved, and
            it was not written for this many seconds; not while a process has it open for writing, where the kernel
            reports that (to the owner of the file, or with CAP_LEASE). None: delete nothing.

    Raises:
        ConfigError: no pattern, an encoding that cannot be split into lines, or another invalid argument.

    >>> tail("/var/log/app/*.log", checkpoint="/state/offsets.json", exclude=["debug.log"])
    <Tail /var/log/app/*.log files=0>
    """
    arguments.check_instance("encoding", encoding, str, "the name of an encoding")
    try:
        framing.check_encoding(encoding)
    except ValueError as error:
        raise _errors.ConfigError(str(error)) from error
    arguments.check_choice("start", start, ("beginning", "end"))
    arguments.check_seconds("recheck", recheck, zero=False)
    arguments.check_seconds("rotate_wait", rotate_wait)
    waits = {"ignore_older": ignore_older, "partial_timeout": partial_timeout}
    for name, value in {**waits, "remove_after": remove_after}.items():
        if value is not None:
            arguments.check_seconds(name, value)
    for name, several in {"exclude": exclude, "archives": archives}.items():
        arguments.words(name, several)
    if root is not None:
        arguments.check_path("root", root)
    if multiline is not None:
        arguments.check_instance(
            "multiline", multiline, framing.Multiline, "a logs.Multiline, or None"
        )
    line_limit = arguments.check_size("max_line", max_line, least=1)
    unread_limit = arguments.check_size("held_limit", held_limit, least=1)
    names = [arguments.check_path("pattern", pattern) for pattern in patterns]
    return Tail(
        names,
        None if checkpoint is None else arguments.check_path("checkpoint", checkpoint),
        discovery=Discovery(names, exclude, root=root, archive_dirs=archives),
        framing_config=FramingConfig(max_line=line_limit, encoding=encoding, multiline=multiline),
        policy=TailPolicy(
            from_end=start == "end",
            ignore_older=ignore_older,
            rotate_wait=rotate_wait,
            partial_timeout=partial_timeout,
            group_timeout=multiline.timeout if multiline else None,
            held_limit=unread_limit,
            max_open=_open_limit(),
            remove_after=remove_after,
        ),
        recheck=recheck,
    )


def _open_limit() -> int:
    """Return how many files may be open: `_RESERVED_FDS` descriptors stay free for sinks, checkpoint and probes (at most half)."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(min(soft - min(soft // 2, _RESERVED_FDS), _MAX_OPEN_FILES), 1)
