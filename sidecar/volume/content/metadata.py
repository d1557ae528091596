"""Metadata of a publication: what type the content has, who published it, when, and by which request.

It is one JSON object in the extended attribute `user.sidecar` of the published file, or, for a set, of the directory
of the generation. It is written before the rename, so it is visible with the content and stays with it in the history:

    {"version": "a665a459…", "published_at": "2026-11-30T12:00:00.000000Z", "published_by": "deploy-bot",
     "content_type": "text/css", "request_id": "b8f7…", "traceparent": "00-…-01", "signature": "…"}

Volumes without such attributes have it in hidden files: `..metadata/NAME.json` with an object per version of a file,
and `..metadata.json` in the directory of a generation.

Any process that can write to the volume can write anything there. So what is read is bounded and checked,
it counts only for the content whose version it names, and invalid values are ignored.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from sidecar import _errors
from sidecar.fs import layout, openat, xattrs
from sidecar.process.logging import rate_limited
from sidecar.process.request_context import is_request_id, is_traceparent

MAX_HIDDEN_FILE_BYTES: Final = 64 << 10
"""Maximum size of a hidden file with the metadata of all kept versions of one file."""
_MAX_NAME_CHARACTERS = 256
_MAX_SIGNATURE_CHARACTERS = 1024
#: RFC 9110 section 8.3.1, without obsolete characters in quoted values.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (the term of the RFC)
_MEDIA_TYPE = re.compile(
    rf'{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*', re.ASCII
)
_PRINTABLE_ASCII = re.compile(r"[ -~]+", re.ASCII)
_MAX_YEAR = 9999

_log = rate_limited(logging.getLogger(__name__), 60.0)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of a publication, for `metadata=` of `Volume.put` and the other methods that publish. All is optional.

    Args:
        content_type: the media type of a file, such as `text/css; charset=utf-8`, at most 256 characters. A set has none.
        published_at: when it was published, in Unix seconds; by default the time of the publish.
        published_by: who published it: a token's name, a Pod, a source; at most 256 printable characters.
            By default the name of the Pod, if the program runs in one.
        request_id: the request that published it, at most 128 visible ASCII characters.
        traceparent: its trace context (W3C Trace Context, version 00).
        signature: a signature of the content, at most 1024 printable ASCII characters.

    Raises:
        ConfigError: a value is invalid.

    >>> Metadata(content_type="text/css", published_by="deploy-bot").published_by
    'deploy-bot'
    """

    content_type: str | None = None
    published_at: float | None = None
    published_by: str | None = None
    request_id: str | None = None
    traceparent: str | None = None
    signature: str | None = None

    def __post_init__(self) -> None:
        for name, (is_valid, what) in _FIELDS.items():
            value = getattr(self, name)
            if value is not None and not is_valid(value):
                shown = repr(value)
                raise _errors.ConfigError(
                    f"{name}: {shown if len(shown) <= 80 else shown[:77] + '...'} is not {what}"
                )

    def to_dict(self) -> dict[str, str]:
        """Return the values that are known, the time in RFC 3339, for JSON.

        >>> Metadata(published_at=0.0, published_by="web-0").to_dict()
        {'published_at': '1970-01-01T00:00:00.000000Z', 'published_by': 'web-0'}
        """
        found: dict[str, str] = {}
        if self.content_type is not None:
            found["content_type"] = self.content_type
        if self.published_at is not None:
            found["published_at"] = _format_time(self.published_at)
        if self.published_by is not None:
            found["published_by"] = self.published_by
        if self.request_id is not None:
            found["request_id"] = self.request_id
        if self.traceparent is not None:
            found["traceparent"] = self.traceparent
        if self.signature is not None:
            found["signature"] = self.signature
        return found

    def to_json(self, version: str) -> bytes:
        """Return it as it is stored with the content of this version."""
        found = self.to_dict()
        found["version"] = version
        return orjson.dumps(found)

    def completed(self, published_by: str | None, published_at: float) -> Metadata:
        """Return it with who published and when, where it does not say so itself. The arguments are not checked."""
        values = self.__dict__.copy()
        if self.published_by is None:
            values["published_by"] = published_by
        if self.published_at is None:
            values["published_at"] = published_at
        return make(values)

    def of_file(self, own: Metadata | None) -> Metadata:
        """Return the metadata of a file of a set that has this metadata: type and signature are the file's `own`."""
        return replace(
            self,
            content_type=own.content_type if own is not None else None,
            signature=own.signature if own is not None else None,
        )

    def of_set(self) -> Metadata:
        """Return the metadata of a set of which one file was published with this metadata."""
        return replace(self, content_type=None, signature=None)

    def describes_content(self) -> bool:
        """Whether it says something about the bytes themselves, so that it must follow them: type or signature."""
        return self.content_type is not None or self.signature is not None

    def redescribes(self, before: Metadata | None) -> bool:
        """Whether the same content must be published again with this metadata: another type, or another signature."""
        known = before or _NOTHING
        return any(
            value is not None and value != old
            for value, old in (
                (self.content_type, known.content_type),
                (self.signature, known.signature),
            )
        )


