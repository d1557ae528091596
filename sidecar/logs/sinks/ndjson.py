"""POST one JSON object per line (NDJSON), a format that nearly every log receiver supports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from sidecar.logs import json_encoding
from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.base import Batching
from sidecar.logs.sinks.http import HttpSink


class NdjsonSink(HttpSink):
    """Posts batches as `application/x-ndjson`; any 2xx acknowledges.

    `Idempotency-Key` is the same when a batch is retried, so that a receiver can detect the duplicate
    if its response was lost. Each line also contains `file` and `offset`, which identify it.

    Args:
        schema: the structure of a line: `plain`, `ecs`, `otel` or `flat`; see `sidecar.logs.sinks.schemas`.
        prefix: of our names in `flat`.

    All other arguments are those of `HttpSink`.

    >>> NdjsonSink("http://user:secret@receiver/lines", gzip=True).name
    'http://receiver/lines'
    """

    content_type: ClassVar[str] = "application/x-ndjson"
    takes_blocks = True
    # A request costs 1 ms whatever its size. Without stages lines do not become records, so more fit in memory.
    batching = Batching(max_bytes=1 << 20, max_records=1250, linger=0.02)

    def __init__(
        self, url: str, *, schema: str = "plain", prefix: str | None = None, **options: Any
    ) -> None:
        super().__init__(url, **options)
        self._schema = schemas.named(schema, prefix)
        self.takes_blocks = self._schema is None

    def encode(self, records: Sequence[Record]) -> bytes:
        return b"".join([schemas.json_line(record, self._schema) + b"\n" for record in records])

    def encode_batch(self, batch: Batch) -> Iterable[bytes]:
        if self._schema is not None:
            return (self.encode(batch.records()),)
        # Encoded in pieces, so that only one uncompressed piece is in memory.
        return json_encoding.json_pieces(batch)

    def make_headers(self, body: bytes) -> Mapping[str, str]:
        return {"Idempotency-Key": hashlib.blake2b(body, digest_size=16).hexdigest()}
