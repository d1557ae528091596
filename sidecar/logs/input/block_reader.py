"""Blocks of lines for each sink, from the streams that have data for it, and the record of what is not acknowledged.

Reads block; they run in worker threads. Acknowledgements come from the thread of the event loop.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence

from sidecar.logs.input import framing
from sidecar.logs.input.block_framing import FramingConfig
from sidecar.logs.input.file_reader import ContentReplaced, LogStream
from sidecar.logs.input.rotation import RotationTracker
from sidecar.logs.records import Block

_log = logging.getLogger(__name__)


class BlockReader:
    """Reads the streams of a tail. Those with data take turns, so that a busy file does not hold back the others."""

    def __init__(self, config: FramingConfig) -> None:
        self._config = config
        self._grouper = framing.MultilineGrouper(config.multiline) if config.multiline else None
        self.windows_lock = threading.Lock()
        """Hold it while acknowledged positions change, and while they are read for a checkpoint."""
        self.lost: dict[str, int] = {}
        """Bytes that were lost before they could be read, by reason."""
        self.damaged: dict[str, str] = {}
        """Files that could be read only in part, with the reason."""
        self._with_data: dict[str, dict[LogStream, None]] = {}
        self._stream_of_block: dict[tuple[str, int], LogStream] = {}
        self._present_at_start: dict[LogStream, None] = {}
        """Streams that were not read to their target offset yet. See `set_targets`."""

    def open(self, sinks: Sequence[str]) -> None:
        """Read for these sinks from now on."""
        self._with_data = {sink: {} for sink in sinks}

    def close(self) -> None:
        """Forget the streams, and the blocks that are not acknowledged."""
        self._with_data, self._stream_of_block, self._present_at_start = {}, {}, {}

    def wake(self, stream: LogStream) -> None:
        """Try to read this stream at the next `read` of each sink."""
        for ready in self._with_data.values():
            ready[stream] = None

    def has_data(self, sink: str) -> bool:
        """Whether a file may have data for this sink."""
        return bool(self._with_data[sink])

    def read(self, tracker: RotationTracker, sink: str, limit: int, now: float) -> list[Block]:
        """Return the next blocks for a sink, about `limit` bytes at most; files with data take turns."""
        ready, blocks = self._with_data[sink], list[Block]()
        while ready and limit > 0:
            stream = next(iter(ready))
            del ready[stream]
            block = self._read_stream(tracker, stream, sink, now)
            if block is not None:
                blocks.append(block)
                limit -= len(block.data)
        return blocks

    def flush(self, stream: LogStream) -> None:
        """Treat the incomplete last line and group of a stream as complete."""
        for cursor in stream.cursors.values():
            cursor.flush = cursor.flush or cursor.partial
        self.wake(stream)

    def acknowledge(self, sink: str, blocks: Iterable[Block]) -> None:
        """Acknowledge blocks: the position of the sink moves up to the first gap. The caller holds `windows_lock`."""
        for block in blocks:
            self._stream_of_block.pop((sink, id(block))).windows[sink].acknowledge(block)

    # -- the end of a run that delivers what is there

    def set_targets(self, streams: Iterable[LogStream]) -> None:
        """Set the present end of each stream as its target: what is written later does not belong to this run."""
        for stream in streams:
            stream.target_offset = stream.written
            self._present_at_start[stream] = None

    @property
    def present_is_read(self) -> bool:
        """Whether every sink was given all data up to the targets."""
        while self._present_at_start:
            stream = next(iter(self._present_at_start))
            if stream.retired_at is None and not stream.reached_target:
                return False
            del self._present_at_start[stream]
        return True

    def flush_present(self, quiet: float, now: float) -> None:
        """Flush the streams with a target that were not written for `quiet` seconds."""
        for stream in self._present_at_start:
            if stream.has_partial and now - stream.last_growth >= quiet:
                self.flush(stream)

    # -- losses

    def record_loss(self, reason: str, size: int, path: str) -> None:
        """Count and log bytes that cannot be read any more."""
        self.lost[reason] = self.lost.get(reason, 0) + size
        level = logging.INFO if reason == "hole" else logging.ERROR
        _log.log(
            level,
            "%d bytes of %s cannot be read any more (%s)",
            size,
            path,
            reason,
            extra={"event": "logs.bytes_lost"},
        )

    # -- internals

    def _read_stream(
        self, tracker: RotationTracker, stream: LogStream, sink: str, now: float
    ) -> Block | None:
        if not tracker.reopen(stream):
            return None
        if not stream.head.length:
            # It had no fingerprint yet. Its first bytes may show that it is a copy, which must not be read.
            tracker.check(stream, now)
            if not stream.head.length:
                return None
        try:
            block, more = stream.read_block(sink, self._config, self._grouper)
        except ContentReplaced:
            tracker.on_truncated(stream, now)
            return None
        except OSError as error:
            _log.error(
                "cannot read %s: %s", stream.path, error, extra={"event": "logs.file_unreadable"}
            )
            return None
        if stream.skipped_bytes:
            self.record_loss("hole", stream.skipped_bytes, stream.path)
            stream.skipped_bytes = 0
        self._report_damage(stream)
        if block is None:
            return None
        with self.windows_lock:
            stream.windows[sink].add(block)
            self._stream_of_block[sink, id(block)] = stream
        if more:
            self._with_data[sink][stream] = None
        return block

    def _report_damage(self, stream: LogStream) -> None:
        content = stream.content
        if content is not None and content.damaged and not content.reported:
            content.reported = True
            self.damaged[stream.path] = f"damaged after byte {stream.size}: {content.damaged}"
            _log.error(
                "%s is damaged after byte %d: %s",
                stream.path,
                stream.size,
                content.damaged,
                extra={"event": "logs.file_damaged"},
            )
            self.record_loss("damaged", os.fstat(content.fd).st_size, stream.path)
