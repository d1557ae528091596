"""Checks of ownership: the sticky bit, links, the active set and files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sidecar.cli.doctor.report import Finding, Target, reason
from sidecar.cli.escape import one_line
from sidecar.fs import atomic_writer, dirs, layout, permissions, visible_links

_MAX_NAMES_SHOWN = 3


def replaceable(target: Target) -> Iterator[Finding]:
    """Whether this user can replace the file at the path, and the active set that it may be part of."""
    if not target.writable:
        return
    whole = os.path.join(target.directory, layout.DATA)
    places = ((target.name, target.path, "it"), (layout.DATA, whole, "the active set"))
    for name, path, what in places:
        try:
            if name is not None:
                permissions.check_replaceable(target.fd, name, path)
        except OSError as error:
            text = f"{what} cannot be replaced: {reason(error)}"
            yield Finding("publish", "wrong", text, None, ("write",))


def links(target: Target) -> Iterator[Finding]:
    """Whether a set can be published here, and be read by others."""
    if not target.writable:
        return
    temporary = layout.temporary_name()
    try:
        os.symlink(f"{layout.DATA}/doctor", temporary, dir_fd=target.fd)
    except OSError as error:
        yield Finding(
            "links",
            "note",
            f"symbolic links do not work here ({reason(error)}): a set of files cannot be published",
            "publish single files here, or take another volume for the set",
            ("write",),
        )
        return
    finally:
        dirs.rmtree(target.fd, temporary)
    if permissions.blocks_foreign_links(os.fstat(target.fd)):
        yield Finding(
            "links",
            "note",
            "the directory has the sticky bit and is writable for all: of a set that is published here"
            f" only user {os.geteuid()} can follow the links (fs.protected_symlinks);"
            " readers of sidecar see it all the same",
            "publish sets into a directory in it, or take the bit away: chmod -t",
            ("write",),
        )


def shared_history(target: Target) -> Iterator[Finding]:
    """Whether the history records what this user publishes."""
    if not target.writable or layout.HISTORY not in target.entries:
        return
    try:
        with dirs.open_subdir(target.fd, layout.HISTORY) as fd:
            permissions.check_writable(fd)
    except OSError as error:
        yield Finding(
            "history",
            "note",
            f"what this user publishes is not recorded: {reason(error)}",
            None,
            ("write",),
        )


def active_set(target: Target) -> Iterator[Finding]:
    """Whether the link to the active set is intact, and which files are hidden because they lie beside the set."""
    try:
        damage = atomic_writer.damage(target.fd)
    except OSError as error:
        damage = f"cannot be examined: {reason(error)}"
    if damage is not None:
        yield Finding(
            "set",
            "wrong",
            f"the link {layout.DATA} to the active set {damage}",
            "start a writer, which activates the newest complete generation, or publish the set again",
        )
    elif layout.active_generation(target.fd) is not None and (
        beside := visible_links.loose_names_beside_set(target.fd)
    ):
        more = (
            f" and {len(beside) - _MAX_NAMES_SHOWN} more" if len(beside) > _MAX_NAMES_SHOWN else ""
        )
        yield Finding(
            "set",
            "note",
            f"readers ignore the files beside it: {', '.join(map(one_line, beside[:_MAX_NAMES_SHOWN]))}{more}",
            "publish them with the set, or remove them",
        )
