"""The bulk API of Elasticsearch and OpenSearch.

https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk

The response to a bulk request is 200 even if nothing was stored: each item has its own status.
Every document has an `_id` derived from its origin (checkpoint, file and offset) and its content, so a retried line
is recognised as a duplicate: it is stored exactly once as long as the checkpoint exists.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import orjson

from sidecar._errors import ConfigError
from sidecar.logs import json_encoding
from sidecar.logs.records import Record
from sidecar.logs.sinks import schemas
from sidecar.logs.sinks.base import Receipt, Rejected
from sidecar.logs.sinks.http import HttpSink
from sidecar.logs.sinks.responses import (
    Accepted,
    PartialResult,
    PermanentlyRejected,
    ReceiverResponse,
    RecordRejected,
    RetryLater,
    Unclear,
    Verdict,
    classify_status,
)
from sidecar.process import arguments

_CONFLICT_STATUS = 409
_RETRYABLE_STATUSES = frozenset({401, 402, 403, 404, 408, 429})
"""Not a fault of the document: full queue, disk watermark, write block, missing index, missing rights or licence."""
_INDEX_ERROR_TYPES = frozenset({
    "cluster_block_exception", "index_closed_exception", "index_create_block_exception", "index_not_found_exception",
    "invalid_alias_name_exception", "invalid_index_name_exception", "resource_already_exists_exception",
    "security_exception", "validation_exception",
})  # fmt: skip
"""Types of errors that are not a fault of the document, whatever the status. `validation_exception`: too many shards."""
_INDEX_ERROR_REASON = re.compile(
    r"no write index|can't execute a single index op|with an op_type of create are allowed|not an alias"
    r"|auto.create|maximum (?:normal )?shards|read.only|licen[sc]e",
    re.IGNORECASE,
)
"""The same by the reason, for ambiguous types such as `illegal_argument_exception`."""
_NO_IDS = re.compile(r"document id is not supported|_id must be unset", re.IGNORECASE)
"""OpenSearch Serverless and time series indices assign ids themselves."""

_NS_PER_HOUR = 3_600_000_000_000
_MAX_INDEX_BYTES = 255
_DIRECTIVE = re.compile(r"%[YymdHjUWGVuB](?![0-9A-Fa-f])|%[YymHjUWGVu]")
"""A directive of strftime in a path, where `%3C` is an escaped character."""
_OTHER_FORMAT = re.compile(r"yyyy|YYYY|%[{+]|MM\.dd")

_log = logging.getLogger(__name__)


class ElasticsearchSink(HttpSink):
    """Stores lines with `create`, which data streams require, and `@timestamp`.

    Args:
        index: index or data stream. The default is the path of the URL (`http://search:9200/my-logs`),
            else `logs-sidecar-default`, which the built-in templates of Elasticsearch create as a data stream.
            With directives of strftime (`shop-%Y.%m.%d`) each line is stored in the index of its own time (UTC).
        require_alias: store only if `index` is an alias: the sink waits until the rollover alias exists,
            instead of creating an index of that name.
        schema: `ecs`, `otel`, `flat` or `plain`: see `sidecar.logs.sinks.schemas`.
        prefix: of our names in `flat`.

    All other arguments are those of `HttpSink`.

    Raises:
        ConfigError: `index`, or the last part of the path, is not a valid name of an index.

    >>> ElasticsearchSink("https://search:9200", index="shop", user="shop", password_file="/run/password").url
    'https://search:9200/_bulk'
    """

    content_type: ClassVar[str] = "application/x-ndjson"
    standard_path: ClassVar[str] = "/_bulk"
    answer_limit: ClassVar[int] = 16 << 20

    def __init__(
        self,
        url: str,
        *,
        index: str | None = None,
        require_alias: bool = False,
        schema: str = "ecs",
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, **options)
        self._schema = schemas.named(schema, prefix) or _plain
        self._has_time = schema in ("ecs", "otel")
        self._instance = secrets.token_hex(8)
        self._ids, self._require_alias = True, require_alias
        path = urlsplit(self.url).path.removesuffix("/_bulk").strip("/")
        if index is not None:
            arguments.check_instance("index", index, str, "the name of an index, or None")
            check_index(index)
        elif not path:
            index = "logs-sidecar-default"
        else:
            named = path.rpartition("/")[2]
            check_index(unquote(named) if not _DIRECTIVE.search(named) else named)
            if _DIRECTIVE.search(named):
                index = named
                self.url = self.url.replace(f"/{named}/_bulk", "/_bulk")
        self._index = index
        self._dated = index is not None and "%" in index
        self._action = b"" if self._dated else self._make_action(index)
        self._last_hour = -1, b""
        """The action of the last hour used: lines are almost always in order."""

    async def open(self, resume: Any) -> None:
        """Continue with the identity from the checkpoint, so that retried lines keep their `_id`."""
        if isinstance(resume, Mapping) and isinstance(resume.get("instance"), str):
            self._instance = resume["instance"]
        await super().open(resume)

    def encode(self, records: Sequence[Record]) -> bytes:
        lines = []
        for record in records:
            action = (
                self._dated_action(record.time // _NS_PER_HOUR) if self._dated else self._action
            )
            lines.append(action % self._id(record) if self._ids else action)
            source = self._schema(record)
            if not self._has_time:
                source["@timestamp"] = json_encoding.rfc3339(record.time)
            lines.append(json_encoding.dumps(source) + b"\n")
        return b"".join(lines)

    def _make_action(self, index: str | None) -> bytes:
        """Return the action line of a document, with a placeholder for its `_id`."""
        about: dict[str, Any] = {} if index is None else {"_index": index}
        if self._require_alias:
            about["require_alias"] = True
        if self._ids:
            about["_id"] = "%b"
        return orjson.dumps({"create": about}) + b"\n"

    def _dated_action(self, hour: int) -> bytes:
        if self._last_hour[0] != hour:
            name = time.strftime(self._index or "", time.gmtime(hour * 3600))
            self._last_hour = hour, self._make_action(name)
        return self._last_hour[1]

    def classify_response(self, answer: ReceiverResponse, count: int) -> Verdict:
        found = _parsed(answer.body)
        if answer.status != 200:
            return self._classify_bulk(answer, found, count)
        if not answer.body.strip():
            return Accepted()
        items = _items(found)
        if items is None or len(items) != count:
            if isinstance(found, Mapping) and isinstance(found.get("errors"), bool):
                return self._classify_without_items(answer, found)
            said = (
                f"{len(items)} answers to {count} documents"
                if items
                else "not an answer to a bulk request"
            )
            return RetryLater(f"{said}: {answer}")
        refused, again, pausing = list[tuple[int, str]](), list[int](), ""
        for index, (status, item) in enumerate(items):
            if 200 <= status < 300 or status == _CONFLICT_STATUS:
                continue
            reason = _reason(status, item)
            if self._disable_ids(reason):
                again.append(index)
            elif _is_retryable(status, item):
                again.append(index)
                pausing = pausing or reason
            else:
                refused.append((index, reason))
        said = f"{len(again)} of {count} documents: {pausing}" if pausing else ""
        return PartialResult(refused, again, said, answer.retry_after)

    def _classify_without_items(
        self, answer: ReceiverResponse, found: Mapping[str, Any]
    ) -> Verdict:
        """Classify a response without an item for each document (`?filter_path`, or receivers that omit items).

        Without errors it is a success. With errors the documents cannot be tested one by one:
        stored ones cause conflicts, and a conflict is an error as well.
        """
        if not found["errors"]:
            return Accepted()
        items = found.get("items")
        for item in items if isinstance(items, list) else []:
            said = next(iter(item.values()), None) if isinstance(item, Mapping) else None
            if isinstance(said, Mapping) and _is_retryable(said.get("status"), said):
                return RetryLater(f"{_reason(said.get('status'), said)}", answer.retry_after)
        reason = (
            f"some were refused, and not which (does the address have a filter_path?): {answer}"
        )
        return (
            Unclear(reason) if self._ids else PermanentlyRejected(reason)
        )  # documents without an _id may be stored twice

    def _classify_bulk(self, answer: ReceiverResponse, found: Any, count: int) -> Verdict:
        """Classify a response that does not refer to single documents."""
        verdict = classify_status(answer)
        if not isinstance(verdict, RecordRejected):
            return verdict
        if self._disable_ids(verdict.reason):
            return PartialResult((), range(count))
        if isinstance(found, Mapping) and _is_index_error(found):
            return RetryLater(f"{answer} (check the index)", answer.retry_after)
        return verdict

    def _disable_ids(self, reason: str) -> bool:
        """Disable `_id` if the receiver does not allow it; return whether that was the reason of the rejection."""
        if not _NO_IDS.search(reason):
            return False
        if self._ids:
            _log.warning(
                "%s takes no _id: from now on lines that are sent again are stored again (%s)",
                self.name,
                reason,
            )
            self._ids = False
            self._last_hour = -1, b""
            self._action = b"" if self._dated else self._make_action(self._index)
        return True

    def receipt(self, rejected: Sequence[Rejected]) -> Receipt:
        return Receipt(rejected, {"instance": self._instance})

    def _id(self, record: Record) -> bytes:
        place = f"{self._instance}:{record.file_id}:{record.offset}:".encode()
        return hashlib.blake2b(place + record.raw, digest_size=15).hexdigest().encode()


def check_index(name: str) -> None:
    """Check the name of an index.

    https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-indices-create

    Raises:
        ConfigError: the name is invalid; the message gives the reason.

    >>> check_index("logs-shop-%Y.%m.%d")
    >>> check_index("<logs-{now/d}>")
    """
    where = f"{name!r} cannot be the name of an index"
    if _OTHER_FORMAT.search(name):
        raise ConfigError(f"{where}: a date is written as strftime does, like logs-%Y.%m.%d")
    if name.startswith("<") and name.endswith(">"):
        return  # date math is evaluated by Elasticsearch
    try:
        made = time.strftime(name, time.gmtime(0)) if "%" in name else name
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not made or made in (".", "..") or made != made.lower() or made[0] in "_-+":
        raise ConfigError(f"{where}: it must be in lower case, and begin with a letter or digit")
    if found := sorted(set(made) & set('\\/*?"<>| ,#:%')):
        raise ConfigError(f"{where}: it must not hold {' '.join(found)}")
    if len(made.encode()) > _MAX_INDEX_BYTES:
        raise ConfigError(f"{where}: it is longer than {_MAX_INDEX_BYTES} bytes")


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _items(found: Any) -> list[tuple[int, Mapping[str, Any]]] | None:
    """Return the items of a bulk response, None if it is not one."""
    try:
        items = [next(iter(item.values())) for item in found["items"]]
        return [(int(item["status"]), item) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OverflowError):
        return None


def _is_retryable(status: Any, item: Mapping[str, Any]) -> bool:
    """Whether an item was rejected for a temporary reason, not because of its document."""
    retryable = isinstance(status, int) and (status in _RETRYABLE_STATUSES or status >= 500)
    return retryable or _is_index_error(item)


def _is_index_error(found: Mapping[str, Any]) -> bool:
    """Whether an error is one of the index, the cluster or the licence, which affects every document."""
    error = found.get("error")
    if not isinstance(error, Mapping):
        return isinstance(error, str) and _INDEX_ERROR_REASON.search(error) is not None
    if error.get("type") in _INDEX_ERROR_TYPES:
        return True
    return error.get("type") == "illegal_argument_exception" and (
        _INDEX_ERROR_REASON.search(str(error.get("reason"))) is not None
    )


def _plain(record: Record) -> dict[str, Any]:
    source = json_encoding.to_document(record)
    if "time" not in record.fields:
        del source["time"]
    return source


def _reason(status: int | None, item: Mapping[str, Any]) -> str:
    error = item.get("error")
    if not isinstance(error, Mapping):
        return f"status {status}: {error}"
    said = f"status {status}: {error.get('type')}: {error.get('reason')}"
    cause = error.get("caused_by")
    if isinstance(cause, Mapping):
        said += f" ({cause.get('type')}: {cause.get('reason')})"
    return said[:500]
