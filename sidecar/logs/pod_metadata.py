"""Names and labels of the Pod from the downward API, without access to the API server and without RBAC.

    volumes:
      - name: podinfo
        downwardAPI:
          items:
            - {path: labels, fieldRef: {fieldPath: metadata.labels}}
            - {path: namespace, fieldRef: {fieldPath: metadata.namespace}}

The volume changes while the Pod runs (labels can be edited), variables do not:
https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
Files therefore override variables, and are checked again, at most once a second.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sidecar.fs import openat
from sidecar.logs.records import Record
from sidecar.process.logging import rate_limited

DIRECTORY = "/etc/podinfo"
_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_MAX_FILE_BYTES = 1 << 20

# Name of the label → file names or variables that may contain it.
_NAMES: Mapping[str, Sequence[str]] = {
    "namespace": ("namespace", "pod_namespace"),
    "pod": ("name", "pod", "pod_name"),
    "container": ("container", "container_name"),
    "node": ("node", "nodename", "node_name"),
    "pod_uid": ("uid", "pod_uid"),
    "pod_ip": ("ip", "podip", "pod_ip"),
    "service_account": ("serviceaccount", "service_account", "pod_service_account"),
}
_VARIABLES: Mapping[str, Sequence[str]] = {
    "namespace": ("POD_NAMESPACE",),
    "pod": ("POD_NAME",),
    "container": ("CONTAINER_NAME",),
    "node": ("NODE_NAME",),
    "pod_uid": ("POD_UID",),
    "pod_ip": ("POD_IP",),
    "service_account": ("POD_SERVICE_ACCOUNT",),
}
_LINE = re.compile(r'([^=\s]+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

_log = rate_limited(logging.getLogger(__name__), 60.0)


class PodMetadata:
    """A stage that adds the labels of the Pod to each record.

    `namespace`, `pod`, `container`, `node`, `pod_uid`, `pod_ip` and `service_account`, as far as they are known,
    and the labels of the Pod under their own names. `annotations` lists the annotations to add as well.

    >>> stage = PodMetadata("/nonexistent", environ={"POD_NAME": "web-0"})
    >>> stage(Record(b"hello")).labels["pod"]
    'web-0'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = DIRECTORY,
        *,
        annotations: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        recheck: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = os.fspath(directory)
        self._annotations = tuple(annotations)
        self._environ = os.environ if environ is None else environ
        self._recheck = recheck
        self._clock = clock
        self._signature: object = None
        self._labels: Mapping[str, str] = MappingProxyType({})
        self._next_refresh_at = float("-inf")

    def __repr__(self) -> str:
        return f"<PodMetadata {self._directory} {dict(self._labels)}>"

    def __call__(self, record: Record) -> Record:
        """Add the labels to those of the record."""
        own = record.labels
        record.labels = MappingProxyType({**self.labels, **own}) if own else self.labels
        return record

    @property
    def labels(self) -> Mapping[str, str]:
        """The present labels: a new mapping after each change, the same one otherwise."""
        now = self._clock()
        if now >= self._next_refresh_at:
            self._next_refresh_at = now + self._recheck
            self._refresh()
        return self._labels

    def _refresh(self) -> None:
        signature = self._stat()
        if signature == self._signature and self._labels:
            return
        try:
            found = {**self._read_variables(), **self._read_files()}
        except OSError as error:
            # During an update, or unreadable: keep the known labels.
            _log.warning("cannot read the Pod's labels in %s: %s", self._directory, error)
            if self._labels:
                return
            found = self._read_variables()
        self._signature = signature
        if found != self._labels:
            self._labels = MappingProxyType(found)

    def _stat(self) -> object:
        """Return the target of the link that kubelet replaces; for other files the result of `stat`."""
        try:
            return os.readlink(os.path.join(self._directory, "..data"))
        except OSError:
            pass
        try:
            with os.scandir(self._directory) as entries:
                return sorted(
                    (entry.name, (state := entry.stat()).st_mtime_ns, state.st_ino, state.st_size)
                    for entry in entries
                )
        except OSError:
            return None

    def _read_files(self) -> dict[str, str]:
        try:
            names = {one.lower(): one for one in os.listdir(self._directory) if one[0] != "."}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found: dict[str, str] = {}
        if "labels" in names:
            found |= parse_quoted(self._read(names["labels"]))
        if self._annotations and "annotations" in names:
            all_of_them = parse_quoted(self._read(names["annotations"]))
            found |= {one: all_of_them[one] for one in self._annotations if one in all_of_them}
        for label, candidates in _NAMES.items():
            name = next((names[one] for one in candidates if one in names), None)
            if name is not None:
                found[label] = self._read(name).strip()
        return found

    def _read_variables(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if not {"POD_NAME", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST"} & set(self._environ):
            return found  # not in a Pod: NODE_NAME may have another meaning
        for label, candidates in _VARIABLES.items():
            value = next((self._environ[one] for one in candidates if self._environ.get(one)), None)
            if value is not None:
                found[label] = value
        if "KUBERNETES_SERVICE_HOST" in self._environ:
            if "pod" not in found and self._environ.get("HOSTNAME"):
                found["pod"] = self._environ["HOSTNAME"]
            if "namespace" not in found and os.path.exists(_NAMESPACE):
                found["namespace"] = _read_file(_NAMESPACE).strip()
        return found

    def _read(self, name: str) -> str:
        return _read_file(os.path.join(self._directory, name))


def parse_quoted(text: str) -> dict[str, str]:
    r"""Parse labels and annotations in the format of the downward API: `name="value"`, escaped as in Go.

    >>> parse_quoted('app="web"\nnote="two\\nlines"\n')
    {'app': 'web', 'note': 'two\nlines'}
    """
    return {name: _ESCAPE.sub(_unescaped, value) for name, value in _LINE.findall(text)}


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else "\ufffd"
    if code[0].isdigit():
        return chr(int(code, 8))
    return _SIMPLE.get(code, code)


def _read_file(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return openat.read_descriptor(fd, _MAX_FILE_BYTES, path).data.decode("utf-8", "replace")
    finally:
        os.close(fd)
