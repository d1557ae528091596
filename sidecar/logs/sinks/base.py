"""The contract of a sink: what it must do, and what it can rely on.

    open(resume)  →  write(batch), write(batch), …  →  flush()  →  close()

* `write` returns when the receiver *has* the batch. The returned `Receipt` is the acknowledgement:
  only because of it does the position of the files move past the batch.
* A sink retries itself if it knows which part of a batch has arrived (Elasticsearch answers for each item).
  Otherwise it raises `SinkUnavailable`: the collector waits (exponential backoff, or `retry_after`)
  and passes the same batch again, without limit.
* Records that the receiver rejects permanently are returned in `Receipt.rejected`.
  The collector writes them to the dead-letter file *before* the position passes them.
* Any other exception ends the collection: the batch is not acknowledged, and is read again at the next start.
* `write` may be cancelled at any await. The batch then counts as not acknowledged.

A sink does nothing for backpressure: the collector holds at most its byte budget in memory,
and stops reading while a sink is slow. The file is the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sidecar._errors import SidecarError
from sidecar.logs.records import Batch, Record, Stage
from sidecar.process import arguments


class SinkUnavailable(SidecarError, OSError):
    """The receiver cannot accept data now: the batch is retried.

    `retry_after` is the pause in seconds that the receiver asked for, None if it did not.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that the receiver rejects permanently, and the reason.

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
    """Any JSON value. It is saved in the checkpoint together with the offsets of this batch, and passed to `open`
    after a restart: a sink that can return to this state delivers exactly once (the file sink does)."""


ACCEPTED = Receipt()
"""The batch is accepted completely, and there is no state to save."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How the collector fills batches for a sink.

    Raises:
        ConfigError: a value with which nothing would ever be sent.

    >>> Batching(max_lines=500, linger=0.2).concurrency
    1
    """

    max_bytes: int = 1 << 20
    """A batch is sent when it holds this many bytes of lines (before any stage) …"""
    max_lines: int | None = None
    """… or this many lines …"""
    max_records: int | None = None
    """… or this many records, if stages or the sink need records: each takes 1 KiB of memory …"""
    linger: float = 0.0
    """… or when its first line has waited this many seconds. 0: lines are sent at once,
    and batches grow by themselves while the sink is busy."""
    concurrency: int = 1
    """How many batches may be in flight at once. With more than one the order of lines is not kept."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_lines", "max_records", "concurrency"):
            if (value := getattr(self, name)) is not None:
                arguments.check_integer(f"{name} of a batching", value, least=1)
        arguments.check_seconds("linger of a batching", self.linger)


@runtime_checkable
class Sink(Protocol):
    """The destination of log lines. Implement these members, or inherit `BaseSink` and write only `write`.

    >>> isinstance(BaseSink(), Sink)
    True
    """

    name: str
    """Identifies the positions of the sink in the checkpoint: unique within a collection, the same after a restart,
    and without secrets."""
    batching: Batching
    takes_blocks: bool
    """Whether `write` handles a batch that is not split into lines (`batch.raw`) efficiently.
    `batch.records()` always works."""

    async def open(self, resume: Any) -> Any:
        """Open the sink. `resume` is the last saved `Receipt.resume`, None at the first start.

        Returns the initial value of `resume`, which is saved before anything is delivered; None if there is no state.
        """

    async def write(self, batch: Batch) -> Receipt:
        """Deliver the batch; return when the receiver has it."""

    async def flush(self) -> None:
        """Make acknowledged data durable. Called before each save of the checkpoint."""

    async def close(self) -> None:
        """Release all resources. Called once, also after errors, and never during a `write`."""


@dataclass(frozen=True, slots=True)
class Route:
    """A sink with stages of its own, which run after those of the collection. What they drop is not sent to this sink.

    >>> from sidecar import logs, testing
    >>> Route(testing.MemorySink(), [logs.keep("ERROR")]).sink.name
    'memory'
    """

    sink: Sink
    stages: Sequence[Stage] = ()


class BaseSink:
    """Default implementations, so that a custom sink needs only `write`.

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
    """Files that the sink writes: they and their rotated files are never collected."""

    async def open(self, resume: Any) -> Any:
        """Nothing to open."""

    async def write(self, batch: Batch) -> Receipt:
        raise NotImplementedError

    async def flush(self) -> None:
        """Nothing is buffered."""

    async def close(self) -> None:
        """Nothing to close."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
