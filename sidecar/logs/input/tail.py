"""`tail`: the source of a collection, from patterns to blocks, with the checkpoint that goes with it.

All of it is blocking and free of any event loop: one call is one unit of work for one thread.
`collect` drives it; tests drive it without a clock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sidecar import _errors
from sidecar.logs.input import framing
from sidecar.logs.input.checkpoint import Checkpoint, FileState, State
from sidecar.logs.input.close_policy import TailPolicy
from sidecar.logs.input.discovery import Discovery
from sidecar.logs.input.file_content import Content
from sidecar.logs.input.file_reader import ContentReplaced, FramingConfig, LogStream
from sidecar.logs.input.rotation import RotationTracker
from sidecar.logs.records import Block
from sidecar.process import arguments

_log = logging.getLogger(__name__)

_RESERVED_FDS = 256
"""Descriptors that are not for log files."""
_MAX_OPEN_FILES = 1 << 15
"""Files; each costs the kernel a kilobyte."""


class TailStats(NamedTuple):
    """How far a tail is behind its files."""

    lag_bytes: int
    """Bytes on the disk that are not acknowledged by all."""
    unacknowledged_bytes: int
    """Bytes that were read and are not acknowledged."""
    lag_seconds: float
    """How long the oldest byte that is not acknowledged has been waiting, as far as we know."""
    possible_copies: int
    """Files that are left alone for now, for they repeat another one so far."""


class Tail:
    """The log files that some patterns name, followed through every rotation. Made by `tail`.

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
        """The last `Receipt.resume` of each sink, as loaded and as acknowledged since."""
        self.lost: dict[str, int] = {}
        """Bytes that could never be read, by reason."""
        self._damaged: dict[str, str] = {}
        self._discovery, self._framing_config, self._policy = discovery, framing_config, policy
        self._grouper = (
            framing.MultilineGrouper(framing_config.multiline) if framing_config.multiline else None
        )
        self._checkpoint = Checkpoint(checkpoint)
        self._tracker: RotationTracker | None = None
        self._in_use = False
        self._pid = os.getpid()
        """The process that opens, or has opened, the files."""
        self._inherited: State | None = None
        self._with_data: dict[str, dict[LogStream, None]] = {}
        self._stream_of_block: dict[tuple[str, int], LogStream] = {}
        self._state_offsets: list[tuple[LogStream, int]] = []
        """How far the streams were acknowledged at the last `state`."""
        self._present_at_start: dict[LogStream, None] = {}
        """What was there when a run that ends by itself began, and has not been read yet."""
        self._adopted: list[tuple[FileState, Content]] = []
        """Files without a name that another tail has handed over."""
        # Acknowledgements come from the event loop's thread, everything else from workers'.
        self._windows_lock = threading.Lock()
        # A checkpoint must not be made in the middle of a look: a stream that is being moved would be missing in it.
        self._files_lock = threading.Lock()

    def __repr__(self) -> str:
        count = len(self._tracker.registry.streams) if self._tracker else 0
        return f"<Tail {' '.join(self.patterns)} files={count}>"

    # -- life

    def open(self, sinks: Sequence[str] = ("",)) -> None:
        """Load the checkpoint and look for the first time. Each sink gets its own progress."""
        self._check_process()
        self._with_data = {sink: {} for sink in sinks}
        self._tracker = RotationTracker(
            self._discovery,
            tuple(sinks),
            self._policy,
            wake=self._wake,
            record_loss=self._record_loss,
        )
        state = self._checkpoint.load() if self._inherited is None else self._inherited
        self.resume = dict(state.resume)
        self._tracker.restore(state)
        while self._adopted:
            self._tracker.registry.adopt(*self._adopted.pop(), self._clock())
        self._tracker.scan(self._clock())

    def inherit(self, state: State) -> None:
        """Begin where another tail has ended, not at the checkpoint. To be called before `open`."""
        self._inherited = state

    def deleted_unacknowledged(self) -> int:
        """Return how many bytes only this tail can still deliver: of files that nobody finds any more."""
        with self._checked_files_lock:
            nameless = self._require().registry.nameless()
            return sum(max(one.written - one.acknowledged_by_all, 0) for one in nameless)

    def hand_over(self, successor: Tail | None) -> None:
        """Give the open files that nobody finds any more to the tail that goes on, to be called before its `open`.

        Without one, what is not acknowledged of them is lost, and counted.
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
                self._record_loss("deleted", size, entry.path)
            content.close()

    def adopt(self, files: Iterable[tuple[FileState, Content]]) -> None:
        """Go on with these open files once it is opened itself. See `hand_over`."""
        self._adopted += files

    def limit_to_present(self) -> None:
        """Let `present_is_read` ask for what is there now, and for nothing that is written from now on."""
        self._set_targets(self._require().registry.streams)

    def release_copies(self) -> None:
        """Deliver what may be a copy, too: no later look will tell whether it is one."""
        with self._checked_files_lock:
            tracker = self._require()
            known = set(tracker.registry.streams)
            tracker.release_copies(self._clock())
            self._set_targets(s for s in tracker.registry.streams if s not in known)

    def _set_targets(self, streams: Iterable[LogStream]) -> None:
        for stream in streams:
            stream.target_offset = stream.written
            self._present_at_start[stream] = None

    @property
    def present_is_read(self) -> bool:
        """Whether every sink has been given what was there at `limit_to_present`."""
        while self._present_at_start:
            stream = next(iter(self._present_at_start))
            if stream.retired_at is None and not stream.reached_target:
                return False
            del self._present_at_start[stream]
        return True

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The files and directories that cannot be read, or not to their end, each with the reason."""
        return {
            **self._discovery.errors.reasons,
            **self._require().errors.reasons,
            **self._damaged,
        }

    @property
    def own_files(self) -> Sequence[str]:
        """What this tail writes to: the checkpoint, the one before, and what was set aside."""
        return self._checkpoint.files

    def exclude_own(self, paths: Iterable[str]) -> None:
        """Never collect these files, whatever the patterns say: each line would make another one, without end.

        Raises:
            ConfigError: a pattern names one of them, and nothing else.
        """
        for path in paths:
            if self._discovery.exclude(path):
                raise _errors.ConfigError(
                    f"{path} cannot be collected: this collection writes to it (as sink, checkpoint or dead letters)"
                )

    def acquire(self) -> None:
        """Be one collection's, until `release`.

        Raises:
            RuntimeError: it is another's, or it was in use when this process was forked.
        """
        self._check_process()
        if self._in_use:
            raise RuntimeError("this tail is in use already: make one for each collection")
        self._in_use = True

    @property
    def failure(self) -> str | None:
        """Why nothing is followed in this process; None where it is, or can be."""
        if os.getpid() == self._pid or not (self._in_use or self._tracker is not None):
            return None
        return (
            f"the tail of {' '.join(self.patterns)} was in use when this process was forked: it shares files and"
            " checkpoint with the other one (call logs.tail here, with a checkpoint of its own)"
        )

    def _check_process(self) -> None:
        if (failure := self.failure) is not None:
            raise RuntimeError(failure)
        self._pid = os.getpid()

    def lock_checkpoint(self) -> bool:
        """Take the checkpoint for this tail alone; return False while another collection has it."""
        return self._checkpoint.lock()

    def release(self) -> None:
        """Let another collection have the checkpoint, and this tail."""
        self._checkpoint.unlock()
        self._in_use = False

    def close(self) -> None:
        """Close all files. The checkpoint is not saved by this."""
        if self._tracker is not None:
            self._tracker.registry.close()
            self._tracker = None
        while self._adopted:
            self._adopted.pop()[1].close()
        self._with_data, self._stream_of_block, self._present_at_start = {}, {}, {}

    def save(self, state: State | None = None) -> bool:
        """Write the checkpoint if something has changed; return whether it did.

        `state` is what `state()` returned a moment ago; by default what it would return now.

        Raises:
            OSError: the last checkpoint is untouched.
        """
        self._check_process()
        written = self._checkpoint.save(self.state() if state is None else state)
        for stream, offset in self._state_offsets:
            stream.saved_offset = offset
        return written

    def state(self) -> State:
        """Return what a checkpoint written now would hold."""
        with self._checked_files_lock, self._checked_windows_lock:
            streams = self._require().registry.streams
            if self.removes_files:
                self._state_offsets = [(stream, stream.acknowledged_by_all) for stream in streams]
            return State(list(self._require().registry.entries()), dict(self.resume))

    # -- looking and reading

    def scan(self, changed_directories: Iterable[str] = ()) -> None:
        """Compare everything with the disk: new files, rotations, truncations, deletions, growth."""
        with self._checked_files_lock:
            self._require().scan(self._clock(), changed_directories)

    def on_write(self, paths: Iterable[str]) -> bool:
        """Look at these files alone, because an event said that they were written.

        Return False if one of them lies where only the target of a link can be: then `look` has to find out.
        """
        with self._checked_files_lock:
            tracker, now = self._require(), self._clock()
            registry, known = tracker.registry, True
            for path in paths:
                key = registry.index.inode_by_path.get(path)
                stream = registry.by_key.get(key) if key is not None else None
                if stream is not None:
                    tracker.check(stream, now)
                    self._wake(stream)
                elif (
                    os.path.dirname(path) in registry.index.link_dirs
                    or path in registry.index.files
                ):
                    known = False
            return known

    def on_overflow(self) -> None:
        """Anything may have been written: ask every file."""
        for stream in list(self._require().registry.streams):
            self._wake(stream)

    @property
    def removes_files(self) -> bool:
        """Whether files of which all is delivered are deleted."""
        return self._policy.remove_after is not None

    def remove_delivered(self) -> None:
        """Delete the files of which all is delivered and saved, where `remove_after` asks for it."""
        with self._checked_files_lock:
            self._require().remove_delivered(self._clock())

    def files_with_writers(self) -> list[str]:
        """Return the files that surely are open for writing."""
        return [s.path for s in self._streams() if s.has_writer()]

    def writers_gone(self) -> bool:
        """Whether surely nobody can write to any of the files any more."""
        return all(s.writers_gone() for s in self._streams() if s.content is not None)

    @property
    def incomplete(self) -> bool:
        """The last look has left files for the next one, which is due at once."""
        return self._require().incomplete

    @property
    def revision(self) -> int:
        """Grows whenever a file is found, moves or goes: then a checkpoint is due even if nothing was acknowledged."""
        return self._require().registry.revision

    @property
    def directories(self) -> list[str]:
        """The directories in which something may change."""
        return list(self._require().registry.index.directories)

    @property
    def has_matches(self) -> bool:
        """Whether the patterns name any file that is there, be it one that cannot be read."""
        return bool(self._require().registry.index.files)

    def directory_patterns(self) -> list[str]:
        """Return the patterns that name a directory, in which nothing is looked for: a slip, most probably."""
        named = (pattern.rstrip("/") or "/" for pattern in self.patterns)
        return [pattern for pattern in named if os.path.isdir(pattern)]

    def has_data(self, sink: str) -> bool:
        """Whether a file may have something to read for this sink."""
        return bool(self._with_data[sink])

    def read(self, sink: str, limit: int) -> list[Block]:
        """Return the next blocks for a sink, at most about `limit` bytes, a turn for each file that has some."""
        ready, blocks = self._with_data[sink], list[Block]()
        with self._checked_files_lock:
            while ready and limit > 0:
                stream = next(iter(ready))
                del ready[stream]
                block = self._read_stream(stream, sink)
                if block is not None:
                    blocks.append(block)
                    limit -= len(block.data)
        return blocks

    def flush(self, *, everything: bool = False) -> None:
        """Take what is held back as complete, where its writer is gone (or everywhere)."""
        tracker = self._require()
        for stream in list(tracker.registry.streams):
            if everything:
                tracker.warn_if_truncated(stream)
            if stream.has_partial and (everything or stream.writers_gone()):
                self._flush(stream)

    def flush_present(self, quiet: float) -> None:
        """The same for what was there at `limit_to_present`, where nothing was written for so many seconds."""
        for stream in self._present_at_start:
            if stream.has_partial and self._clock() - stream.last_growth >= quiet:
                self._flush(stream)

    def _flush(self, stream: LogStream) -> None:
        for cursor in stream.cursors.values():
            cursor.flush = cursor.flush or cursor.partial
        self._wake(stream)

    def acknowledge(self, sink: str, blocks: Iterable[Block], resume: Any = None) -> None:
        """Move the positions of a sink past these blocks, as far as there is no gap before them."""
        with self._checked_windows_lock:
            for block in blocks:
                self._stream_of_block.pop((sink, id(block))).windows[sink].acknowledge(block)
            if resume is not None:
                self.resume[sink] = resume

    # -- figures

    def stats(self) -> TailStats:
        """Return how far behind this tail is, in one pass."""
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
        """Return offset and size of each file that is there, by path."""
        return {s.path: (s.acknowledged_by_all, s.size) for s in self._streams()}

    # -- inside

    def _streams(self) -> list[LogStream]:
        if self._tracker is None:
            return []
        return [s for s in list(self._tracker.registry.streams) if s.retired_at is None]

    @property
    def _checked_files_lock(self) -> threading.Lock:
        """Whoever had it when this process was forked never gives it back here."""
        self._check_process()
        return self._files_lock

    @property
    def _checked_windows_lock(self) -> threading.Lock:
        self._check_process()
        return self._windows_lock

    def _require(self) -> RotationTracker:
        if self._tracker is None:
            raise RuntimeError("this tail is not open")
        return self._tracker

    def _read_stream(self, stream: LogStream, sink: str) -> Block | None:
        tracker = self._require()
        if not tracker.reopen(stream):
            return None
        if not stream.head.length:
            # Nothing was there to judge it by. Its first bytes may show that it is a copy: not to be read then.
            tracker.check(stream, self._clock())
            if not stream.head.length:
                return None
        try:
            block, more = stream.read_block(sink, self._framing_config, self._grouper)
        except ContentReplaced:
            tracker.on_truncated(stream, self._clock())
            return None
        except OSError as error:
            _log.error("cannot read %s: %s", stream.path, error)
            return None
        if stream.skipped_bytes:
            self._record_loss("hole", stream.skipped_bytes, stream.path)
            stream.skipped_bytes = 0
        self._report_damage(stream)
        if block is None:
            return None
        with self._checked_windows_lock:
            stream.windows[sink].add(block)
            self._stream_of_block[sink, id(block)] = stream
        if more:
            self._with_data[sink][stream] = None
        return block

    def _report_damage(self, stream: LogStream) -> None:
        content = stream.content
        if content is not None and content.damaged and not content.reported:
            content.reported = True
            self._damaged[stream.path] = f"damaged behind byte {stream.size}: {content.damaged}"
            _log.error(
                "%s is damaged behind byte %d: %s", stream.path, stream.size, content.damaged
            )
            self._record_loss("damaged", os.fstat(content.fd).st_size, stream.path)

    def _wake(self, stream: LogStream) -> None:
        for ready in self._with_data.values():
            ready[stream] = None

    def _record_loss(self, reason: str, size: int, path: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + size
        level = logging.INFO if reason == "hole" else logging.ERROR
        _log.log(level, "%d bytes of %s cannot be read any more (%s)", size, path, reason)


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
    """Follow log files: all that match a pattern, now and later, through every kind of rotation.

    Patterns know `*`, `?`, `[…]`, `{a,b}` and `**`; `exclude` takes patterns for paths, or for bare names.
    Nothing is opened before `collect` starts.

    Args:
        patterns: which files.
        exclude: which of them not.
        checkpoint: the file that remembers what has been delivered. Without one, every start begins anew.
        start: where to begin in files that are there at the very first start. Later ones are read whole.
        ignore_older: of those, begin at the end of each that has not been written for so many seconds.
        root: the directory that symbolic links may not leave (default: each pattern's part before the first wildcard).
        archives: directories to which rotation moves or copies files (`olddir`), apart from those of the patterns.
        multiline: which lines form one record.
        encoding: of files without a byte order mark. Lines are handed on in UTF-8.
        max_line: a longer line is handed on in pieces of so many bytes (`"1Mi"` is understood).
        recheck: seconds between two looks at everything, whatever the events said.
        rotate_wait: a rotated file is given up after so many seconds without a write, once it has been read.
        partial_timeout: a last line without a newline is taken as complete after so many quiet seconds; None: never.
        held_limit: unread bytes of deleted files that may be kept in use while a sink does not take them;
            beyond it the oldest file is given up, with an error and as `lost` (`deleted`).
            Less than what is written and deleted between two looks gives up lines that no sink was slow to take.
        remove_after: delete a file of the patterns once every sink has acknowledged all of it, that is saved in the
            checkpoint, and it was not written for so many seconds; not while a process has it open for writing,
            where the kernel tells (to the owner of the file, and with CAP_LEASE). None: delete nothing.

    Raises:
        ConfigError: no pattern, an encoding that cannot be cut into lines, or another argument that makes no sense.

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
    """Leave descriptors to sinks, the checkpoint and probes: a quarter of a thousand, where there are as many."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(min(soft - min(soft // 2, _RESERVED_FDS), _MAX_OPEN_FILES), 1)
