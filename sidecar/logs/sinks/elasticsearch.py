"""The bulk API of Elasticsearch and OpenSearch.

https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk

The answer to a bulk request is 200 also when nothing was stored: each item has a status of its own.
Every document has an `_id` made of its place (which checkpoint, file and offset) and its content,
so a line that is sent again is known to be there already: exactly once, as long as the checkpoint lives.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson

from sidecar._errors import ConfigError
from sidecar.logs import documents
from sidecar.logs.records import Record
from sidecar.logs.sinks.base import Receipt, Rejected
from sidecar.logs.sinks.delivery import HttpSink
from sidecar.logs.sinks.verdicts import Answer, Itemised, Later, Verdict, judged_by_status

_ALREADY_THERE = 409
_PASSING = frozenset({401, 403, 429})
"""No fault of the document: queue full, disk nearly full, a write block, rights that are still missing."""


class ElasticsearchSink(HttpSink):
    """Stores lines by `create`, which data streams ask for, with `@timestamp`.

    Args:
        index: index or data stream. By default the URL's path names it (`http://search:9200/my-logs`),
            else it is `logs-sidecar-default`, which the built-in templates of Elasticsearch make a data stream.

    All other arguments are those of `HttpSink`.

    >>> ElasticsearchSink("https://search:9200", index="shop", user="shop", password_file="/run/password").url
    'https://search:9200/_bulk'
    """

    content_type: ClassVar[str] = "application/x-ndjson"
    standard_path: ClassVar[str] = "/_bulk"
    answer_limit: ClassVar[int] = 16 << 20

    def __init__(self, url: str, *, index: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self._instance = secrets.token_hex(8)
        path = urlsplit(self.url).path.removesuffix("/_bulk").strip("/")
        if index is None and not path:
            index = "logs-sidecar-default"
        if index is not None and (not index or index != index.lower() or index[0] in "_-+"):
            raise ConfigError(f"{index!r} cannot be the name of an index: it must be in lower case")
        action = {"_index": index} if index is not None else {}
        self._action = orjson.dumps({"create": {**action, "_id": ""}})[:-3]

    async def open(self, resume: Any) -> None:
        """Go on with the identity that the checkpoint has kept: lines sent again keep their `_id`."""
        if isinstance(resume, Mapping) and isinstance(resume.get("instance"), str):
            self._instance = resume["instance"]
        await super().open(resume)

    def encode(self, records: Sequence[Record]) -> bytes:
        lines = []
        for record in records:
            lines.append(b'%b%b"}}\n' % (self._action, self._id(record)))
            lines.append(documents.dumps(_source(record)) + b"\n")
        return b"".join(lines)

    def judge(self, answer: Answer, count: int) -> Verdict:
        if answer.status != 200:
            return judged_by_status(answer)
        try:
            found = orjson.loads(answer.body)
            items = [next(iter(item.values())) for item in found["items"]]
            statuses = [int(item["status"]) for item in items]
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            return Later(f"not an answer to a bulk request: {answer}")
        if len(statuses) != count:
            return Later(f"{len(statuses)} answers to {count} documents")
        refused, again = [], []
        for index, status in enumerate(statuses):
            if 200 <= status < 300 or status == _ALREADY_THERE:
                continue
            if status in _PASSING or status >= 500:
                again.append(index)
            else:
                refused.append((index, _reason(status, items[index])))
        reason = (
            f"{len(again)} of {count} documents: {_reason(statuses[again[0]], items[again[0]])}"
            if again
            else ""
        )
        return Itemised(refused, again, reason, answer.retry_after)

    def receipt(self, rejected: Sequence[Rejected]) -> Receipt:
        return Receipt(rejected, {"instance": self._instance})

    def _id(self, record: Record) -> bytes:
        place = f"{self._instance}:{record.file_id}:{record.offset}:".encode()
        return hashlib.blake2b(place + record.raw, digest_size=15).hexdigest().encode()


def _source(record: Record) -> dict[str, Any]:
    source = documents.document(record)
    if "time" not in record.fields:
        del source["time"]
    return {**source, "@timestamp": documents.rfc3339(record.time)}


def _reason(status: int, item: Mapping[str, Any]) -> str:
    error = item.get("error")
    if not isinstance(error, Mapping):
        return f"status {status}: {error}"
    said = f"status {status}: {error.get('type')}: {error.get('reason')}"
    cause = error.get("caused_by")
    if isinstance(cause, Mapping):
        said += f" ({cause.get('type')}: {cause.get('reason')})"
    return said[:500]
