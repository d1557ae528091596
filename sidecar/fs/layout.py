"""Names of ours on a volume, and where they lead.

Every one begins with `..`, which no consumer of a Kubernetes volume looks at:

    ..tmp-<random>                      a file, a link or a directory that is being made
    ..gen-<nanoseconds>-<version>       a generation of a set, see `sidecar.fs.atomic_writer`
    ..data                              the link to the generation that is in force
    ..versions/                         the history, see `sidecar.volume.publish.history`
    ..lock                              the file that writers lock, see `sidecar.fs.flock`
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import secrets
import urllib.parse

HIDDEN = ".."
DATA = "..data"
TEMPORARY = "..tmp-"
GENERATION = "..gen-"
HISTORY = "..versions"
"""The directory of what was published before."""
HISTORY_OF_FILE = "file-"
_LONGEST_QUOTED = 200
LOCK = "..lock"


def temporary_name() -> str:
    """Return a name that nobody can foresee: a killed writer must not block the next one."""
    return TEMPORARY + secrets.token_hex(8)


def is_text(name: str) -> bool:
    """Whether a name that was found is UTF-8: nobody can ask for it if it is not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def active_generation(dir_fd: int) -> str | None:
    """Return where `..data` points, None where there is no such link.

    Raises:
        OSError: nobody can tell: then nothing may be done that depends on it.
    """
    try:
        return os.readlink(DATA, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise


def link_target(dir_fd: int, name: str) -> str | None:
    """Return where the symbolic link `name` points, None if there is no such link, or if nobody can tell."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def history_of(name: str) -> str:
    """Return the directory that keeps the contents of a loose file."""
    quoted = urllib.parse.quote(name, safe="")
    if len(quoted) > _LONGEST_QUOTED:
        quoted = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{HISTORY}/{HISTORY_OF_FILE}{quoted}"


def is_history_of_file(entry: str) -> bool:
    """Whether that is the name of a directory that keeps the contents of a loose file."""
    return entry.startswith(HISTORY_OF_FILE)
