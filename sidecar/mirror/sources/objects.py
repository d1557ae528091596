"""Objects of S3, Google Cloud Storage, Azure Blob Storage, and of what speaks as they do, by obstore.

With a manifest they are a set: it names the files and their digests, and is written last. Without one each object is for itself,
for a list is no snapshot.
"""

from __future__ import annotations

import asyncio
import configparser
import hashlib
import os
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import obstore
import obstore.exceptions
import obstore.store
import orjson

from sidecar._errors import ConfigError
from sidecar.mirror.states import Alive, Blob, Reference, SourceUnavailable, State, Unit
from sidecar.process import arguments, metrics
from sidecar.process.secret_file import read_secret
from sidecar.volume.content import snapshot

_FETCHED_AT_ONCE = 16
_MOST_OBJECTS = 100_000
_STATUS = re.compile(r"status code: (\d{3})")
_REQUEST = re.compile(r"Error performing [A-Z]+ \S+ in \S+ - ")
"""In a message of obstore; the address may hold a signature, and the time makes each message another one."""
_SHA_256 = re.compile(r"[0-9a-f]{64}")
_ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}


class _Object(NamedTuple):
    """Where a file is, and what changes with its content: the SHA-256 in a manifest, the ETag in a list."""

    path: str
    version: str
    is_empty: bool = False
    """In a list: then it may be the mark of a directory, which has lost the slash at its end."""


class _Listing(NamedTuple):
    """The files that are there, by their names."""

    objects: Mapping[str, _Object]
    token: str
    order: int | None = None
    changed_at: float | None = None


