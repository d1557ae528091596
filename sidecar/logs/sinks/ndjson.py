"""One JSON object a line, by POST: the form that nearly every receiver of logs can be taught."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.delivery import HttpSink


class NdjsonSink(HttpSink):
    """Posts batches as `application/x-ndjson`; any 2xx acknowledges.

    `Idempotency-Key` is the same when a batch is sent again, so that a receiver may know it:
    an answer that got lost on its way is no difference to one that was never given.
    Lines say `file` and `offset` too, which name a line for good.

    Args:
        schema: the shape of a line: `plain`, `ecs`, `otel` or `flat`; see `sidecar.logs.sinks.schemas`.
        prefix: of our names in `flat`.

    All other arguments are those of `HttpSink`.

    >>> NdjsonSink("http://user:secret@receiver/lines", gzip=True).name
    'http://receiver/lines'
    """

    content_type: ClassVar[str] = "application/x-ndjson"
    takes_blocks = True

    def __init__(
        self, url: str, *, schema: str = "plain", prefix: str | None = None, **options: Any
    ) -> None:
        super().__init__(url, **options)
        self._schema = schemas.named(schema, prefix)

    def encode(self, records: Sequence[Record]) -> bytes:
        return b"".join([schemas.json_line(record, self._schema) + b"\n" for record in records])

    def encode_batch(self, batch: Batch) -> bytes:
        return schemas.json_lines(batch, self._schema)

    def headers_for(self, body: bytes) -> Mapping[str, str]:
        return {"Idempotency-Key": hashlib.blake2b(body, digest_size=16).hexdigest()}
