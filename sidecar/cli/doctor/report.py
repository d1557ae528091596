"""The findings of the doctor: role, state, text and remedy."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sidecar import _errors
from sidecar.fs import oserrors
from sidecar.volume.content import snapshot

State = Literal["ok", "note", "wrong"]
Role = Literal["read", "write"]
BOTH: tuple[Role, ...] = ("read", "write")


@dataclass(frozen=True)
class Finding:
    """One line of the report: subject, finding and remedy."""

    subject: str
    state: State
    text: str
    remedy: str | None = None
    roles: tuple[Role, ...] = BOTH
    """The roles it concerns: a problem that only concerns a writer does not fail a reader."""


@dataclass
class Target:
    """The path to check, and the results of earlier checks."""

    path: str
    directory: str = ""
    """The content directory, empty if there is none."""
    fd: int = -1
    name: str | None = None
    """The file's name in it, None where the path is a directory."""
    filesystem: str = "unknown"
    writable: bool = False
    size: int = 0
    max_size: int = snapshot.MAX_SIZE
    """Bytes that a content may have for those who use the path."""
    mode: int = 0o644
    """Permissions that the writer gives its files."""
    group: int | None = None
    """The group that it gives them, None for that of the directory."""
    verify_key: tuple[str, ...] = ()
    """Files with the keys that sign the content, none where it need not be signed."""
    entries: list[str] = field(default_factory=list)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def reason(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, _errors.SidecarError):
        return oserrors.hint(error)
    return str(error)


def remedy_for(error: OSError) -> str | None:
    """Return the remedy for an error at a path, None if its message says it."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return permission_remedy()
        case errno.ELOOP:
            return "remove one of the links, or name the path without them"
        case errno.ENAMETOOLONG:
            return "name a shorter path"
        case errno.ENOTDIR:
            return "name another path, or remove the file that lies on the way"
        case _:
            return None


def permission_remedy() -> str:
    return f"give it to user {os.geteuid()} or group {os.getegid()}, or {oserrors.share_remedy()}"


def rights(status: os.stat_result) -> str:
    group = _name(lambda: grp.getgrgid(status.st_gid).gr_name)
    return (
        f"owner {user_of(status.st_uid)}, group {status.st_gid}{group},"
        f" mode {stat.S_IMODE(status.st_mode):04o}"
    )


def user_of(number: int) -> str:
    return f"{number}{_name(lambda: pwd.getpwuid(number).pw_name)}"


def _name(look_up: Callable[[], str]) -> str:
    """Return a name in brackets; a slim image often has none for a number."""
    try:
        return f" ({look_up()})"
    except KeyError:
        return ""


def format_amount(count: int) -> str:
    """Format a number of bytes for people."""
    rest = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if rest < 1024 or unit == "TiB":
            return f"{count} {unit}" if unit == "bytes" else f"{rest:.1f} {unit}"
        rest /= 1024
    return f"{count} bytes"