class ObjectsSource:
    """Follow objects with a prefix: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`.

    Asked at an interval, spread by a tenth: for the manifest, by its ETag, or for a list.

    Args:
        manifest: the object that names the files of the set: `{"files": {"NAME": "SHA-256"}, "order": 7}`.
            A file may be `{"object": "OTHER", "sha256": "…"}`. `order`, if given, grows with each version.
        endpoint: the address of another server than the cloud's own.
        credentials_file: an AWS credentials file, a key of a service account of Google, the account key of Azure,
            or its SAS token. Read again whenever a request has failed. Without one it is what the environment has
            (variables, workload identity, metadata service).
        anonymous: send no credentials.
        account: the storage account of Azure.
        max_bytes: limit of the objects that have changed together.

    >>> ObjectsSource("s3://config/app/", manifest="manifest.json", region="eu-central-1")
    <ObjectsSource s3://config/app/>
    """

    def __init__(
        self,
        url: str,
        *,
        manifest: str | None = None,
        endpoint: str | None = None,
        region: str | None = None,
        account: str | None = None,
        credentials_file: str | None = None,
        anonymous: bool = False,
        ca_file: str | None = None,
        interval: float = 10.0,
        timeout: float = 10.0,
        max_bytes: int = 64 << 20,
    ) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if "@" in parts.netloc or parts.query:
            raise ConfigError(f"{self.name}: put credentials into a file: #credentials_file=FILE")
        if not parts.netloc:
            raise ConfigError(f"{self.name!r} names no bucket: write {parts.scheme}://BUCKET/PREFIX")  # fmt: skip
        if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"{self.name}: endpoint: write it like https://host:9000")
        if anonymous and credentials_file is not None:
            raise ConfigError(f"{self.name}: give one of credentials_file and anonymous")
        self._scheme = parts.scheme
        self._manifest, self._credentials_file, self._ca_file = manifest, credentials_file, ca_file
        self._config: dict[str, Any] = {}
        if endpoint is not None:
            self._config[_ENDPOINTS[parts.scheme]] = endpoint
        if parts.scheme == "s3":
            self._config["region"] = region or os.environ.get("AWS_REGION") or "us-east-1"
        if account is not None:
            self._config["account_name"] = account
        if anonymous:
            self._config["skip_signature"] = True
        self._is_http = (endpoint or "").startswith("http:")
        self._timeout = arguments.check_seconds("timeout", timeout, zero=False)
        self._pause = arguments.check_seconds("interval", interval, zero=False)
        self.interval: float | None = interval + timeout
        self._max_bytes = max_bytes
        self._opened: Any = None
        self._etag = ""
        """That of the manifest that was read last."""

    def __repr__(self) -> str:
        return f"<ObjectsSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield what is there, and again whenever it has changed."""
        token = since
        known: Mapping[str, _Object] = {}
        marks: set[str] = set()
        while True:
            found = await (self._list() if self._manifest is None else self._read_manifest(token))
            if found is None or found.token == token:
                yield Alive(token or "")
            else:
                new = [name for name, one in found.objects.items() if known.get(name) != one]
                contents: dict[str, bytes | None] = {}
                for start in range(0, len(new), _FETCHED_AT_ONCE):
                    contents |= await self._fetch_all(found, new[start : start + _FETCHED_AT_ONCE])
                    if sum(len(one or b"") for one in contents.values()) > self._max_bytes:
                        raise self._failed("what has changed", ValueError(f"it is larger than {self._max_bytes} bytes (raise max_bytes)"))  # fmt: skip
                    yield Alive(token or "")
                marks = marks - set(new) | {name for name, one in contents.items() if one is None}
                yield self._state(found, contents, marks)
                token, known = found.token, found.objects
            await asyncio.sleep(self._pause * random.uniform(0.9, 1.0))  # noqa: S311

    def _state(
        self, found: _Listing, contents: Mapping[str, bytes | None], marks: set[str]
    ) -> State:
        """Make a state of what was found and fetched; `marks` are those of directories."""
        files: dict[str, Blob | None] = dict.fromkeys(found.objects.keys() - marks)
        files |= {name: data for name, data in contents.items() if data is not None}
        if self._manifest is None:
            units = {
                name: Unit(found.objects[name].version, None if one is None else {name: one})
                for name, one in files.items()
            }
            return State(units, found.token)
        blobs = {
            name: self._refer(found.objects[name]) if one is None else one
            for name, one in files.items()
        }
        unit = {"": Unit(found.token, blobs)} if blobs else {}
        return State(unit, found.token, found.order, found.changed_at)

    def _refer(self, one: _Object) -> Reference:
        async def fetch() -> bytes:
            return await self._fetch(one) or b""

        return Reference(one.version[: snapshot.VERSION_DIGITS], fetch)

    async def _list(self) -> _Listing:
        """Read the names and ETags of all objects: what nobody changes meanwhile is complete."""
        found: dict[str, _Object] = {}
        try:
            async with asyncio.timeout(self._timeout + self._pause):
                async for page in obstore.list(self._store()):
                    for one in page:
                        path = one["path"]
                        etag = one["e_tag"] or f"{one['last_modified']} {one['size']}"
                        found[path] = _Object(path, etag, one["size"] == 0)
                    _check(
                        len(found) <= _MOST_OBJECTS, f"there are more than {_MOST_OBJECTS} objects"
                    )
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._failed("the list", error) from None
        return _Listing(found, hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest())

    async def _read_manifest(self, token: str | None) -> _Listing | None:
        """Return what the manifest names; None if it has not changed."""
        path = self._manifest or ""
        condition = {"if_none_match": token} if token is not None and token == self._etag else {}
        try:
            data, meta = await self._get(path, condition)
            objects, order = _parse(data)
        except obstore.exceptions.NotModifiedError:
            return None
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._failed(path, error) from None
        self._etag = meta["e_tag"] or hashlib.sha256(data).hexdigest()
        changed_at = meta["last_modified"].timestamp() if token is not None else None
        return _Listing(objects, self._etag, order, changed_at)

    async def _fetch_all(self, found: _Listing, names: Sequence[str]) -> dict[str, bytes | None]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(self._fetch(found.objects[name])) for name in names
                }
        except* SourceUnavailable as errors:
            raise errors.exceptions[0] from None
        return {name: task.result() for name, task in tasks.items()}

    async def _fetch(self, one: _Object) -> bytes | None:
        """Return an object, which must be the one that was told of; None for the mark of a directory."""
        is_digest = self._manifest is not None
        condition = {} if is_digest or " " in one.version else {"if_match": one.version}
        try:
            data, _ = await self._get(one.path, condition)
            is_told = not is_digest or hashlib.sha256(data).hexdigest() == one.version
            _check(is_told, "it has not the digest that the manifest says")
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and one.is_empty:
                return None
            raise self._failed(one.path, error) from None
        return data

    async def _get(self, path: str, options: Mapping[str, str]) -> tuple[bytes, Mapping[str, Any]]:
        async with asyncio.timeout(self._timeout):
            asked: Any = dict(options)
            answer = await obstore.get_async(self._store(), path, options=asked)
            _check(
                answer.meta["size"] <= self._max_bytes,
                f"it is larger than {self._max_bytes} bytes (raise max_bytes)",
            )
            data = bytes(await answer.bytes_async())
        metrics.MIRROR_RECEIVED_BYTES_TOTAL.inc(len(data))
        meta: Mapping[str, Any] = answer.meta
        return data, meta

    def _store(self) -> Any:
        """Return the store, made with the credentials as they are now if it is not there yet."""
        if self._opened is None:
            client: dict[str, Any] = {
                "timeout": timedelta(seconds=self._timeout),
                "allow_http": self._is_http,
            }
            if self._ca_file is not None:
                with open(self._ca_file, "rb") as file:
                    client["root_certificate"] = file.read()
            make: Any = obstore.store.from_url
            # The runner tries again, with its pauses.
            self._opened = make(
                self.name,
                config={**self._config, **self._credentials()},
                client_options=client,
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=self._timeout)},
            )
        return self._opened

    def _credentials(self) -> dict[str, str]:
        """Return what the file has. Raises `OSError` or `ValueError`, which show nothing of it."""
        path = self._credentials_file
        if path is None:
            return {}
        if self._scheme == "gs":
            return {"service_account": path}
        if self._scheme == "az":
            secret = read_secret(path)
            return {"sas_key" if "sig=" in secret else "account_key": secret}
        found = configparser.RawConfigParser()
        try:
            with open(path, encoding="utf-8") as file:
                found.read_file(file)
            section = found["default"]
            made = {name: section[f"aws_{name}"] for name in ("access_key_id", "secret_access_key")}
            if "aws_session_token" in section:
                made["session_token"] = section["aws_session_token"]
        except (configparser.Error, KeyError, UnicodeDecodeError):
            raise ValueError(f"{path} is no AWS credentials file with a section [default]") from None  # fmt: skip
        return made

    def _failed(self, what: str, error: Exception) -> SourceUnavailable:
        self._opened = None
        if isinstance(error, TimeoutError):
            said = f"no answer within {self._timeout:g} s (is it stuck?)"
        elif isinstance(error, OSError) and error.strerror:
            said = f"{error.filename}: {error.strerror}"
        else:
            said = _REQUEST.sub("", str(error).partition("\n")[0])
        status = _STATUS.search(said)
        is_busy = status is not None and status[1] in ("429", "500", "502", "503", "504")
        return SourceUnavailable(f"cannot read {what} of {self.name}: {said}", busy=is_busy)


def _parse(data: bytes) -> tuple[Mapping[str, _Object], int | None]:
    """Return the files and the order of a manifest. Raises `ValueError`."""
    try:
        found = orjson.loads(data)
        objects = {}
        for name, file in found["files"].items():
            told = {"object": name, "sha256": file} if isinstance(file, str) else file
            _check(isinstance(told["object"], str) and _SHA_256.fullmatch(told["sha256"]), name)
            objects[name] = _Object(told["object"], told["sha256"])
        order = found.get("order")
        _check(order is None or type(order) is int, "order")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError('it is no manifest: {"files": {"NAME": "SHA-256 in hex"}} is wanted') from None  # fmt: skip
    return objects, order


def _check(holds: object, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
