"""The acknowledged position of one stream for one sink: it moves only over blocks that are acknowledged without a gap."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sidecar.logs.input.fingerprint import Position
from sidecar.logs.records import Block


@dataclass(slots=True, eq=False)
class _Sent:
    block: Block
    end: int
    mark: bytes
    acknowledged: bool = False


class OffsetWindow:
    r"""The blocks that were given to a sink and are not acknowledged, in the order of the file.

    >>> window = OffsetWindow(Position(0))
    >>> first, second = (Block(b"a\n", "f", "id", start, start + 2, 0) for start in (0, 2))
    >>> window.add(first); window.add(second)
    >>> window.acknowledge(second); window.position.offset      # the first is still missing
    0
    >>> window.acknowledge(first); window.position.offset
    4
    """

    __slots__ = ("_mark", "_position", "_sent", "offset")

    def __init__(self, position: Position) -> None:
        self.offset = position.offset
        """All bytes before it are acknowledged."""
        self._position: Position | None = position
        self._mark = b""
        self._sent: deque[_Sent] = deque()

    @property
    def position(self) -> Position:
        """The acknowledged position for the checkpoint. Its fingerprint is computed on demand."""
        if self._position is None:
            self._position = Position.of(self.offset, self._mark)
        return self._position

    @property
    def oldest(self) -> Block | None:
        """The first block that is not acknowledged."""
        return self._sent[0].block if self._sent else None

    @property
    def unacknowledged(self) -> int:
        """Bytes that were given to the sink and are not acknowledged."""
        return self._sent[-1].end - self.offset if self._sent else 0

    def add(self, block: Block) -> None:
        """Add a block that is given to the sink."""
        self._sent.append(_Sent(block, block.end, block.mark))

    def acknowledge(self, block: Block) -> None:
        """Mark a block as acknowledged, and move the position up to the first gap."""
        for entry in self._sent:
            if entry.block is block:
                entry.acknowledged = True
                break
        while self._sent and self._sent[0].acknowledged:
            done = self._sent.popleft()
            self._move(done.end, done.mark)

    def truncate(self, end: int, mark: bytes) -> None:
        """Move all offsets beyond `end` back to it, for a stream that continues in a shorter file."""
        for entry in self._sent:
            if entry.end > end:
                entry.end, entry.mark = end, mark
        if self.offset > end:
            self._move(end, mark)

    def _move(self, offset: int, mark: bytes) -> None:
        self.offset, self._mark, self._position = offset, mark, None
