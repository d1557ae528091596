"""Create a sink from an address: `stdout`, `file:///path`, `loki+https://host`, … with options.

Options come from a configuration file, or follow `#` in the address, which is not sent to the receiver:

    loki+https://logs.example.com#tenant=shop&token_file=/run/secrets/token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from sidecar._errors import ConfigError
from sidecar.logs.sinks.base import Sink
from sidecar.process import config_types
from sidecar.process.redaction import redact_url

if TYPE_CHECKING:
    from sidecar.logs.sinks.http import HttpSink

FORMS = "stdout, file:///path, http(s)://…, loki+http(s)://…, elasticsearch+http(s)://…, otlp+http(s)://…"

_SCHEMA = {"schema": config_types.text, "prefix": config_types.text}
_FILE = {
    **_SCHEMA,
    "json": config_types.truth,
    "max_bytes": config_types.size,
    "keep": config_types.count,
    "mode": config_types.octal,
    "name": config_types.text,
}
_HTTP = {
    "name": config_types.text,
    "gzip": config_types.truth,
    "timeout": config_types.seconds,
    "headers": config_types.mapping,
    "user": config_types.text,
    "password_file": config_types.text,
    "token_file": config_types.text,
    "api_key_file": config_types.text,
    "header_files": config_types.mapping,
    "ca_file": config_types.text,
    "cert_file": config_types.text,
    "key_file": config_types.text,
    "max_body": config_types.size,
    "batch_bytes": config_types.some_size,
    "batch_lines": config_types.some,
    "linger": config_types.seconds,
    "concurrency": config_types.some,
}
_OWN: Mapping[str, config_types.Readers] = {
    "stdout": {**_SCHEMA, "json": config_types.truth, "name": config_types.text},
    "file": _FILE,
    "ndjson": {**_SCHEMA, **_HTTP},
    "loki": {
        **_HTTP,
        "tenant": config_types.text,
        "labels": config_types.mapping,
        "label_fields": config_types.texts,
        "metadata_fields": config_types.texts,
    },
    "elasticsearch": {
        **_SCHEMA,
        **_HTTP,
        "index": config_types.text,
        "require_alias": config_types.truth,
    },
    "otlp": {**_HTTP, "resource": config_types.mapping, "retry_status": config_types.counts},
}
_BATCHING = {
    "batch_bytes": "max_bytes",
    "batch_lines": "max_lines",
    "linger": "linger",
    "concurrency": "concurrency",
}
_KINDS = {"": "ndjson", "ndjson": "ndjson", "loki": "loki", "otlp": "otlp"}
_KINDS |= {"elasticsearch": "elasticsearch", "opensearch": "elasticsearch"}


def make_sink(
    address: str,
    options: Mapping[str, Any] | None = None,
    *,
    json: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Sink:
    """Create the sink of an address.

    `json` applies to sinks that write original lines; `defaults` apply to options of the sink that neither
    `options` nor the address set.

    Raises:
        ConfigError: an unknown scheme or option, or an invalid value.

    >>> make_sink("loki+http://loki:3100#tenant=shop")
    <LokiSink http://loki:3100/loki/api/v1/push>
    """
    bare, kind, in_address = _split(address)
    known = _OWN[kind]
    given: dict[str, Any] = {
        name: value for name, value in (defaults or {}).items() if name in known
    }
    own = {**(options or {}), **in_address}
    if "@" in bare or set(own) & {"user", "api_key_file"} or _authorizes(own.get("header_files")):
        given.pop("token_file", None)
    given |= own
    made = config_types.read(given, known, f"the sink {redact_url(bare)}")
    if kind == "stdout":
        from sidecar.logs.sinks.stdout import StdoutSink

        return StdoutSink(**{"json": json, **made})
    if kind == "file":
        from sidecar.logs.sinks.file import FileSink

        return FileSink(urlsplit(bare).path, **{"json": json, **made})
    return _http(kind, bare, made)


def _authorizes(header_files: Any) -> bool:
    return isinstance(header_files, dict) and any(
        str(name).lower() == "authorization" for name in header_files
    )


def _split(address: str) -> tuple[str, str, dict[str, str]]:
    """Return the address without its options, the kind of sink, and the options."""
    bare, _, fragment = address.partition("#")
    options = dict(parse_qsl(fragment, keep_blank_values=True))
    if bare in ("stdout", "-", "stdout://"):
        return "stdout", "stdout", options
    scheme, colon, _ = bare.partition("://")
    if colon and scheme == "file":
        parts = urlsplit(bare)
        if parts.netloc not in ("", "localhost") or parts.path.endswith("/") or not parts.path:
            raise ConfigError(f"{bare!r} names no file: write file:///path, with three slashes")
        return bare, "file", options
    kind, _, inner = scheme.rpartition("+")
    if colon and inner in ("http", "https") and kind in _KINDS:
        return bare, _KINDS[kind], options
    raise ConfigError(f"{redact_url(bare)!r} is no sink: it is one of {FORMS}")


def _http(kind: str, address: str, made: dict[str, Any]) -> Sink:
    make = _import_class(kind)
    batching = {
        word: made.pop(option) for option, word in _BATCHING.items() if made.get(option) is not None
    }
    if "max_lines" in batching:
        batching["max_records"] = None
    if batching:
        made["batching"] = replace(make.batching, **batching)
    return make(address, **made)


def _import_class(kind: str) -> type[HttpSink]:
    match kind:
        case "loki":
            from sidecar.logs.sinks.loki import LokiSink

            return LokiSink
        case "elasticsearch":
            from sidecar.logs.sinks.elasticsearch import ElasticsearchSink

            return ElasticsearchSink
        case "otlp":
            from sidecar.logs.sinks.otlp import OtlpSink

            return OtlpSink
    from sidecar.logs.sinks.ndjson import NdjsonSink

    return NdjsonSink
