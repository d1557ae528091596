"""A writer, its rotations and a collector in one process, driven step by step and without a clock.

Every line carries a number. `World.check` counts them: none lost, none twice, but for what each fault permits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from sidecar.logs.input import tail as source
from sidecar.logs.input.file_content import PlainFile
from sidecar.logs.records import Block

Step = tuple[str, int]


def _file(status: os.stat_result) -> int:
    """Device and inode as one number."""
    return status.st_dev << 64 | status.st_ino


class World:
    """One log, `app.log`, and whatever happens to it."""

    def __init__(
        self,
        directory: Path,
        pattern: str = "app.log",
        *,
        pad: int = 64,
        olddir: bool = False,
        far: Path | None = None,
        scarce: bool = False,
    ) -> None:
        self.directory, self.pattern, self.pad = directory, pattern, pad
        self.log = directory / "app.log"
        self.archive = far or (directory / "old" if olddir else directory)
        self.far, self.scarce = far is not None, scarce
        """Rotation moves files to another device; each open closes other files."""
        self.faults = self.shortages = 0
        self.prefixed = False
        """There is a log whose beginning is that of ours: no line may be lost by that, and any may come twice."""
        self.index: dict[tuple[str, int], int] = {}
        """What a receiver has stored by file and offset, be it acknowledged or not."""
        self.archive.mkdir(parents=True, exist_ok=True)
        self.now = 1000.0
        self.next_id = 0
        self.pending = b""
        self.delivered: Counter[int] = Counter()
        self.unsaved: Counter[int] = Counter()
        self.may_repeat: set[int] = set()
        self.may_miss: set[int] = set()
        self.content: dict[int, list[int]] = {}
        """The lines of each inode that is there."""
        self.known: set[int] = set()
        """The inodes that the collector has had a chance to open since they appeared."""
        self.closed: dict[int, int] = {}
        """The inodes that were closed to free descriptors, with their number of lines then. One that grows is opened again."""
        self.chain_known = self.chain_saved = False
        """The collector, or its checkpoint, knows a file of this log: so it notices what rotation has made since."""
        self.garbage: list[bytes] = []
        self.outstanding: list[Block] = []
        self.tail: source.Tail | None = None
        self.raced = False
        self.hidden = 0
        self.coming: list[tuple[int, Callable[[int], None]]] = []
        self.copy_coming: list[int] = []
        self._copy: Iterator[None] | None = None
        self.fd = -1
        self._reopen()

    # -- the application

    def _reopen(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.content.setdefault(_file(os.fstat(self.fd)), [])

    def _line(self) -> bytes:
        number = self.next_id
        self.next_id += 1
        self.content[_file(os.fstat(self.fd))].append(number)
        return f"{number:08d} ".encode() + b"x" * (self.pad - 10 + number % 7) + b"\n"

    def write(self, count: int) -> None:
        """Whole lines; the first completes a line that was begun."""
        data = self.pending
        self.pending = b""
        data += b"".join(self._line() for _ in range(count))
        os.write(self.fd, data)

    def partial(self, size: int) -> None:
        """Begin a line."""
        self.write(0)
        line = self._line()
        size = 1 + size % (len(line) - 1)
        os.write(self.fd, line[:size])
        self.pending = line[size:]

    # -- rotation

    def copying(self, _: int = 0) -> None:
        """One step of a copytruncate that takes its time: an empty copy, a half, a whole one, the truncation."""
        if self._copy is None:
            self._copy = self._copy_in_steps()
        if next(self._copy, self) is self:
            self._copy = None

    def _copy_in_steps(self) -> Iterator[None]:
        self._hide()
        self._shift()
        inode, copy = self.log_inode(), self._name(1)
        copy.touch()
        self.content[_file(copy.stat())] = self.content[inode]
        yield
        with copy.open("wb", buffering=0) as out:
            out.write(self.log.read_bytes()[: self.log.stat().st_size // 2])
        yield
        self.write(0)
        with copy.open("ab", buffering=0) as out:
            out.write(self.log.read_bytes()[copy.stat().st_size :])
        copied = list(self.content[inode])
        yield
        # What is written between the end of the copy and the truncation is lost, if nobody has read it by then.
        self.write(0)
        self._hide()
        self.may_miss |= set(self.content[inode]) - set(copied)
        self.content[_file(copy.stat())], self.content[inode] = copied, []
        os.truncate(self.log, 0)

    def _finish_copy(self) -> None:
        while self._copy is not None:
            self.copying()

    def _name(self, number: int, extension: str = "") -> Path:
        return self.archive / f"app.log.{number}{extension}"

    def _shift(self) -> None:
        for extension in ("", ".gz"):
            oldest = self._name(12, extension)
            if oldest.exists():
                self._removed(oldest)
            for number in range(11, 0, -1):
                if self._name(number, extension).exists():
                    os.rename(self._name(number, extension), self._name(number + 1, extension))

    def _removed(self, path: Path) -> None:
        inode = _file(path.stat())
        if not self._is_held(inode):
            self._lose(inode)
        path.unlink()
        if inode not in self.known:
            self.content.pop(inode, None)

    def _lose(self, inode: int) -> None:
        self.may_miss |= set(self.content.get(inode, ()))

    def rename(self, late: int) -> None:
        """Rename and create; the writer writes some more lines to the old file before it reopens."""
        self._finish_copy()
        self._hide()
        self._shift()
        if self.far:
            self._move_far()
            return
        os.rename(self.log, self._name(1))
        self.write(late)
        self._hide()
        self._reopen()

    def _move_far(self) -> None:
        """As mv(1) and logrotate do it from one device to another: a copy, then the original is deleted."""
        self.write(0)
        self._hide()
        shutil.copy2(self.log, self._name(1))
        self.content[_file(self._name(1).stat())] = list(self.content[self.log_inode()])
        self.log.unlink()
        self._reopen()

    def prefix(self, count: int) -> None:
        """Another log, whose name rotation could have given, begins as this one does; and then writes lines of its own."""
        path = self.directory / f"app.log.{90 + count % 3}"
        self.prefixed = True
        if not path.exists():
            self.write(0)
            lines = self.log.read_bytes().splitlines(keepends=True)[:count]
            path.write_bytes(b"".join(lines))
            self.content[_file(path.stat())] = numbers = [int(line[:8]) for line in lines]
            self.may_repeat |= set(numbers)
            return
        number, self.next_id = self.next_id, self.next_id + 1
        self.content[_file(path.stat())].append(number)
        if self.pattern == "app.log":
            self.may_miss.add(number)  # nobody has asked for it
        with path.open("ab", buffering=0) as file:
            file.write(f"{number:08d} ".encode() + b"p" * (self.pad - 10) + b"\n")

    def _hide(self) -> None:
        """The log's present content goes where the patterns do not look."""
        covered = (self.pattern.startswith("**") and not self.far) or (
            self.pattern.endswith("*") and self.archive == self.directory
        )
        if not self.chain_known and not covered:
            self._lose(self.log_inode())

    def log_inode(self) -> int:
        return _file(os.fstat(self.fd))

    def copytruncate(self, late: int) -> None:
        self._finish_copy()
        self.write(0)
        self._hide()
        self._shift()
        copy = self._name(1)
        shutil.copyfile(self.log, copy)
        inode = _file(self.log.stat())
        self.content[_file(copy.stat())] = self.content[inode]
        self.content[inode] = []
        os.truncate(self.log, 0)
        self.write(late)

    def delete(self, late: int) -> None:
        """Remove the log; the writer writes on into the nameless file, then begins a new one."""
        self._finish_copy()
        self.write(0)
        inode = _file(self.log.stat())
        held = self._is_held(inode)
        self.write(late)
        if not held:
            self._lose(inode)
        self.log.unlink()
        self._reopen()

    def truncate(self, late: int) -> None:
        """Without a copy: what has not been read is gone."""
        self._finish_copy()
        self.write(0)
        inode = _file(self.log.stat())
        self._lose(inode)
        os.truncate(self.log, 0)
        self.content[inode] = []
        self.write(late)

    def compress(self, number: int) -> None:
        self._finish_copy()
        path = self._name(1 + number % 9)
        target = Path(f"{path}.gz")
        if not path.exists() or target.exists():
            return
        inode = _file(path.stat())
        with path.open("rb") as plain, gzip.open(target, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(plain, packed)
        self.content[_file(target.stat())] = self.content[inode]
        path.unlink()

    # -- the collector

    def start(self, _: int = 0) -> None:
        if self.tail is not None:
            return
        self.tail = source.tail(
            str(self.directory / self.pattern),
            checkpoint=self.directory / "state" / "offsets.json",
            partial_timeout=None,
            archives=[str(self.archive)] if self.archive != self.directory else [],
        )
        self.tail._clock = lambda: self.now
        self._disturb(self.tail)
        if self.scarce:
            # The first descriptor that is too many is the first one there is.
            self.tail._policy = dataclasses.replace(self.tail._policy, max_open=0)
        self.tail.open()
        self._seen()
        self.save()

    def race(self, kind_and_moment: int) -> None:
        """Let a rotation happen in the middle of one of the next scans: after so many of its steps on the disk."""
        moment, kind = divmod(kind_and_moment, 4)
        steps: list[Callable[[int], None]] = [
            self.rename,
            self.copytruncate,
            self._shift_one,
            self._hide_one,
        ]
        self.coming.append((moment, steps[kind]))

    def copy_race(self, moment: int) -> None:
        """Let the next step of a copy happen in the middle of a scan or a read, between any two questions to the disk."""
        self.copy_coming.append(moment)

    def _hide_one(self, _: int = 0) -> None:
        """A directory that is read while names change may miss one of them; see readdir(3)."""
        self.hidden += 1

    def _disturb(self, tail: source.Tail) -> None:
        discovery = tail._discovery
        scan, opened, siblings = discovery.scan, discovery.open, discovery.siblings
        listed = discovery._read_directory

        def disturbed_scan(**options: Any) -> Any:
            self._tick()
            found = scan(**options)
            self._tick()
            return found

        def disturbed_open(path: str) -> int:
            self._tick()
            if self.shortages:
                self.shortages -= 1
                self.raced = True
                self.closed |= {inode: len(self.content.get(inode, ())) for inode in self.known}
                raise OSError(errno.EMFILE, "Too many open files")
            fd = opened(path)
            self._tick()
            return fd

        def disturbed_listing(directory: str, status: os.stat_result) -> Any:
            listing = listed(directory, status)
            if self.hidden and listing.keys:
                del listing.keys[sorted(listing.keys)[self.hidden % len(listing.keys)]]
                listing.is_stable = False
                self.hidden = 0
            return listing

        def disturbed_siblings(path: str) -> Any:
            for sibling in list(siblings(path)):
                self._tick()
                yield sibling

        discovery.scan = disturbed_scan  # type: ignore[method-assign]
        discovery.open = disturbed_open  # type: ignore[method-assign]
        discovery._read_directory = disturbed_listing  # type: ignore[method-assign]
        discovery.siblings = disturbed_siblings  # type: ignore[method-assign]

    @contextlib.contextmanager
    def _disturbed_reads(self) -> Iterator[None]:
        read = PlainFile.read

        def disturbed(content: PlainFile, offset: int, size: int) -> bytes:
            self._copy_tick()
            return read(content, offset, size)

        with mock.patch.object(PlainFile, "read", disturbed):
            yield

    def _copy_tick(self) -> None:
        due = sum(moment <= 0 for moment in self.copy_coming)
        self.copy_coming = [moment - 1 for moment in self.copy_coming if moment > 0]
        for _ in range(due):
            self.raced = True
            self.copying()

    def _tick(self) -> None:
        self._copy_tick()
        due = [step for moment, step in self.coming if moment <= 0]
        self.coming = [(moment - 1, step) for moment, step in self.coming if moment > 0]
        for step in due:
            self.raced = True
            step(1)

    def _shift_one(self, _: int = 0) -> None:
        """A rename chain is not one step: for a moment only the older half has its new names."""
        self._finish_copy()
        for number in range(9, 0, -1):
            if self._name(number).exists() and not self._name(number + 1).exists():
                os.rename(self._name(number), self._name(number + 1))
                return

    def _seen(self) -> None:
        """What was there during an undisturbed scan is known; what came in the middle of one, perhaps not."""
        raced, self.raced = self.raced, False
        if raced:
            return
        self.known = {
            _file(path.stat()) for path in [*self.directory.iterdir(), *self.archive.iterdir()]
        }
        self.chain_known = True
        grown = [
            inode
            for inode, lines in self.closed.items()
            if len(self.content.get(inode, ())) > lines
        ]
        for inode in grown:
            del self.closed[inode]

    def _is_held(self, inode: int) -> bool:
        """Whether the collector has a file open, so that nothing is lost when its name is gone."""
        return (
            self.tail is not None
            and inode in self.known
            and inode not in self.closed
            and not self.scarce
        )

    def scan(self, _: int = 0) -> None:
        if self.tail is not None:
            self.tail.scan()
            self._seen()

    def read(self, count: int) -> None:
        """Read some, and hand it to the sink: delivered, not yet acknowledged."""
        if self.tail is not None:
            self.outstanding += self.tail.read("", 1 + count * 100)

    def acknowledge(self, count: int) -> None:
        """The sink has taken some of what it was given."""
        if self.tail is None:
            return
        if self.faults and self.outstanding:
            # A bulk request of which an index has stored half, and then has become read-only.
            self.faults -= 1
            self._store(self.outstanding[0].data.splitlines()[::2], self.outstanding[0])
            return
        done, self.outstanding = self.outstanding[:count], self.outstanding[count:]
        for block in done:
            self._store(block.data.splitlines(), block)
            for line in block.data.splitlines():
                if len(line) < self.pad - 10 or not line[:8].isdigit():
                    self.garbage.append(line)
                    continue
                self.delivered[int(line[:8])] += 1
                self.unsaved[int(line[:8])] += 1
        self.tail.acknowledge("", done)

    def _store(self, lines: list[bytes], block: Block) -> None:
        for record in block.records():
            if record.raw in lines and record.raw[:8].isdigit():
                number = int(record.raw[:8])
                assert self.index.setdefault((record.file_id, record.offset), number) == number

    def fault(self, count: int) -> None:
        """The receiver refuses the next requests for a reason that is not the lines'."""
        self.faults = count

    def shortage(self, count: int) -> None:
        """The next files cannot be opened: something else has taken the descriptors."""
        self.shortages = count

    def save(self, _: int = 0) -> None:
        if self.tail is not None:
            self.tail.save()
            self.chain_saved = self.chain_known
            self.unsaved.clear()

    def poll(self, _: int = 0) -> None:
        """As a healthy collector does all the time."""
        if self.tail is None:
            return
        self.scan()
        self.faults = 0
        for _ in range(1000):
            self.read(1000)
            if not self.outstanding:
                break
            self.acknowledge(len(self.outstanding))

    def stop(self, _: int = 0) -> None:
        """SIGTERM: read to the end, deliver, save."""
        if self.tail is None:
            return
        self.poll()
        self.save()
        self._close()

    def kill(self, _: int = 0) -> None:
        """SIGKILL: the sink has what it acknowledged, the checkpoint says what it last said."""
        if self.tail is None:
            return
        self.may_repeat |= set(self.unsaved)
        self.chain_known = self.chain_saved
        gone = {inode for inode in self.content if inode not in self._linked()}
        for inode in gone:
            self._lose(inode)
        self._close()

    def _linked(self) -> set[int]:
        return {_file(p.stat()) for p in [*self.directory.iterdir(), *self.archive.iterdir()]}

    def _close(self) -> None:
        assert self.tail is not None
        if self._copy is not None:
            # Read past the end of a copy, and gone before the truncation: the next start cannot tell what it is.
            self.may_repeat |= set(self.content[self.log_inode()])
        self.tail.close()
        self.tail = None
        self.outstanding, self.known, self.closed = [], set(), {}
        self.unsaved.clear()

    def wait(self, seconds: int) -> None:
        self.now += seconds
        if self._copy is not None and seconds > 10:
            # A copy that is not followed by a truncation is delivered, too: twice is better than never.
            self.may_repeat |= set(self.content[self.log_inode()])

    # -- the account

    def run(self, steps: Iterable[Step]) -> None:
        try:
            with self._disturbed_reads():
                for name, argument in steps:
                    getattr(self, name)(argument)
                self.check()
        finally:
            if self.tail is not None:
                self.tail.close()
            os.close(self.fd)

    def check(self) -> None:
        self.coming.clear()
        self.copy_coming.clear()
        self._finish_copy()
        self.hidden = self.faults = self.shortages = 0
        self.write(1)
        self.start()
        for _ in range(3):
            self.poll()
        everything = set(range(self.next_id))
        lost = everything - set(self.delivered) - self.may_miss
        repeated = {n for n, count in self.delivered.items() if count > 1} - self.may_repeat
        assert not self.garbage, f"garbage {self.garbage[:3]}"
        assert not lost, f"lost {sorted(lost)}"
        assert self.prefixed or not repeated, f"repeated {sorted(repeated)}"
        limited = {n for n, count in self.delivered.items() if count > 1 + len(self.may_repeat)}
        assert self.prefixed or not limited
