"""A file system that shows a directory, and knows nothing of changes made behind it: no events, as on NFS.

    python fuse_volume.py SOURCE TARGET CONTROL

While the file CONTROL exists, it holds what goes wrong: `hang` lets every operation wait until it is gone,
`EIO` (or another errno) lets reading fail.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy


class Volume(mfusepy.Operations):
    """Read-only, without any cache."""

    def __init__(self, source: str, control: str) -> None:
        self._source = source
        self._control = Path(control)

    def _real(self, path: str) -> str:
        while (fault := self._fault()) == "hang":
            time.sleep(0.01)
        if fault and path != "/":
            raise mfusepy.FuseOSError(getattr(errno, fault))
        return self._source + path

    def _fault(self) -> str:
        try:
            return self._control.read_text()
        except FileNotFoundError:
            return ""

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._real(path))
        return {
            "st_mode": status.st_mode,
            "st_nlink": status.st_nlink,
            "st_size": status.st_size,
            "st_ino": status.st_ino,
            "st_mtime": status.st_mtime_ns,
            "st_ctime": status.st_ctime_ns,
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
        }

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        names = os.listdir(self._real(path))
        return [(name, self.getattr(os.path.join(path, name)), 0) for name in names]

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._real(path)
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    use_ns = True


if __name__ == "__main__":
    source, target, control = sys.argv[1:]
    mfusepy.FUSE(
        Volume(source, control),
        target,
        foreground=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        use_ino=True,
    )