def described_by(given: Metadata | None, old: Metadata | None) -> Metadata | None:
    """Return the metadata of a content that is published again: its type and signature stay, if no others are given."""
    if old is None or not old.describes_content():
        return given
    given = given or Metadata(published_at=time.time())
    return replace(
        given,
        content_type=given.content_type or old.content_type,
        signature=given.signature or old.signature,
    )


def make(values: dict[str, Any]) -> Metadata:
    """Return metadata of values that have been checked: each small write has one, and checking takes longer than the rest."""
    made = object.__new__(Metadata)
    made.__dict__.update(values)
    return made


def parse(data: bytes | None, version: str) -> Metadata | None:
    """Return stored metadata; None if there is none, it belongs to other bytes, or it is invalid.

    >>> parse(Metadata(published_by="web-0").to_json("a1"), "a1")
    Metadata(content_type=None, published_at=None, published_by='web-0', request_id=None, traceparent=None, signature=None)
    >>> parse(Metadata(published_by="web-0").to_json("a1"), "b2"), parse(b"{", "a1"), parse(None, "a1")
    (None, None, None)
    """
    if data is None:
        return None
    try:
        found = orjson.loads(data)
    except ValueError:
        _log.warning("the metadata of version %s is not JSON, and is ignored", version)
        return None
    return _of_mapping(found, version)


def of_attribute(
    attribute: bytes | None, version: str, name: str, hidden: HiddenMetadata
) -> Metadata | None:
    """Return the metadata in the attribute of a file, else that of the hidden files of the volume."""
    if attribute is not None and (found := parse(attribute, version)) is not None:
        return found
    return hidden.get(name, version)


def read_of_set(generation: int) -> bytes | None:
    """Return what is stored in the open directory of a generation, for `parse`; None if there is nothing."""
    found = xattrs.read(generation)
    return found or _read_hidden(generation, layout.SET_METADATA, xattrs.MAX_BYTES)


