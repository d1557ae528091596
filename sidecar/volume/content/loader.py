"""Read what a volume holds, from the disk, without ever mixing two contents.

What was read before is read again only where its signature cannot prove that it is still the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping

from sidecar import _errors
from sidecar.fs import layout, open_file, openat
from sidecar.volume.content.listing import (
    ALL,
    Listing,
    Scope,
    list_again,
    list_visible,
    max_names,
    open_content_dir,
)
from sidecar.volume.content.read_state import ReadState, doubtful, kept
from sidecar.volume.content.scan_result import FileStates, ScanResult
from sidecar.volume.content.snapshot import Snapshot

_SET_RETRIES = 20
#: Names beyond twice those of before that are listed to compare them: more are a change, whatever they are.
_MORE_NAMES = 1000


def _go_on() -> None:
    """Read a large file without asking anybody."""


def read_file(
    dir_fd: int,
    directory: str,
    name: str,
    *,
    limit: int,
    before: ScanResult | None,
    linked: bool = True,
    working: Callable[[], None] = _go_on,
) -> ScanResult:
    """Read one file beneath an open directory. One that is not `linked` is known to be no link.

    `working` is called now and then while a large file is read; it ends that by raising.

    Raises:
        NothingPublished: there is no such file.
        ReadError: it must not or cannot be read.
    """
    where = os.path.join(directory, name)
    with openat.read_errors(where):
        for _ in range(_SET_RETRIES):
            generation = _generation(dir_fd, name) if linked else None
            reading = ReadState(before, working)
            try:
                if not _keep_large(reading, dir_fd, name):
                    reading.read(dir_fd, name, limit, where)
            except _errors.NothingPublished:
                if generation is None or generation == _generation(dir_fd, name):
                    raise
                continue  # the link was followed, and its target replaced and removed before it was opened
            return _sighting(dir_fd, generation, Listing(), reading, single=True)
    raise _restless(where)


def read_directory(
    dir_fd: int,
    directory: str,
    *,
    limit: int,
    before: ScanResult | None,
    working: Callable[[], None] = _go_on,
    scope: Scope = ALL,
) -> ScanResult:
    """Read all files beneath an open directory; `working` as for `read_file`, `scope` for loose files.

    Where there is a `..data`, they are those of the generation in force,
    pinned by its descriptor, so they belong together whatever is published meanwhile.
    Files whose signature is the one of `before` are not read again.
    What is no regular file, leads out of the volume, or exceeds `limit` together with the files before it
    is a problem of that name alone, and the last good content stands in for it,
    except in a generation, whose files are shown together or not at all.

    Raises:
        NothingPublished: there is no file, or generations are replaced faster than one can be read.
        ReadError: the directory cannot be read, or a generation has lost a file.
    """
    with openat.read_errors(directory):
        for _ in range(_SET_RETRIES):
            generation = layout.active_generation(dir_fd)
            try:
                reading = ReadState(before, working, scope=scope)
                return _load_once(dir_fd, directory, generation, limit, reading)
            except OSError:
                if generation == layout.active_generation(dir_fd):
                    raise
                # It was being removed, and another one is in force.
    raise _restless(directory)


def reread(
    dir_fd: int,
    directory: str,
    *,
    limit: int,
    before: ScanResult,
    names: Collection[str],
    folders: Collection[str],
    working: Callable[[], None] = _go_on,
    scope: Scope = ALL,
) -> ScanResult | None:
    """Read of loose files what may have changed since `before`: `names`, and what is new in `folders`.

    None if that is not enough: a set of generations is in force by now.

    Raises:
        NothingPublished: there is no file any more.
        ReadError: the directory cannot be read.
    """
    with openat.read_errors(directory):
        if layout.active_generation(dir_fd) is not None or os.fstat(dir_fd).st_nlink == 0:
            return None
        mark = before.mark
        listing = Listing(dict(mark.signatures), dict(mark.folders), dict(before.problems))
        touched = list_again(dir_fd, listing, names, folders, most=max_names(limit), scope=scope)
        reading = ReadState(before, working, touched=touched)
        _read_touched(dir_fd, directory, listing, limit, reading)
        return _sighting(dir_fd, None, listing, reading, single=False)


def is_unchanged(
    dir_fd: int, before: ScanResult, *, quick: bool = False, scope: Scope = ALL
) -> bool:
    """Whether everything still has the signatures of `before`; nothing is read.

    False where signatures alone cannot tell: within two seconds of a change, as file systems' clocks are coarse.
    `quick` asks the directories alone, which finds what came, went or was replaced, and not what was rewritten.
    """
    mark = before.mark
    if mark.doubtful:
        return False
    try:
        if before.snapshot.name is not None:
            return {n: _signature(dir_fd, n) for n in mark.signatures} == mark.signatures
        if layout.active_generation(dir_fd) != mark.generation:
            return False
        if quick:
            return not changed_folders(dir_fd, before)
        with open_content_dir(dir_fd, mark.generation) as fd:
            most = 2 * (len(mark.signatures) + len(mark.folders)) + _MORE_NAMES
            scope = scope if mark.generation is None else ALL
            return list_visible(fd, most, scope).files == mark.signatures
    except (OSError, _errors.ReadError):
        return False


def changed_folders(
    dir_fd: int, before: ScanResult, names: Collection[str] | None = None
) -> set[str]:
    """Return the directories of a set in which something came, went or was replaced since `before`.

    Only those of `names` are asked, if any are given.

    Raises:
        OSError: the directory of the set cannot be read.
    """
    mark = before.mark
    changed: set[str] = set()
    with open_content_dir(dir_fd, mark.generation) as fd:
        for name in mark.folders if names is None else names:
            try:
                if _signature(fd, name or ".") != mark.folders.get(name):
                    changed.add(name)
            except OSError:
                changed.add(name)
    return changed


def _load_once(
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
            # Publishers remove a generation only after the link has left it: what is listed may lack files.
            raise _restless(directory)
        _read(held, directory, listing, limit, reading)
    problems = {
        name: f"cannot read {os.path.join(directory, name)}: {why}"
        for name, why in listing.problems.items()
    }
    if generation is not None:
        _check_whole(directory, generation, reading, problems, before)
    elif not reading.contents and not problems:
        raise _errors.NothingPublished(
            errno.ENOENT, f"cannot read {directory}: no file has been published there"
        )
    elif before is not None:
        for name in problems.keys() & before.snapshot.keys():
            reading.contents[name] = before.snapshot.content(name)
    listing.problems = problems
    return _sighting(dir_fd, generation, listing, reading, single=False)


def _read(dir_fd: int, directory: str, listing: Listing, limit: int, reading: ReadState) -> None:
    """Read what is listed, as far as it is not known already; what cannot be read becomes a problem."""
    room = limit
    for name, signature in listing.files.items():
        room -= _read_one(dir_fd, directory, name, signature, (listing, reading, room, limit))


def _read_touched(
    dir_fd: int, directory: str, listing: Listing, limit: int, reading: ReadState
) -> None:
    """Take over what was known before, and read what was looked at anew."""
    before, touched = reading.before, reading.touched
    if before is None or touched is None:
        return
    reading.contents = before.snapshot.contents()
    reading.signatures = dict(before.mark.signatures)
    for name in touched - listing.files.keys():
        reading.contents.pop(name, None)
        reading.signatures.pop(name, None)
    problems = touched & listing.problems.keys()
    known = [c for name in touched if (c := before.snapshot.get_content(name)) is not None]
    room = limit - before.snapshot.size + sum(content.size for content in known)
    for name in sorted(touched & listing.files.keys()):
        signature = listing.files[name]
        room -= _read_one(dir_fd, directory, name, signature, (listing, reading, room, limit))
    for name in touched & (reading.missing | listing.problems.keys()):
        reading.contents.pop(name, None)
        reading.signatures.pop(name, None)
    for name in problems | (touched & listing.problems.keys()):
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
    into: tuple[Listing, ReadState, int, int],
) -> int:
    """Read one file that is listed, unless it is known; return its bytes, 0 if it could not be read."""
    listing, reading, room, limit = into
    known = kept(name, signature, reading.before)
    if known is not None:
        reading.keep(name, signature, known)
        return known.size
    try:
        if signature.size > room:
            listing.problems[name] = (
                f"its {signature.size} bytes are more than what is left of the limit of {limit}"
                " for all files together (raise max_size)"
            )
            return 0
        if reading.directory is None and signature.size > open_file.LARGE_FILE_BYTES:
            reading.directory = open_file.Directory(os.dup(dir_fd))
        return reading.read(dir_fd, name, room, os.path.join(directory, name))
    except _errors.NothingPublished:
        reading.missing.add(name)  # deleted between the listing and the reading
    except _errors.ReadError as error:
        listing.problems[name] = str(error).partition(": ")[2]
    return 0


def _check_whole(
    directory: str,
    generation: str,
    reading: ReadState,
    problems: Mapping[str, str],
    before: ScanResult | None,
) -> None:
    """Refuse a generation that lacks what it held, or whose files cannot all be read any more.

    The old content of one file must not stand beside the new content of the others.
    """
    known = before.snapshot.keys() if before is not None else frozenset[str]()
    for name in problems.keys() & known:
        raise _errors.ReadError(errno.EIO, problems[name])
    lost = set(reading.missing)
    if before is not None and before.mark.generation == generation:
        lost |= known - reading.contents.keys()
    if lost:
        raise _errors.ReadError(
            errno.ENOENT,
            f"cannot read {directory}: {generation} has lost {min(lost)}"
            " (a generation never changes; publish the set again)",
        )


def _sighting(
    dir_fd: int,
    generation: str | None,
    listing: Listing,
    reading: ReadState,
    *,
    single: bool,
) -> ScanResult:
    for name in reading.unread if generation is not None else ():
        raise _errors.ReadError(
            errno.EBUSY,
            f"cannot read {name}: it changes while it is read"
            " (a generation never changes; publish the set again)",
        )
    status = os.fstat(dir_fd)
    mark = FileStates(
        (status.st_dev, status.st_ino),
        generation,
        reading.signatures,
        listing.folders,
        doubtful(reading),
    )
    return ScanResult(
        _snapshot(reading, single=single),
        mark,
        frozenset(reading.unsettled),
        frozenset(reading.linked),
        listing.problems,
        frozenset(reading.unread),
        frozenset(reading.touched) if reading.touched is not None else None,
    )


def _snapshot(reading: ReadState, *, single: bool) -> Snapshot[None]:
    """Make the snapshot; one that holds what the one before held is that one."""
    before, contents = reading.before, reading.contents
    if before is None or reading.touched is None:
        return Snapshot(dict(sorted(contents.items())), single=single, value=None)
    old = before.snapshot
    changed = {
        name: contents[name]
        for name in reading.touched & contents.keys()
        if old.get_content(name) is not contents[name]
    }
    gone = [name for name in reading.touched if name in old and name not in contents]
    return old.replaced(changed, gone) if changed or gone else old


def _restless(where: str) -> _errors.NothingPublished:
    return _errors.NothingPublished(
        errno.ENOENT, f"cannot read {where}: its files come and go faster than they can be read"
    )


def _generation(dir_fd: int, name: str) -> str | None:
    """Return the generation that a file is read from, None for one that lies loose."""
    link = layout.link_target(dir_fd, name)
    if link is None or not link.startswith(layout.DATA + "/"):
        return None
    return layout.active_generation(dir_fd)


def _signature(dir_fd: int, name: str) -> openat.StatSignature:
    return openat.StatSignature.of(openat.stat_beneath(dir_fd, name))


def _keep_large(reading: ReadState, dir_fd: int, name: str) -> bool:
    """Keep a large file that is still the same, without reading it again; small ones are believed by their bytes."""
    before = reading.before
    if before is None or not before.snapshot.content().is_large:
        return False
    now = _signature(dir_fd, name)
    known = kept(name, now, before)
    if known is not None:
        reading.keep(name, now, known)
    return known is not None
