"""Activate a generation that has been built, completely or not at all.

Blocking. The caller has opened and locked the directory.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from sidecar import _errors
from sidecar.fs import atomic, atomic_writer, dirs, layout, oserrors, visible_links
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.publish import history, models, repair, replaced
from sidecar.volume.publish.models import VolumeConfig


def activate(
    fd: int,
    settings: VolumeConfig,
    new: str,
    names: Collection[str],
    version: str,
    *,
    optional: Collection[str] = (),
    before: ScanResult | None = None,
    dry_run: bool = False,
) -> str | None:
    """Rename the generation `new` to its final name, activate it, update the visible links, and sync.

    The links of `optional` entries may stay missing.
    Replaced content is archived, including the generation `before` if another publisher created it.
    Returns the name of the generation. A dry run checks everything, changes nothing and returns None.

    Raises:
        PublishError, OSError: nothing was published; all changes were undone.
        PublishUncertain: the set is active, but perhaps not durable, or could not be undone.
    """
    # The clock may have been set back, but the order of generations must be kept.
    stamp = max(time.time_ns(), atomic_writer.timestamp_of(layout.active_generation(fd) or "") + 1)
    name = layout.GENERATION + history.entry_name(stamp, version)
    with _name_in_error(settings):
        links = visible_links.LinkUpdate(fd, name, names, settings.path, optional=optional)
    try:
        if dry_run:
            return None
        with replaced.archive_generation(fd, settings, before) as archive_before:
            _swap_data(fd, settings, new, name, version=version, links=links)
            _apply_links(fd, settings, name, version, links)
            archive_before(name)
    finally:
        links.discard()
    repair.log_blocked(settings, links.blocked)
    return name


def check_conflicts(
    fd: int, settings: VolumeConfig, names: Collection[str], optional: Collection[str]
) -> None:
    """Raise the link conflicts that `activate` would meet, without creating anything: for a full volume."""
    with _name_in_error(settings):
        visible_links.check_conflicts(fd, names, settings.path, optional)


def _swap_data(
    fd: int,
    settings: VolumeConfig,
    new: str,
    name: str,
    *,
    version: str,
    links: visible_links.LinkUpdate,
) -> None:
    try:
        atomic.move(fd, new, fd, name)
        # The generation must be durable before the link that points to it.
        settings.sync_directory(fd)
        links.swap_data()
    except OSError as error:
        # On NFS a rename may have happened although it failed: rename(2), BUGS.
        switched = False
        with contextlib.suppress(OSError):
            switched = layout.active_generation(fd) == name
        if not switched:
            dirs.rmtree(fd, name)
            raise
        raise models.uncertain(settings.path, version, error) from error


def _apply_links(
    fd: int, settings: VolumeConfig, name: str, version: str, links: visible_links.LinkUpdate
) -> None:
    """Apply the visible links; undo everything if one of them fails."""
    try:
        links.apply(partial(replaced.archive_loose_files, fd, settings))
    except OSError as error:
        if links.undo():
            dirs.rmtree(fd, name)
            with _name_in_error(settings):
                raise
        raise models.uncertain(
            settings.path, version, error, failed="showing all its names"
        ) from error
    try:
        settings.sync_directory(fd)
    except OSError as error:
        raise models.uncertain(settings.path, version, error) from error


@contextmanager
def _name_in_error(settings: VolumeConfig) -> Iterator[None]:
    """Add the name that caused an `OSError` to its message, except on a full volume, which concerns all names."""
    try:
        yield
    except OSError as error:
        entry = error.filename
        if not isinstance(entry, str) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = settings.display_path(entry)
        if isinstance(error, IsADirectoryError):
            raise _errors.NameTaken(f"cannot publish {where}: {oserrors.hint(error)}") from error
        with oserrors.map_publish_errors(f"publish {where}"):
            raise
