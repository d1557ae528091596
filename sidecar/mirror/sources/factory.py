"""Create a source from an address: `etcd+https://host:2379/prefix/`, `https://host/file`, … with options.

Options follow `#` in the address, which is not sent to the server:

    https://config.example.com/app.json#into=app&token_file=/run/secrets/token
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from sidecar._errors import ConfigError
from sidecar.mirror.states import Source
from sidecar.process import config_types
from sidecar.process.redaction import redact_url

_TLS: config_types.Readers = {
    "ca_file": config_types.text,
    "cert_file": config_types.text,
    "key_file": config_types.text,
}
_HTTP: config_types.Readers = {
    **_TLS,
    "token_file": config_types.text,
    "user": config_types.text,
    "password_file": config_types.text,
    "timeout": config_types.seconds,
    "max_bytes": config_types.some_size,
}


class _Kind(NamedTuple):
    module: str
    name: str
    options: config_types.Readers
    takes_query: bool = False
    """Whether what follows `?` in an address belongs to it; elsewhere it would be dropped, and with it what it meant."""
    extra: str = ""
    """What must be installed beside the package, as `pip` names it."""


_POLLING = {**_HTTP, "interval": config_types.seconds}
_WEB = _Kind("web", "WebSource", _POLLING, takes_query=True)
_ETCD = _Kind("etcd", "EtcdSource", {**_HTTP, "recheck": config_types.seconds})
_KUBE = _Kind(
    "kube",
    "KubeSource",
    {
        **_HTTP,
        "server": config_types.text,
        "folder_annotation": config_types.text,
        "folder": config_types.text,
        "unique_names": config_types.truth,
        "url_keys": config_types.texts,
        "url_interval": config_types.seconds,
        "url_ca_file": config_types.text,
        "recheck": config_types.seconds,
    },
    takes_query=True,
)
_GIT = _Kind(
    "git",
    "GitSource",
    {
        **_TLS,
        "interval": config_types.seconds,
        "timeout": config_types.seconds,
        "max_bytes": config_types.some_size,
        "directory": config_types.text,
        "paths": config_types.texts,
        "submodules": config_types.text,
        "fast_forward_only": config_types.truth,
        "allowed_signers_file": config_types.text,
        "user": config_types.text,
        "password_file": config_types.text,
        "credentials_file": config_types.text,
        "askpass_url": config_types.text,
        "github_app_id": config_types.text,
        "github_app_installation_id": config_types.text,
        "github_app_key_file": config_types.text,
        "github_api_url": config_types.text,
        "cookie_file": config_types.text,
        "ssh_key_file": config_types.text,
        "known_hosts_file": config_types.text,
        "git_config_file": config_types.text,
    },
    takes_query=True,
)
_REDIS = _Kind(
    "redis",
    "RedisSource",
    {
        **_TLS,
        "user": config_types.text,
        "password_file": config_types.text,
        "timeout": config_types.seconds,
        "ping": config_types.seconds,
        "recheck": config_types.seconds,
        "max_bytes": config_types.some_size,
    },
)
_NATS = _Kind(
    "nats",
    "NatsSource",
    {
        **_TLS,
        "user": config_types.text,
        "password_file": config_types.text,
        "token_file": config_types.text,
        "creds_file": config_types.text,
        "nkey_file": config_types.text,
        "timeout": config_types.seconds,
        "ping": config_types.seconds,
        "recheck": config_types.seconds,
        "max_bytes": config_types.some_size,
    },
    extra="nats",
)
_OBJECTS = _Kind(
    "objects",
    "ObjectsSource",
    {
        "manifest": config_types.text,
        "endpoint": config_types.text,
        "region": config_types.text,
        "account": config_types.text,
        "credentials_file": config_types.text,
        "anonymous": config_types.truth,
        "ca_file": config_types.text,
        "interval": config_types.seconds,
        "timeout": config_types.seconds,
        "max_bytes": config_types.some_size,
    },
    takes_query=True,  # it says where a signature belongs
    extra="objects",
)
_MQTT = _Kind(
    "mqtt",
    "MqttSource",
    {
        **_TLS,
        "user": config_types.text,
        "password_file": config_types.text,
        "timeout": config_types.seconds,
        "settle": config_types.seconds,
        "ping": config_types.seconds,
        "recheck": config_types.seconds,
        "max_bytes": config_types.some_size,
    },
    extra="mqtt",
)
_WAITING = {**_HTTP, "wait": config_types.seconds}
_VAULT = _Kind("vault", "VaultSource", {**_POLLING, "namespace": config_types.text})
_CONSUL = _Kind("consul", "ConsulSource", _WAITING)
_READER = _Kind("reader", "ReaderSource", _WAITING)
_KINDS: Mapping[str, _Kind] = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "mqtt": _MQTT,
    "mqtts": _MQTT,
    "s3": _OBJECTS,
    "gs": _OBJECTS,
    "az": _OBJECTS,
    "nats": _NATS,
    "nats+tls": _NATS,
    "vault+http": _VAULT,
    "vault+https": _VAULT,
    "consul+http": _CONSUL,
    "consul+https": _CONSUL,
    "sidecar+http": _READER,
    "sidecar+https": _READER,
    "git+http": _GIT,
    "git+https": _GIT,
    "git+ssh": _GIT,
    "kube": _KUBE,
    "http": _WEB,
    "https": _WEB,
    "etcd+http": _ETCD,
    "etcd+https": _ETCD,
}
FORMS = (
    "https://host/file, git+https://host/repo.git?ref=main, kube://namespace/configmaps?labelSelector=…,"
    " etcd+https://host:2379/prefix/, consul+https://host:8501/prefix/, vault+https://host:8200/mount/path,"
    " redis://host:6379/db/key, nats://host:4222/bucket, mqtt://host:1883/prefix/, s3://bucket/prefix, sidecar+https://host:8081/"
)


class Placed(NamedTuple):
    """A source, and the directory on the volume for its files."""

    source: Source
    into: str


def make_source(address: str) -> Placed:
    """Create the source of an address, and return it with the value of its option `into`.

    Raises:
        ConfigError: an unknown scheme or option, an invalid value, or a package that is not installed.

    >>> make_source("https://config.example.com/app.json#into=app")
    Placed(source=<WebSource https://config.example.com/app.json>, into='app')
    """
    bare, _, fragment = address.partition("#")
    scheme = urlsplit(bare).scheme
    if scheme not in _KINDS:
        raise ConfigError(f"{redact_url(bare)!r} is no source: write {FORMS}")
    kind = _KINDS[scheme]
    where = f"the source {redact_url(bare)}"
    if "?" in bare and not kind.takes_query:
        raise ConfigError(f"{where}: options follow #, not ?")
    pairs = parse_qsl(fragment, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ConfigError(f"{where}: an option is given twice")
    made: dict[str, Any] = config_types.read(
        given, {**kind.options, "into": config_types.text}, where
    )
    into = made.pop("into", "")
    try:
        module = importlib.import_module(f"sidecar.mirror.sources.{kind.module}")
    except ImportError as error:
        if not kind.extra:
            raise
        raise ConfigError(
            f"{where} needs a package: pip install 'podsidecar[{kind.extra}]' ({error})"
        ) from error
    return Placed(getattr(module, kind.name)(bare, **made), into)
