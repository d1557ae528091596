"""One JSON object a line, by POST: the form that nearly every receiver of logs can be taught."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from sidecar.logs import documents
from sidecar.logs.records import Batch, Record
from sidecar.logs.sinks.delivery import HttpSink


class NdjsonSink(HttpSink):
    """Posts batches as `application/x-ndjson`; any 2xx acknowledges.

    `Idempotency-Key` is the same when a batch is sent again, so that a receiver may know it:
    an answer that got lost on its way is no difference to one that was never given.
    Lines say `file` and `offset` too, which name a line for good.

    >>> NdjsonSink("http://user:secret@receiver/lines", gzip=True).name
    'http://receiver/lines'
    """

    content_type: ClassVar[str] = "application/x-ndjson"
    takes_blocks = True

    def encode(self, records: Sequence[Record]) -> bytes:
        return b"".join([documents.json_line(record) + b"\n" for record in records])

    def encode_batch(self, batch: Batch) -> bytes:
        return documents.json_lines(batch)

    def headers_for(self, body: bytes) -> Mapping[str, str]:
        return {"Idempotency-Key": hashlib.blake2b(body, digest_size=16).hexdigest()}
