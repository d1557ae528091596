"""The reserved names on a volume.

All of them begin with `..`, which consumers of Kubernetes volumes ignore:

    ..tmp-<random>                      a temporary file, link or directory
    ..gen-<nanoseconds>-<version>       a generation of a set, see `sidecar.fs.atomic_writer`
    ..data                              the link to the active generation
    ..versions/                         the history, see `sidecar.volume.publish.history`
    ..lock                              the file that writers lock, see `sidecar.fs.flock`
    ..metadata/                         metadata of files, where there are no extended attributes
    ..metadata.json                     in a generation: metadata of the set, likewise; see `sidecar.volume.content.metadata`
    ..source.json                       why the source of the content is stale, see `sidecar.volume.content.source_state`
    ..reload.json, ..reload-NAME.json   what `sidecar reload` remembers, see `sidecar.reload.rollback`
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
"""The directory of the version history."""
HISTORY_OF_FILE = "file-"
_MAX_QUOTED_CHARS = 200
LOCK = "..lock"
SOURCE = "..source.json"
METADATA = "..metadata"
SET_METADATA = "..metadata.json"


def temporary_name() -> str:
    """Return a random name, so that a leftover of a killed writer cannot block the next one."""
    return TEMPORARY + secrets.token_hex(8)


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8; other names cannot be requested."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def active_generation(dir_fd: int) -> str | None:
    """Return the target of `..data`, None if there is no such link.

    Raises:
        OSError: the link cannot be read; nothing that depends on it may be done.
    """
    try:
        return os.readlink(DATA, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise


def link_target(dir_fd: int, name: str) -> str | None:
    """Return the target of the symbolic link `name`, None if there is no such link or it cannot be read."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def history_of(name: str) -> str:
    """Return the history directory of a loose file."""
    return f"{HISTORY}/{HISTORY_OF_FILE}{_quote(name)}"


@functools.lru_cache(maxsize=64)
def metadata_of(name: str) -> str:
    """Return the hidden file with the metadata of a file."""
    return f"{METADATA}/{_quote(name)}.json"


def _quote(name: str) -> str:
    quoted = urllib.parse.quote(name, safe="")
    if len(quoted) > _MAX_QUOTED_CHARS:
        quoted = hashlib.sha256(os.fsencode(name)).hexdigest()
    return quoted


def is_history_of_file(entry: str) -> bool:
    """Whether `entry` is the name of the history directory of a loose file."""
    return entry.startswith(HISTORY_OF_FILE)
