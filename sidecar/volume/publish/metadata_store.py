"""Store the metadata of a publication with its content; see `sidecar.volume.content.metadata`.

Blocking. The caller has opened and locked the directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.parse
from typing import Any

import orjson

from sidecar.fs import atomic, dirs, layout, openat, oserrors, xattrs
from sidecar.process.logging import rate_limited
from sidecar.volume.content import metadata as stored
from sidecar.volume.content.metadata import HiddenMetadata, Metadata
from sidecar.volume.publish import history
from sidecar.volume.publish.models import VolumeConfig

#: New hidden files after which those of files that no longer exist are removed.
_SWEEP_INTERVAL_FILES = 256
_MIN_KEPT_VERSIONS = 2

_log = rate_limited(logging.getLogger(__name__), 60.0)


class MetadataStore:
    """Writes metadata as extended attributes, or as hidden files where the volume does not take them."""

    def __init__(self, settings: VolumeConfig) -> None:
        self._settings = settings
        self._new_files = 0

    def of_entry(
        self, fd: int, entry: str, name: str, version: str, hidden: HiddenMetadata | None = None
    ) -> Metadata | None:
        """Return the metadata of a file with the content `version` at the path `entry`, None if there is none.

        `entry` is the file `name` itself, or one in its history.
        """
        attribute = None
        with contextlib.suppress(OSError):
            file = openat.open_beneath(fd, entry)
            try:
                attribute = xattrs.read(file)
            finally:
                openat.close(file)
        return stored.of_attribute(attribute, version, name, hidden or HiddenMetadata(fd))

    def attach(self, fd: int, file: int, name: str, version: str, metadata: Metadata) -> None:
        """Store the metadata of an open file that is not visible yet.

        Raises:
            OSError: as `write_hidden`.
        """
        if not xattrs.write(file, metadata.to_json(version)):
            self.write_hidden(fd, name, version, metadata)

    def write_hidden(self, fd: int, name: str, version: str, metadata: Metadata) -> None:
        """Write the metadata of a file beside it, before its content becomes visible.

        Without a signature it is optional: if it cannot be written, that is logged.

        Raises:
            OSError: the disk is full, or metadata with a signature cannot be written.
        """
        try:
            self._write_hidden(fd, name, version, metadata)
        except OSError as error:
            if metadata.signature is not None or error.errno in oserrors.NO_SPACE_ERRNOS:
                raise
            where = self._settings.display_path(name)
            _log.warning(
                "cannot store the metadata of %s: %s",
                where,
                oserrors.hint(error),
                extra={"event": "metadata.not_stored"},
            )

    def attach_to_generation(self, generation: int, version: str, metadata: Metadata) -> None:
        """Store the metadata of a set in the directory of its generation, which is not visible yet.

        Raises:
            OSError: the metadata cannot be written.
        """
        data = metadata.to_json(version)
        if xattrs.write(generation, data):
            return
        staged = atomic.TempFile(generation, short_lived=True)
        try:
            staged.write(data)
            self._finalize(staged)
            staged.rename_into(layout.SET_METADATA, generation)
        finally:
            staged.discard()

    def forget(self, fd: int, name: str) -> None:
        """Remove the hidden file of a file. Never raises."""
        with contextlib.suppress(OSError):
            os.unlink(layout.metadata_of(name), dir_fd=fd)

    def sweep(self, fd: int) -> None:
        """Remove the hidden files of files that neither exist nor have a history. Never raises."""
        self._new_files = 0
        with contextlib.suppress(OSError), dirs.open_subdir(fd, layout.METADATA) as folder:
            for entry in os.listdir(folder):
                if not self._is_needed(fd, entry):
                    dirs.rmtree(folder, entry)

    def _is_needed(self, fd: int, entry: str) -> bool:
        quoted = entry.removesuffix(".json")
        if quoted == entry:
            return False
        name = urllib.parse.unquote(quoted)
        if layout.metadata_of(name) != f"{layout.METADATA}/{entry}":
            # The name of the file is hashed because it is long.
            name = stored.hidden_name(fd, f"{layout.METADATA}/{entry}") or ""
        return bool(name) and (_exists(fd, name) or bool(history.has_version(fd, name)))

    def _write_hidden(self, fd: int, name: str, version: str, metadata: Metadata) -> None:
        target = layout.metadata_of(name).rpartition("/")[2]
        known = HiddenMetadata(fd).versions(name)
        if not known:
            self._new_files += 1
            if self._new_files > _SWEEP_INTERVAL_FILES:
                self.sweep(fd)
        known.pop(version, None)
        known[version] = {"version": version, **metadata.to_dict()}
        for oldest in list(known)[: -max(self._settings.keep, _MIN_KEPT_VERSIONS)]:
            del known[oldest]
        while len(data := _encode(name, known)) > stored.MAX_HIDDEN_FILE_BYTES and len(known) > 1:
            del known[next(iter(known))]
        is_new = not _exists(fd, layout.METADATA)
        with dirs.open_subdir(fd, layout.METADATA, make=True, inherit_access=True) as folder:
            staged = atomic.TempFile(folder, short_lived=True)
            try:
                staged.write(data)
                self._finalize(staged)
                staged.rename_into(target, folder)
            finally:
                staged.discard()
            self._settings.sync_directory(folder)
        if is_new:
            self._settings.sync_directory(fd)

    def _finalize(self, staged: atomic.TempFile) -> None:
        settings = self._settings
        staged.finalize(settings.mode, settings.group, durable=settings.durable)


def _encode(name: str, versions: dict[str, Any]) -> bytes:
    return orjson.dumps({"name": name, "versions": versions})


def _exists(fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        openat.stat_beneath(fd, path)
        return True
    return False
