"""The checkpoint: identity of each stream, and the acknowledged position of each sink, saved across restarts.

It is one JSON document with a version and a checksum, replaced atomically and durably.
The previous version is kept next to it: damage by a power cut, a full disk or another process
loses at most the second between two saves.
A damaged checkpoint does not prevent a start: it is logged once and set aside.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sidecar import _errors
from sidecar.fs import atomic, dirs, flock, layout
from sidecar.logs.input.fingerprint import HEAD_BYTES, TAIL_BYTES, Fingerprint, Position

VERSION = 1
PREVIOUS = ".previous"
_DAMAGED = ".damaged"
_MAX_CHECKPOINT_BYTES = 64 << 20
_FILE_MODE = 0o600
_MAX_INT64 = (1 << 63) - 1
"""Limit of off_t, and of timestamps in nanoseconds."""
_MAX_UINT64 = (1 << 64) - 1
"""Limit of dev_t and ino_t."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FileState:
    """The state of one stream: its identity, and the position of each sink, by the name of the sink."""

    file_id: str
    path: str
    device: int
    inode: int
    head: Fingerprint
    size: int
    positions: dict[str, Position]
    modified_ns: int = 0
    retired_at: float | None = None
    """Unix time since which it has no file and nothing to read. It is kept to recognise its compressed copy."""

    @property
    def furthest(self) -> Position:
        return max(
            self.positions.values(), key=lambda position: position.offset, default=Position(0)
        )

    @property
    def lowest(self) -> int:
        return min((position.offset for position in self.positions.values()), default=0)


@dataclass(slots=True)
class CheckpointState:
    """The content of a checkpoint."""

    entries: list[FileState] = field(default_factory=list)
    resume: dict[str, Any] = field(default_factory=dict)
    """The latest `Receipt.resume` of each sink."""
    from_checkpoint: bool = field(default=False, compare=False)
    """It was loaded from a checkpoint, so this is not the very first start, even if it lists no file."""


