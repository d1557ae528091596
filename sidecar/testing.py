"""What tests of your own need: a volume that goes away again, and neighbours that behave as real ones do.

    async with temporary_volume({"config": "a: 1"}) as volume: ...   a real directory, removed afterwards
    ConfigMapVolume(path).update({...})                              a directory as kubelet keeps it
    rewrite_in_place(path, "…", pause)                               a writer that does it wrong
    await until(lambda: …)                                           wait for a condition, with a limit
    LogFile(path).write("a line")                                    a log that rotates, in every way there is
    MemorySink()                                                     a sink that keeps lines, and fails when told to
    ListSource([state({"a": "1"}), OSError()])                       a source of a mirror that yields, and fails, in this order

Nothing here is a fake of `sidecar`: your code runs on the real thing, on a real file system.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from sidecar.logs.testing import LogFile, MemorySink
from sidecar.mirror.testing import ListSource, state
from sidecar.volume.content.snapshot import to_bytes
from sidecar.volume.volume import Volume

__all__ = [
    "ConfigMapVolume",
    "ListSource",
    "LogFile",
    "MemorySink",
    "rewrite_in_place",
    "state",
    "temporary_volume",
    "until",
]

_DATA = "..data"
_POLL_SECONDS = 0.002


@asynccontextmanager
async def temporary_volume(
    files: Mapping[str, bytes | str] | None = None, *, keep: int = 10, max_size: int = 64 << 20
) -> AsyncIterator[Volume]:
    """Enter a volume in a new directory, with `files` published one by one; it is removed at the end.

    >>> import asyncio
    >>> async def test_my_consumer() -> None:
    ...     async with temporary_volume({"config": "a: 1"}) as volume:
    ...         await volume.put("config", "a: 2")
    ...         assert (await volume.read("config")).data == b"a: 2"
    >>> asyncio.run(test_my_consumer())
    """
    directory = tempfile.mkdtemp(prefix="sidecar-")
    try:
        volume = Volume(directory, keep=keep, max_size=max_size)
        await volume.prepare(initial=files)
        yield volume
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class ConfigMapVolume:
    """A directory that changes as kubelet changes a ConfigMap, Secret or projected volume.

    Each update is a new directory, named after its time, and a swap of the link `..data` by rename.
    The directory before is removed at once, as kubelet does it, so a reader in the middle of it finds files gone.
    See https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as path:
    ...     config = ConfigMapVolume(path)
    ...     config.update({"level": "debug"})
    ...     Path(path, "level").read_text()
    'debug'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def update(self, files: Mapping[str, bytes | str]) -> None:
        """Make `files` the content, all at once. Blocking."""
        old = self._generation()
        stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
        new = self.path / f"{stamp}{secrets.randbelow(10**10):010d}"
        new.mkdir(mode=0o755)
        for name, content in files.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(to_bytes(content))
        temporary = self.path / "..data_tmp"
        temporary.symlink_to(new.name)
        temporary.rename(self.path / _DATA)
        self._link({name.split("/", 1)[0] for name in files})
        if old is not None:
            shutil.rmtree(old)

    def _generation(self) -> Path | None:
        link = self.path / _DATA
        return self.path / link.readlink() if link.is_symlink() else None

    def _link(self, names: set[str]) -> None:
        for name in names:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"{_DATA}/{name}")
        for entry in self.path.iterdir():
            if not entry.name.startswith("..") and entry.name not in names:
                entry.unlink()


def rewrite_in_place(path: str | os.PathLike[str], content: bytes | str, pause: float) -> None:
    """Do what careless programs do: truncate the file, write half, wait `pause` seconds, write the rest. Blocking.

    A test that survives this as a neighbour survives most of them.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("r") as config:
    ...     rewrite_in_place(config.name, "a: 2", pause=0.01)
    ...     config.read()
    'a: 2'
    """
    data = to_bytes(content)
    half = len(data) // 2
    with open(path, "wb", buffering=0) as file:
        file.write(data[:half])
        time.sleep(pause)
        file.write(data[half:])


async def until(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
    """Return as soon as `condition()` is true.

    Raises:
        TimeoutError: it was not, for `timeout` seconds.

    >>> import asyncio
    >>> asyncio.run(until(lambda: True))
    """
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 (any condition, so there is no event to wait for)
            await asyncio.sleep(_POLL_SECONDS)
