"""Every error that `sidecar` raises on purpose, the whole tree on one screen.

    SidecarError
    ├── PublishError                    nothing was published, the old content stands
    │   ├── VolumeFull                  (OSError)     no space, no inodes, quota used up
    │   ├── VolumeUnavailable           (OSError)     read-only, I/O error, no permission, busy
    │   ├── ContentRefused              (ValueError)  the gate said no; see `reasons`
    │   │   └── ContentTooLarge
    │   ├── VersionConflict                           another writer published first
    │   ├── NameRefused                 (ValueError)  not a name that may lie on a volume
    │   │   └── NameTaken                             something else is in the way of it
    │   └── FileMissing                 (LookupError) there is nothing of that name to delete
    ├── PublishUncertain                (OSError)     visible, but perhaps not durable
    ├── ReadError                       (OSError)     something is there, and it is not fit to be read
    │   ├── NothingPublished                          nothing is there yet
    │   └── ContentAltered                            a large content was rewritten in place since it was read
    ├── UnknownVersion                  (LookupError) the history does not hold that version
    └── ConfigError                     (ValueError)  an option is wrong

Members also inherit the builtin that they are,
so that code which knows nothing of `sidecar` can catch `OSError` or `ValueError`.
A message says what was attempted, on which path, and what to change.
"""

from __future__ import annotations

from collections.abc import Sequence


class SidecarError(Exception):
    """The root: whatever `sidecar` raises on purpose."""

    counted = False
    """Whether a metric has counted it already."""

    def __str__(self) -> str:
        # An OSError would put "[Errno 28]" before a sentence that already says it in words.
        return str(self.args[-1]) if self.args else ""


class PublishError(SidecarError):
    """Nothing was published: readers see the old content, whole."""


class VolumeFull(PublishError, OSError):
    """The volume has no space for the new content in addition to the old (`ENOSPC`, `EDQUOT`)."""


class VolumeUnavailable(PublishError, OSError):
    """The volume cannot be written (`EROFS`, `EIO`, `ESTALE`, `EACCES`, `EBUSY`, …)."""


class ContentRefused(PublishError, ValueError):
    """The gate refused the content.

    `reasons` holds one sentence for each thing that is wrong with it.
    """

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons: tuple[str, ...] = tuple(reasons) or (message,)


class ContentTooLarge(ContentRefused):
    """The content is larger than the limit of this writer."""


class VersionConflict(PublishError):
    """The condition (`if_match`, `if_none_match`) does not hold any more.

    `current` is the ETag of what is there now, None where there is nothing.
    """

    def __init__(self, message: str, current: str | None) -> None:
        super().__init__(message)
        self.current = current


class NameRefused(PublishError, ValueError):
    """The name is empty, too long, leaves the volume, or begins with `..`."""


class NameTaken(NameRefused):
    """Something else is in the way: a directory in the place of the file, or no directory where its path needs one.

    Nothing is wrong with the volume: any other name can be published.
    """


class FileMissing(PublishError, LookupError):
    """There is no file of that name, so it cannot be deleted."""


class PublishUncertain(SidecarError, OSError):
    """The new content is visible, but a power cut may still take it back.

    The rename happened and the directory could not be synced afterwards.
    The file was read back: `version` is what readers see now, empty where a file was deleted.
    """

    def __init__(self, message: str, version: str) -> None:
        super().__init__(message)
        self.version = version


class ReadError(SidecarError, OSError):
    """Something is there that must not or cannot be read.

    It leaves the volume, is no regular file, is too large, or permission is missing.
    """


class NothingPublished(ReadError):
    """Nothing has been published there yet."""


class ContentAltered(ReadError):
    """A large content is not what it was: it was rewritten in place, or taken away, after it had been read.

    Small ones are held in memory, and large ones stay on the disk.
    """


class UnknownVersion(SidecarError, LookupError):
    """The history does not hold the version that was asked for."""


class ConfigError(SidecarError, ValueError):
    """An option, a flag or a variable has a value that cannot work."""
