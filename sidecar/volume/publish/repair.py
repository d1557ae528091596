"""Repair the active set at the start of a writer, and log what cannot be repaired.

Blocking. The caller has opened and locked the directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sidecar import _errors
from sidecar.fs import atomic_writer, dirs, layout, oserrors, permissions, visible_links
from sidecar.fs.layout import DATA, GENERATION
from sidecar.volume.content import loader
from sidecar.volume.content.snapshot import Snapshot
from sidecar.volume.publish import history
from sidecar.volume.publish.models import VolumeConfig

_log = logging.getLogger(__name__)

_MAX_NAMES_SHOWN = 5


def restore(fd: int, settings: VolumeConfig) -> None:
    """If `..data` is damaged, activate the newest complete generation again, and log it.

    A link to a generation of another publisher, such as kubelet, is not changed.
    """
    damage = atomic_writer.damage(fd)
    if damage is None or not _is_ours(fd, damage):
        return
    for entry in sorted(_generations(fd), key=atomic_writer.timestamp_of, reverse=True):
        old = _read(fd, entry, settings)
        if old is None:
            continue
        with logged(settings):
            _activate(fd, settings, entry, list(old))
            _log.warning(
                "%s: %s %s; activated %s again",
                settings.path,
                DATA,
                damage,
                entry,
                extra={"event": "set.repaired"},
            )
        return
    _log.warning(
        "%s: %s %s, and no whole generation is there (publish the set again)",
        settings.path,
        DATA,
        damage,
        extra={"event": "set.broken"},
    )


@contextmanager
def logged(settings: VolumeConfig) -> Iterator[None]:
    """Log an error of a repair, because it must not prevent the writer from starting."""
    try:
        yield
    except OSError as error:
        _log.warning(
            "cannot repair the set in %s: %s",
            settings.path,
            oserrors.hint(error),
            extra={"event": "set.broken"},
        )


def log_loose_files(fd: int, settings: VolumeConfig, names: Collection[str]) -> None:
    """Log loose files beside a set, which readers ignore, and whether other users cannot follow its links."""
    entries = visible_links.top_level_names(names)
    with contextlib.suppress(OSError):
        beside = [
            entry for entry in visible_links.loose_names_beside_set(fd) if entry not in entries
        ]
        if beside:
            _log.warning(
                "%s holds a set, and readers ignore the files beside it: %s"
                " (publish them with the set, or remove them)",
                settings.path,
                format_names(beside),
                extra={"event": "set.files_beside"},
            )
        if permissions.blocks_foreign_links(os.fstat(fd)):
            _log.warning(
                "%s has the sticky bit and is writable for all: there the kernel follows the links of a set"
                " for user %d alone (fs.protected_symlinks); readers of sidecar see it, other programs"
                " of other users do not (publish into a directory in it, or take the bit away)",
                settings.path,
                os.geteuid(),
            )


def log_blocked(settings: VolumeConfig, blocked: dict[str, OSError]) -> None:
    """Log the names of the active set that cannot be made visible, and why."""
    for entry, error in blocked.items():
        _log.warning(
            "%s belongs to the active set and is not shown: %s",
            settings.display_path(entry),
            oserrors.hint(error),
        )


def format_names(names: Collection[str]) -> str:
    """Return the first names, for a message."""
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(sorted(names)[:_MAX_NAMES_SHOWN]) + more


def _activate(fd: int, settings: VolumeConfig, entry: str, names: Collection[str]) -> None:
    links = visible_links.LinkUpdate(
        fd, entry, names, settings.path, optional=visible_links.top_level_names(names)
    )
    try:
        links.swap_data()
        links.apply()
    finally:
        links.discard()


def _is_ours(fd: int, damage: str) -> bool:
    target = layout.link_target(fd, DATA)
    return target is None or target.startswith(GENERATION) or damage == "leads out of the volume"


def _generations(fd: int) -> list[str]:
    return [entry for entry in os.listdir(fd) if entry.startswith(GENERATION)]


def _read(fd: int, entry: str, settings: VolumeConfig) -> Snapshot[None] | None:
    """Return the content of a generation, None if it is incomplete or does not match the version in its name."""
    where, limit = settings.display_path(entry), settings.max_size
    with contextlib.suppress(OSError, _errors.ReadError), dirs.open_subdir(fd, entry) as generation:
        scan = loader.read_directory(generation, where, limit=limit, before=None)
        if not scan.problems and scan.require_complete().version == history.version_in(entry):
            return scan.require_complete()
    return None
