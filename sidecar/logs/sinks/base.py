"""What every sink promises, and what it may rely on.

    open(resume)  →  write(batch), write(batch), …  →  flush()  →  close()

* `write` returns when the receiver *has* the batch. The returned `Receipt` is the acknowledgement:
  the position of the files moves past the batch because of it, and only because of it.
* Retrying belongs to the sink, for only the sink knows what of a batch has arrived already
  (Elasticsearch answers for each item). A sink with nothing to remember raises `SinkUnavailable` instead:
  the collector then waits (growing pauses, or `retry_after`) and gives it the same batch again, for ever.
* What the receiver refuses for good goes into `Receipt.rejected`.
  The collector writes it to the dead-letter file *before* the position passes it.
* Any other exception ends the collection: the batch is not acknowledged and is read again at the next start.
* `write` may be cancelled at any await. The batch then counts as not acknowledged.

Back-pressure needs nothing from a sink: the collector holds at most its byte budget,
and stops reading while a sink is slow. The file is the buffer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sidecar._errors import SidecarError
from sidecar.logs.records import Batch, Record, Stage
from sidecar.process import arguments


class SinkUnavailable(SidecarError, OSError):
    """The receiver cannot take anything now; the batch is to be tried again.

    `retry_after` is the pause the receiver has asked for, in seconds, None if it named none.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


_VALUE = re.compile(r"=[^&;]*")


def redact_url(url: str) -> str:
    """Return a URL as people may see it: without credentials, and without the values of its query.

    A key for the receiver stands there often enough. It is no part of a sink's name in the checkpoint either:
    a new key must not make a new sink, which would get everything again.

    >>> redact_url("https://ada:secret@logs.example.com/in?api_key=secret&source=shop")
    'https://logs.example.com/in?api_key=***&source=***'
    """
    rest, question, query = url.partition("?")
    scheme, slashes, place = rest.partition("://")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{question}{_VALUE.sub('=***', query)}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that the receiver will never take, and why.

    >>> Rejected(Record(b"from last year"), "timestamp too old").reason
    'timestamp too old'
    """

    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of one batch.

    >>> Receipt(resume={"size": 4096}).rejected
    ()
    """

    rejected: Sequence[Rejected] = ()
    resume: Any = None
    """Anything JSON can hold. It is saved in the checkpoint together with the offsets of this very batch,
    and given to `open` after a restart: a sink that can go back to it delivers exactly once (the file sink does)."""


ACCEPTED = Receipt()
"""All of it has arrived, nothing was refused, nothing to remember."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How the collector fills batches for a sink.

    Raises:
        ConfigError: a value with which nothing would ever be sent.

    >>> Batching(max_lines=500, linger=0.2).concurrency
    1
    """

    max_bytes: int = 1 << 20
    """A batch is sent when it holds so many bytes of lines (as they came) …"""
    max_lines: int | None = None
    """… or so many lines …"""
    max_records: int | None = None
    """… or so many that have become records, for a stage or the sink itself looks at each: those take a kilobyte each …"""
    linger: float = 0.0
    """… or when its first line is so old, in seconds. 0: whatever is there is sent at once,
    and batches grow by themselves while the sink is busy."""
    concurrency: int = 1
    """How many batches may be on their way at once. More than one gives up the order of lines."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_lines", "max_records", "concurrency"):
            if (value := getattr(self, name)) is not None:
                arguments.check_integer(f"{name} of a batching", value, least=1)
        arguments.check_seconds("linger of a batching", self.linger)


@runtime_checkable
class Sink(Protocol):
    """Where log lines go. Implement these six, or inherit `BaseSink` and write only `write`.

    >>> isinstance(BaseSink(), Sink)
    True
    """

    name: str
    """Identifies the sink's own progress in the checkpoint: unique among the sinks of one collection,
    the same after a restart. Never holds a secret."""
    batching: Batching
    takes_blocks: bool
    """True: `write` can deal with a batch nobody has split into lines (`batch.raw`). Only a hint to the reader of
    the code: `batch.records()` always works."""

    async def open(self, resume: Any) -> Any:
        """Get ready. `resume` is the last saved `Receipt.resume`, None at the first start.

        Returns what `resume` is to be before the first batch, None where there is nothing to remember.
        It is saved before anything is delivered.
        """

    async def write(self, batch: Batch) -> Receipt:
        """Deliver the batch; return when it has arrived."""

    async def flush(self) -> None:
        """Make durable what has been acknowledged. Called before each save of the checkpoint."""

    async def close(self) -> None:
        """Let go of everything. Called once, also after errors; never with a `write` under way."""


@dataclass(frozen=True, slots=True)
class Route:
    """A sink with stages of its own, which run after those of the collection: what they drop does not reach this sink.

    >>> from sidecar import logs, testing
    >>> Route(testing.MemorySink(), [logs.keep("ERROR")]).sink.name
    'memory'
    """

    sink: Sink
    stages: Sequence[Stage] = ()


class BaseSink:
    """The usual answers, so that a sink of one's own is one method.

    >>> class Collected(BaseSink):
    ...     name = "collected"
    ...     def __init__(self) -> None:
    ...         self.texts: list[str] = []
    ...     async def write(self, batch: Batch) -> Receipt:
    ...         self.texts += [record.text for record in batch.records()]
    ...         return ACCEPTED
    """

    name: str = "sink"
    batching: Batching = Batching()
    takes_blocks: bool = False
    own_files: Sequence[str] = ()
    """What the sink writes to: never collected, nor what rotation leaves of it."""

    async def open(self, resume: Any) -> Any:
        """Nothing to open."""

    async def write(self, batch: Batch) -> Receipt:
        raise NotImplementedError

    async def flush(self) -> None:
        """Nothing is held back."""

    async def close(self) -> None:
        """Nothing to close."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