def of_generation(dir_fd: int, generation: str) -> Metadata | None:
    """Return the metadata of the set in a generation beneath an open directory, None if there is none. Never raises."""
    with contextlib.suppress(OSError):
        fd = openat.open_beneath(dir_fd, generation, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # The name of a generation ends with its version.
            return parse(read_of_set(fd), generation.rsplit("-", 1)[-1])
        finally:
            openat.close(fd)
    return None


def of_member(dir_fd: int, generation: str, own: Metadata | None) -> Metadata | None:
    """Return the metadata of a file of a set, of which `own` is stored with the file itself."""
    found = of_generation(dir_fd, generation)
    return own if found is None else found.of_file(own)


class HiddenMetadata:
    """The hidden files with metadata of a volume without extended attributes. They are read when they are needed."""

    __slots__ = ("_dir_fd", "_exists")

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd
        self._exists: bool | None = None

    def get(self, name: str, version: str) -> Metadata | None:
        """Return the metadata of a file with that content, None if there is none. Never raises."""
        if self._exists is None:
            try:
                os.stat(layout.METADATA, dir_fd=self._dir_fd, follow_symlinks=False)
                self._exists = True
            except OSError:
                self._exists = False
        return _of_mapping(self.versions(name).get(version), version) if self._exists else None

    def versions(self, name: str) -> dict[str, Any]:
        """Return what is stored of each version of a file, unchecked, oldest first."""
        data = _read_hidden(self._dir_fd, layout.metadata_of(name), MAX_HIDDEN_FILE_BYTES)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = orjson.loads(data or b"{}")
            if found["name"] == name and isinstance(found["versions"], dict):
                # Only what `Metadata.to_dict` writes: orjson parses deeper structures than it writes.
                return {
                    version: {key: value for key, value in one.items() if isinstance(value, str)}
                    for version, one in found["versions"].items()
                    if isinstance(one, dict)
                }
        return {}


def hidden_name(dir_fd: int, path: str) -> str | None:
    """Return the name of the file that a hidden file belongs to, None if it says none."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        name = orjson.loads(_read_hidden(dir_fd, path, MAX_HIDDEN_FILE_BYTES) or b"{}")["name"]
        return name if isinstance(name, str) else None
    return None


def is_media_type(text: str) -> bool:
    r"""Whether a text is a media type of at most 256 characters.

    >>> is_media_type("text/html; charset=utf-8"), is_media_type("text"), is_media_type("a/b\r\nX: y")
    (True, False, False)
    """
    return len(text) <= _MAX_NAME_CHARACTERS and _MEDIA_TYPE.fullmatch(text) is not None


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(value, UTC).year <= _MAX_YEAR
    return False


def is_publisher_name(value: object) -> bool:
    """Whether a value can be the name of a publisher: at most 256 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARACTERS and value.isprintable()


def _is_signature(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _MAX_SIGNATURE_CHARACTERS
        and _PRINTABLE_ASCII.fullmatch(value) is not None
    )


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "content_type": (
        lambda value: isinstance(value, str) and is_media_type(value),
        "a media type of at most 256 characters",
    ),
    "published_at": (_is_time, "a time in Unix seconds"),
    "published_by": (is_publisher_name, "a text of at most 256 printable characters"),
    "request_id": (
        lambda value: isinstance(value, str) and is_request_id(value),
        "a text of at most 128 visible ASCII characters",
    ),
    "traceparent": (
        lambda value: isinstance(value, str) and is_traceparent(value),
        "a traceparent of version 00 (W3C Trace Context)",
    ),
    "signature": (_is_signature, "a text of at most 1024 printable ASCII characters"),
}
_NOTHING = Metadata()
_EMPTY: dict[str, Any] = dict.fromkeys(_FIELDS)


def _of_mapping(found: object, version: str) -> Metadata | None:
    """Return the valid values of a parsed JSON object."""
    if not isinstance(found, dict) or found.get("version") != version:
        return None
    values: dict[str, Any] = {}
    for name in found.keys() & _FIELDS.keys():
        value = found[name]
        if name == "published_at":
            value = _parse_time(value)
        elif not _FIELDS[name][0](value):
            value = None
        if value is not None:
            values[name] = value
    return make(_EMPTY | values) if values else None


def _format_time(unix: float) -> str:
    seconds, microseconds = divmod(round(unix * 1e6), 1_000_000)
    return f"{_format_seconds(seconds)}.{microseconds:06d}Z"


@functools.lru_cache(maxsize=8)
def _format_seconds(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().removesuffix("+00:00")


def _parse_time(value: object) -> float | None:
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            # With an offset, it may be beyond the years that can be shown.
            if moment.tzinfo is not None and _is_time(moment.timestamp()):
                return moment.timestamp()
    return None


def _read_hidden(dir_fd: int, path: str, limit: int) -> bytes | None:
    """Return a hidden file, None if it is missing, not regular, or larger than the limit."""
    with contextlib.suppress(OSError, _errors.ReadError):
        fd = openat.open_beneath(dir_fd, path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return openat.read_descriptor(fd, limit, path).data
        finally:
            openat.close(fd)
    return None
