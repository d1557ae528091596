"""The position of one file towards one sink: it moves only over what has been acknowledged without a gap."""

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
    r"""What has been handed to a sink and not been acknowledged, in the order of the file.

    >>> window = OffsetWindow(Position(0))
    >>> first, second = (Block(b"a\n", "f", "id", start, start + 2, 0) for start in (0, 2))
    >>> window.add(first); window.add(second)
    >>> window.acknowledge(second); window.position.offset      # the first is still missing
    0
    >>> window.acknowledge(first); window.position.offset
    4
    """

    __slots__ = ("_mark", "_position", "_sent", "offset")

    def __init__(self, place: Position) -> None:
        self.offset = place.offset
        """Everything before it has been acknowledged."""
        self._position: Position | None = place
        self._mark = b""
        self._sent: deque[_Sent] = deque()

    @property
    def position(self) -> Position:
        """The acknowledged place, as the checkpoint keeps it. Hashed only when somebody asks."""
        if self._position is None:
            self._position = Position.of(self.offset, self._mark)
        return self._position

    @property
    def oldest(self) -> Block | None:
        """The first block that has not been acknowledged."""
        return self._sent[0].block if self._sent else None

    @property
    def unacknowledged(self) -> int:
        """Bytes of the file that were handed out and not acknowledged."""
        return self._sent[-1].end - self.offset if self._sent else 0

    def add(self, block: Block) -> None:
        """Remember that the block has been handed out."""
        self._sent.append(_Sent(block, block.end, block.mark))

    def acknowledge(self, block: Block) -> None:
        """Take the block as delivered, and move as far as there is no gap."""
        for entry in self._sent:
            if entry.block is block:
                entry.acknowledged = True
                break
        while self._sent and self._sent[0].acknowledged:
            done = self._sent.popleft()
            self._move(done.end, done.mark)

    def truncate(self, end: int, mark: bytes) -> None:
        """The content lives on in a file that ends here: what was handed out behind it has no place there."""
        for entry in self._sent:
            if entry.end > end:
                entry.end, entry.mark = end, mark
        if self.offset > end:
            self._move(end, mark)

    def _move(self, offset: int, mark: bytes) -> None:
        self.offset, self._mark, self._position = offset, mark, None
