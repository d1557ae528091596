"""A file system with rules of its own, which shows another directory.

    python fuse_rules.py SOURCE TARGET RULE…

`modes` fixes the modes of all files at 0777, and chmod(2) is not permitted, as on CIFS and vfat for who does not own the mount;
`nosymlinks` and `nolinks` leave out symbolic and hard links; `coarse` stamps in two seconds. All of them: vfat.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any, NoReturn

import mfusepy

_TWO_SECONDS = 2_000_000_000


def refuse(error: int = errno.EPERM) -> NoReturn:
    raise mfusepy.FuseOSError(error)


class Rules(mfusepy.Operations):
    """Each operation as the directory behind does it, but for the rules."""

    use_ns = True

    def __init__(self, source: str, rules: frozenset[str]) -> None:
        self._source = source
        self._rules = rules

    def _real(self, path: str) -> str:
        return self._source + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._real(path))
        mode, times = status.st_mode, (status.st_mtime_ns, status.st_ctime_ns)
        if "modes" in self._rules and not stat.S_ISLNK(mode):
            mode = stat.S_IFMT(mode) | 0o777
        if "coarse" in self._rules:
            times = (
                times[0] // _TWO_SECONDS * _TWO_SECONDS,
                times[1] // _TWO_SECONDS * _TWO_SECONDS,
            )
        return {
            "st_mode": mode,
            "st_nlink": status.st_nlink,
            "st_size": status.st_size,
            "st_ino": status.st_ino,
            "st_mtime": times[0],
            "st_ctime": times[1],
            "st_uid": status.st_uid,
            "st_gid": status.st_gid,
        }

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        names = os.listdir(self._real(path))
        return [(name, self.getattr(os.path.join(path, name)), 0) for name in names]

    def chmod(self, path: str, mode: int) -> int:
        if "modes" in self._rules:
            refuse()
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        if "modes" in self._rules:
            refuse()
        os.chown(self._real(path), uid, gid)
        return 0

    def symlink(self, target: str, source: str) -> int:
        if "nosymlinks" in self._rules:
            refuse()
        os.symlink(source, self._real(target))
        return 0

    def link(self, target: str, source: str) -> int:
        if "nolinks" in self._rules:
            refuse()
        os.link(self._real(source), self._real(target))
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags & ~os.O_NOFOLLOW)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._real(new))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files")
        more = ("f_flag", "f_frsize", "f_namemax")
        return {name: getattr(found, name) for name in (*names, *more)}


if __name__ == "__main__":
    source, target, *rules = sys.argv[1:]
    mfusepy.FUSE(
        Rules(source, frozenset(rules)),
        target,
        foreground=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        use_ino=True,
    )
