"""Read the content of a volume from the disk without mixing two contents.

A file that was read before is read again only if its signature does not prove that it is unchanged.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from sidecar import _errors
from sidecar.fs import layout, open_file, openat
from sidecar.volume.content import metadata
from sidecar.volume.content.listing import (
    ALL,
    FileListing,
    Scope,
    list_visible,
    max_names,
    open_content_dir,
    relist,
)
from sidecar.volume.content.metadata import HiddenMetadata
from sidecar.volume.content.read_state import ReadState, unchanged_content, unreliable_names
from sidecar.volume.content.scan_result import FileStates, ScanResult
from sidecar.volume.content.snapshot import Snapshot

_SET_RETRIES = 20
#: A comparison lists at most twice the previous number of names plus this many; more names are a change in any case.
_MAX_NEW_NAMES = 1000


def _no_progress() -> None:
    """Ignore the progress of a read."""


def read_file(
    dir_fd: int,
    directory: str,
    name: str,
    *,
    limit: int,
    before: ScanResult | None,
    linked: bool = True,
    on_progress: Callable[[], None] = _no_progress,
) -> ScanResult:
    """Read one file beneath an open directory. `linked` False means that the file is known not to be a link.

    `on_progress` is called repeatedly while a large file is read, and may raise to abort the read.

    Raises:
        NothingPublished: there is no such file.
        ReadError: the file cannot or must not be read.
    """
    where = os.path.join(directory, name)
    with openat.read_errors(where):
        for _ in range(_SET_RETRIES):
            generation = _generation(dir_fd, name) if linked else None
            reading = ReadState(before, on_progress, hidden=HiddenMetadata(dir_fd))
            try:
                if not _keep_large_unchanged(reading, dir_fd, name):
                    reading.read(dir_fd, name, limit, where)
            except _errors.NothingPublished:
                if generation is None or generation == _generation(dir_fd, name):
                    raise
                continue  # the target of the link was replaced and removed before it was opened
            if generation is not None and name in reading.contents:
                content = reading.contents[name]
                described = metadata.of_member(dir_fd, generation, content.metadata)
                if generation == _generation(dir_fd, name):
                    reading.contents[name] = replace(content, metadata=described)
            return _scan_result(dir_fd, generation, FileListing(), reading, single=True)
    raise _too_volatile(where)


def read_directory(
    dir_fd: int,
    directory: str,
    *,
    limit: int,
    before: ScanResult | None,
    on_progress: Callable[[], None] = _no_progress,
    scope: Scope = ALL,
    hidden: HiddenMetadata | None = None,
) -> ScanResult:
    """Read all files beneath an open directory; `on_progress` as in `read_file`, `scope` applies to loose files.

    If there is a `..data` link, the files of the active generation are read through its descriptor,
    so they belong together even if another generation is activated meanwhile.
    Files whose signature equals the one in `before` are not read again.
    A file that is not regular, leads out of the volume, or exceeds `limit` together with the files before it
    is a problem of that name only, and its last good content is used instead.
    In a generation such a file fails the read, because its files are shown together or not at all.
    `hidden` is the metadata of the volume, if the directory is an archived generation in it.

    Raises:
        NothingPublished: there is no file, or generations are replaced faster than they can be read.
        ReadError: the directory cannot be read, or a generation has lost a file.
    """
    with openat.read_errors(directory):
        for _ in range(_SET_RETRIES):
            generation = layout.active_generation(dir_fd)
            try:
                reading = ReadState(
                    before, on_progress, scope=scope, hidden=hidden or HiddenMetadata(dir_fd)
                )
                return _read_once(dir_fd, directory, generation, limit, reading)
            except OSError:
                if generation == layout.active_generation(dir_fd):
                    raise
                # The generation was removed, and another one is active.
    raise _too_volatile(directory)


def reread(
    dir_fd: int,
    directory: str,
    *,
    limit: int,
    before: ScanResult,
    names: Collection[str],
    folders: Collection[str],
    on_progress: Callable[[], None] = _no_progress,
    scope: Scope = ALL,
) -> ScanResult | None:
    """Read only the loose files that may have changed since `before`: `names`, and new entries of `folders`.

    Returns None if a full read is needed because a generation is active now.

    Raises:
        NothingPublished: no file is left.
        ReadError: the directory cannot be read.
    """
    with openat.read_errors(directory):
        if layout.active_generation(dir_fd) is not None or os.fstat(dir_fd).st_nlink == 0:
            return None
        states = before.states
        listing = FileListing(dict(states.signatures), dict(states.folders), dict(before.problems))
        rescanned = relist(
            dir_fd, listing, names, folders, max_entries=max_names(limit), scope=scope
        )
        reading = ReadState(before, on_progress, rescanned=rescanned, hidden=HiddenMetadata(dir_fd))
        _read_touched(dir_fd, directory, listing, limit, reading)
        return _scan_result(dir_fd, None, listing, reading, single=False)


def is_unchanged(
    dir_fd: int, before: ScanResult, *, quick: bool = False, scope: Scope = ALL
) -> bool:
    """Whether all signatures equal those of `before`; no file is read.

    False if signatures are not reliable: within two seconds of a change, because file system clocks are coarse.
    `quick` compares directories only, which detects added, removed and replaced files, but no rewritten ones.
    """
    states = before.states
    if states.unreliable:
        return False
    try:
        if before.snapshot.name is not None:
            return {n: _signature(dir_fd, n) for n in states.signatures} == states.signatures
        if layout.active_generation(dir_fd) != states.generation:
            return False
        if quick:
            return not changed_folders(dir_fd, before)
        with open_content_dir(dir_fd, states.generation) as fd:
            max_entries = 2 * (len(states.signatures) + len(states.folders)) + _MAX_NEW_NAMES
            scope = scope if states.generation is None else ALL
            return list_visible(fd, max_entries, scope).files == states.signatures
    except (OSError, _errors.ReadError):
        return False


def changed_folders(
    dir_fd: int, before: ScanResult, names: Collection[str] | None = None
) -> set[str]:
    """Return the directories in which an entry was added, removed or replaced since `before`.

    With `names`, only those directories are checked.

    Raises:
        OSError: the content directory cannot be read.
    """
    states = before.states
    changed: set[str] = set()
    with open_content_dir(dir_fd, states.generation) as fd:
        for name in states.folders if names is None else names:
            try:
                if _signature(fd, name or ".") != states.folders.get(name):
                    changed.add(name)
            except OSError:
                changed.add(name)
    return changed


def _read_once(
    dir_fd: int,
    directory: str,
    generation: str | None,
    limit: int,
    reading: ReadState,
) -> ScanResult:
    before = reading.before
    if generation is None and os.fstat(dir_fd).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    with open_content_dir(dir_fd, generation) as held:
        listing = list_visible(held, max_names(limit), reading.scope if generation is None else ALL)
        if generation is not None and generation != layout.active_generation(dir_fd):
            # A generation is removed after the link has left it, so this listing may be incomplete.
            raise _too_volatile(directory)
        _read(held, directory, listing, limit, reading)
        described = metadata.read_of_set(held) if generation is not None else None
    problems = {
        name: f"cannot read {os.path.join(directory, name)}: {why}"
        for name, why in listing.problems.items()
    }
    if generation is not None:
        _check_complete(directory, generation, reading, problems, before)
    elif not reading.contents and not problems:
        raise _errors.NothingPublished(
            errno.ENOENT, f"cannot read {directory}: no file has been published there"
        )
    elif before is not None:
        for name in problems.keys() & before.snapshot.keys():
            reading.contents[name] = before.snapshot.content(name)
    listing.problems = problems
    scan = _scan_result(dir_fd, generation, listing, reading, single=False)
    snapshot = scan.snapshot
    return replace(
        scan, snapshot=snapshot.with_metadata(metadata.parse(described, snapshot.version))
    )


def _read(
    dir_fd: int, directory: str, listing: FileListing, limit: int, reading: ReadState
) -> None:
    """Read the listed files that are not known yet; record unreadable ones as problems."""
    remaining = limit
    for name, signature in listing.files.items():
        remaining -= _read_one(
            dir_fd, directory, name, signature, (listing, reading, remaining, limit)
        )


def _read_touched(
    dir_fd: int, directory: str, listing: FileListing, limit: int, reading: ReadState
) -> None:
    """Reuse the contents of `before`, and read the rescanned names."""
    before, rescanned = reading.before, reading.rescanned
    if before is None or rescanned is None:
        return
    reading.contents = before.snapshot.contents()
    reading.signatures = dict(before.states.signatures)
    for name in rescanned - listing.files.keys():
        reading.contents.pop(name, None)
        reading.signatures.pop(name, None)
    problems = rescanned & listing.problems.keys()
    known = [c for name in rescanned if (c := before.snapshot.get_content(name)) is not None]
    remaining = limit - before.snapshot.size + sum(content.size for content in known)
    for name in sorted(rescanned & listing.files.keys()):
        signature = listing.files[name]
        remaining -= _read_one(
            dir_fd, directory, name, signature, (listing, reading, remaining, limit)
        )
    for name in rescanned & (reading.missing | listing.problems.keys()):
        reading.contents.pop(name, None)
        reading.signatures.pop(name, None)
    for name in problems | (rescanned & listing.problems.keys()):
        why = listing.problems[name]
        listing.problems[name] = f"cannot read {os.path.join(directory, name)}: {why}"
        if name in before.snapshot:
            reading.contents[name] = before.snapshot.content(name)
    if not reading.contents and not listing.problems:
        raise _errors.NothingPublished(
            errno.ENOENT, f"cannot read {directory}: no file has been published there"
        )


def _read_one(
    dir_fd: int,
    directory: str,
    name: str,
    signature: openat.StatSignature,
    into: tuple[FileListing, ReadState, int, int],
) -> int:
    """Read one listed file unless it is unchanged; return its size, 0 if it cannot be read."""
    listing, reading, remaining, limit = into
    known = unchanged_content(name, signature, reading.before)
    if known is not None:
        reading.keep(name, signature, known)
        return known.size
    try:
        if signature.size > remaining:
            listing.problems[name] = (
                f"its {signature.size} bytes are more than what is left of the limit of {limit}"
                " for all files together (raise max_size)"
            )
            return 0
        if reading.directory is None and signature.size > open_file.LARGE_FILE_BYTES:
            reading.directory = open_file.Directory(os.dup(dir_fd))
        return reading.read(dir_fd, name, remaining, os.path.join(directory, name))
    except _errors.NothingPublished:
        reading.missing.add(name)  # deleted between the listing and the reading
    except _errors.ReadError as error:
        listing.problems[name] = str(error).partition(": ")[2]
    return 0


def _check_complete(
    directory: str,
    generation: str,
    reading: ReadState,
    problems: Mapping[str, str],
    before: ScanResult | None,
) -> None:
    """Raise if a generation has lost files, or if files that were readable no longer are.

    The old content of one file must never be combined with new content of the others.
    """
    known = before.snapshot.keys() if before is not None else frozenset[str]()
    for name in problems.keys() & known:
        raise _errors.ReadError(errno.EIO, problems[name])
    lost = set(reading.missing)
    if before is not None and before.states.generation == generation:
        lost |= known - reading.contents.keys()
    if lost:
        raise _errors.ReadError(
            errno.ENOENT,
            f"cannot read {directory}: {generation} has lost {min(lost)}"
            " (a generation never changes; publish the set again)",
        )


def _scan_result(
    dir_fd: int,
    generation: str | None,
    listing: FileListing,
    reading: ReadState,
    *,
    single: bool,
) -> ScanResult:
    for name in reading.incomplete if generation is not None else ():
        raise _errors.ReadError(
            errno.EBUSY,
            f"cannot read {name}: it changes while it is read"
            " (a generation never changes; publish the set again)",
        )
    status = os.fstat(dir_fd)
    states = FileStates(
        (status.st_dev, status.st_ino),
        generation,
        reading.signatures,
        listing.folders,
        unreliable_names(reading),
    )
    return ScanResult(
        _snapshot(reading, single=single),
        states,
        frozenset(reading.changed_while_read),
        frozenset(reading.linked),
        listing.problems,
        frozenset(reading.incomplete),
        frozenset(reading.rescanned) if reading.rescanned is not None else None,
    )


def _snapshot(reading: ReadState, *, single: bool) -> Snapshot[None]:
    """Create the snapshot; return the previous one if nothing changed."""
    before, contents = reading.before, reading.contents
    if before is None or reading.rescanned is None:
        return Snapshot({n: contents[n] for n in sorted(contents)}, single=single, value=None)
    old = before.snapshot
    changed = {
        name: contents[name]
        for name in reading.rescanned & contents.keys()
        if old.get_content(name) is not contents[name]
    }
    gone = [name for name in reading.rescanned if name in old and name not in contents]
    return old.replaced(changed, gone) if changed or gone else old


def _too_volatile(where: str) -> _errors.NothingPublished:
    return _errors.NothingPublished(
        errno.ENOENT, f"cannot read {where}: its files come and go faster than they can be read"
    )


def _generation(dir_fd: int, name: str) -> str | None:
    """Return the generation that a file belongs to, None for a loose file."""
    link = layout.link_target(dir_fd, name)
    if link is None or not link.startswith(layout.DATA + "/"):
        return None
    return layout.active_generation(dir_fd)


def _signature(dir_fd: int, name: str) -> openat.StatSignature:
    return openat.StatSignature.of(openat.stat_beneath(dir_fd, name))


def _keep_large_unchanged(reading: ReadState, dir_fd: int, name: str) -> bool:
    """Reuse a large file if it is unchanged; return whether it was. Small files are always read and compared."""
    before = reading.before
    if before is None or not before.snapshot.content().is_large:
        return False
    now = _signature(dir_fd, name)
    known = unchanged_content(name, now, before)
    if known is not None:
        reading.keep(name, now, known)
    return known is not None