class Checkpoint:
    """A checkpoint file. With `path` None nothing is saved."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._last: bytes | None = None
        self._lock_fd = self._lock_pid = -1

    def lock(self) -> bool:
        """Lock the checkpoint until `unlock` or the end of the process. Return False while another process holds the lock.

        Two collectors with one checkpoint would overwrite each other's positions, and deliver everything twice.
        Where locks are not supported (a read-only volume, some network file systems) this returns True.
        """
        if self.path is None or self._lock_fd >= 0:
            return True
        directory, name = os.path.split(os.path.abspath(self.path))
        try:
            dirs.make_directory(directory)
            # A separate lock file, since each save replaces the checkpoint. The leading dot hides it from patterns.
            lock = os.path.join(directory, f".{name}.lock")
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
        except (OSError, _errors.SidecarError):
            return True
        if not flock.try_lock(fd):
            os.close(fd)
            return False
        self._lock_fd, self._lock_pid = fd, os.getpid()
        return True

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock_fd >= 0:
            if os.getpid() == self._lock_pid:
                # Unlock explicitly: a forked process inherits the descriptor, and closing it here would not release the lock.
                flock.unlock(self._lock_fd)
            os.close(self._lock_fd)
            self._lock_fd = -1

    @property
    def files(self) -> Sequence[str]:
        """All files that may be written."""
        if self.path is None:
            return ()
        both = (self.path, self.path + PREVIOUS)
        return (*both, *(path + _DAMAGED for path in both))

    def load(self) -> CheckpointState:
        """Return the saved state; if it is damaged or missing, the previous one, or an empty one."""
        if self.path is None:
            return CheckpointState()
        _remove_orphans(os.path.dirname(os.path.abspath(self.path)))
        for path in (self.path, self.path + PREVIOUS):
            try:
                return decode(_read(path))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _log.error(
                    "checkpoint %s cannot be used (%s); trying the previous one",
                    path,
                    error,
                    extra={"event": "logs.checkpoint_invalid"},
                )
                self._set_aside(path)
        return CheckpointState()

    def save(self, state: CheckpointState) -> bool:
        """Write the state if it differs from the last one written; return whether it was written.

        Raises:
            OSError: it could not be written. The old checkpoint is unchanged.
        """
        if self.path is None:
            return False
        data = encode(state)
        if data == self._last:
            return False
        directory, name = os.path.split(os.path.abspath(self.path))
        dirs.make_directory(directory)
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            atomic.replace_file(
                dir_fd,
                name,
                data,
                _FILE_MODE,
                before_rename=lambda: _keep_previous(dir_fd, name),
            )
        finally:
            os.close(dir_fd)
        self._last = data
        return True

    def _set_aside(self, path: str) -> None:
        with contextlib.suppress(OSError):
            atomic.rename(path, path + _DAMAGED)


def encode(state: CheckpointState) -> bytes:
    """Return the document: one line with the checksum, then indented JSON."""
    document = {
        "version": VERSION,
        "files": [_encode_entry(entry) for entry in state.entries],
        "sinks": state.resume,
    }
    try:
        body = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    except TypeError:
        # For names that are not UTF-8 and integers beyond 64 bits. Not the default: it takes thirty times as long.
        body = json.dumps(document, indent=2, sort_keys=True).encode()
    return b'{"crc32": "%08x", "state":\n%b\n}\n' % (zlib.crc32(body), body)


def decode(data: bytes) -> CheckpointState:
    """Return the state of a document.

    Raises:
        ValueError: it is truncated, changed, of another version, or not a checkpoint. Single invalid entries are left out.
    """
    head, newline, rest = data.partition(b"\n")
    body, closing, _ = rest.rpartition(b"\n}")
    if not newline or not closing or not head.startswith(b'{"crc32": "'):
        raise ValueError("it is not a checkpoint, or cut off")
    if head[11:19] != b"%08x" % zlib.crc32(body):
        raise ValueError("its checksum is wrong")
    try:
        document = json.loads(body)
        version, files, sinks = document["version"], document["files"], document["sinks"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it holds something else than a checkpoint: {error!r}") from error
    if version != VERSION:
        raise ValueError(f"it has version {version!r}, this program reads {VERSION}")
    if not isinstance(files, list) or not isinstance(sinks, dict):
        raise ValueError("it has no list of files, or no mapping of sinks")  # noqa: TRY004 (the documented error)
    return CheckpointState(list(_decode_entries(files)), sinks, from_checkpoint=True)


def _decode_entries(files: Sequence[Any]) -> Iterator[FileState]:
    """Yield the valid entries. Only the file of an invalid entry is read again."""
    for number, raw in enumerate(files, 1):
        try:
            yield _decode_entry(raw)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            _log.error(
                "entry %d of the checkpoint cannot be true (%r): its file is read from the beginning",
                number,
                error,
                extra={"event": "logs.checkpoint_invalid"},
            )


def _encode_entry(entry: FileState) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "id": entry.file_id,
        "path": entry.path,
        "device": entry.device,
        "inode": entry.inode,
        "size": entry.size,
        "modified_ns": entry.modified_ns,
        "head": [entry.head.length, entry.head.digest],
        "places": {
            name: [position.offset, position.tail.length, position.tail.digest]
            for name, position in entry.positions.items()
        },
    }
    if entry.retired_at is not None:
        raw["gone"] = entry.retired_at
    return raw


def _decode_entry(raw: Mapping[str, Any]) -> FileState:
    positions = {
        name: Position(_check_int(offset), _decode_fingerprint(length, digest))
        for name, (offset, length, digest) in raw["places"].items()
    }
    if any(position.tail.length > position.offset for position in positions.values()):
        raise ValueError("more bytes before a place than there are")
    length, digest = raw["head"]
    gone = raw.get("gone")
    return FileState(
        file_id=_check_text(raw["id"]),
        path=_check_text(raw["path"]),
        device=_check_int(raw["device"], _MAX_UINT64),
        inode=_check_int(raw["inode"], _MAX_UINT64),
        head=_decode_fingerprint(length, digest),
        size=_check_int(raw["size"]),
        positions=positions,
        modified_ns=_check_int(raw["modified_ns"], smallest=-_MAX_INT64),
        retired_at=None if gone is None else _check_unix_time(gone),
    )


def _decode_fingerprint(length: Any, digest: Any) -> Fingerprint:
    return Fingerprint(_check_int(length, max(HEAD_BYTES, TAIL_BYTES)), _check_text(digest))


def _check_int(value: Any, largest: int = _MAX_INT64, smallest: int = 0) -> int:
    if type(value) is not int or not smallest <= value <= largest:
        raise ValueError(f"{value!r:.40} is no whole number from {smallest} to {largest}")
    return value


def _check_unix_time(value: Any) -> float:
    moment = float(value)
    if not 0 <= moment < _MAX_INT64:  # NaN neither
        raise ValueError(f"{value!r:.40} is no Unix time")
    return moment


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _remove_orphans(directory: str) -> None:
    """Remove temporary files that a kill during a save has left."""
    with contextlib.suppress(OSError, _errors.SidecarError):
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with flock.directory_lock(dir_fd, timeout=1.0, where=directory, create=False):
                flock.remove_orphans(dir_fd)
        finally:
            os.close(dir_fd)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > _MAX_CHECKPOINT_BYTES:
            raise ValueError(f"it has {status.st_size} bytes, more than any checkpoint")
        with os.fdopen(os.dup(fd), "rb") as handle:
            return handle.read(_MAX_CHECKPOINT_BYTES)
    finally:
        os.close(fd)


def _keep_previous(dir_fd: int, name: str) -> None:
    """Keep the present checkpoint as the previous one, by a hard link, so that one always exists."""
    temporary = layout.TEMPORARY + name + PREVIOUS
    with contextlib.suppress(OSError):
        os.unlink(temporary, dir_fd=dir_fd)
    with contextlib.suppress(OSError):
        # There is none at the first save, and on file systems without hard links.
        os.link(name, temporary, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        atomic.move(dir_fd, temporary, dir_fd, name + PREVIOUS)
