"""A program under fault: it publishes when it is told to, so that a test can attach strace to exactly that.

It stays and forks one child a run, because starting Python anew would cost more than the run itself.
A line `{"kind": …, "directory": …}` on stdin starts a child, which prepares and publishes what is old;
`{"pid": …}` says that it waits. A second line lets it publish what is new; then `{"status": …, "said": …}` follows.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from sidecar import _errors
from sidecar.fs import layout, oserrors
from sidecar.volume.content import snapshot
from sidecar.volume.publish.models import Operation, VolumeConfig
from sidecar.volume.publish.store import Store

BEGIN, END = "/begin-of-the-publish", "/end-of-the-publish"

#: unshare(2), mount(2)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18

Kind = Literal["file", "nested", "upload", "set", "in-set", "transition", "delete", "prepare"]

# Old and new contents by name; None is a file that is not there.
OLD_FILE, NEW_FILE = b"old " * 3000, b"new!" * 3000
OLD_SET: Mapping[str, bytes] = {"a": b"old a", "sub/b": b"old b", "sub/same": b"same", "gone": b"x"}
NEW_SET: Mapping[str, bytes] = {"a": b"new a", "sub/b": b"new b", "sub/same": b"same", "come": b"y"}

STATES: Mapping[Kind, tuple[Mapping[str, bytes], Mapping[str, bytes]]] = {
    "file": ({"config": OLD_FILE}, {"config": NEW_FILE}),
    "nested": ({"x": b"x"}, {"x": b"x", "deep/er/config": NEW_FILE}),
    "upload": ({"config": OLD_FILE}, {"config": NEW_FILE}),
    "set": (OLD_SET, NEW_SET),
    "in-set": (OLD_SET, {**OLD_SET, "sub/b": NEW_FILE}),
    "transition": ({"a": b"loose a", "sub/b": b"loose b"}, NEW_SET),
    "delete": ({"config": OLD_FILE, "x": b"x"}, {"x": b"x"}),
    "prepare": (OLD_SET, OLD_SET),
}


def store_at(directory: str, *, grace: float = 0.0) -> Store:
    return Store(VolumeConfig(directory, 0o640, None, 3, grace, 1 << 20))


def begin(kind: Kind, directory: str) -> Callable[[], object]:
    """Publish what is old, and return what publishes the new. Every path has been walked once by then."""
    store = store_at(directory)
    store.prepare({}, Operation())
    old, new = STATES[kind]
    if kind in ("set", "in-set", "prepare"):
        for files in (NEW_SET, OLD_SET):
            store.publish(files, Operation())
        if kind == "prepare":
            leave_behind(directory)
    else:
        for name, data in old.items():
            for content in (b"older", data):
                store.put(name, content, Operation())
    return {
        "file": lambda: store.put("config", new["config"], Operation()),
        "nested": lambda: store.put("deep/er/config", NEW_FILE, Operation()),
        "upload": lambda: upload(store, directory, new["config"]),
        "set": lambda: store.publish(new, Operation()),
        "in-set": lambda: store.put("sub/b", new["sub/b"], Operation()),
        "transition": lambda: store.publish(new, Operation()),
        "delete": lambda: store.delete("config", Operation()),
        "prepare": lambda: store.prepare({}, Operation()),
    }[kind]


def leave_behind(directory: str) -> None:
    """Make what killed writers leave: a file, a link, a directory, a generation that never came in force."""
    os.makedirs(f"{directory}/..tmp-dead/sub")
    os.mkdir(f"{directory}/..gen-99999999999999999999-dead")
    os.symlink("..data/come", f"{directory}/..tmp-link")
    os.unlink(f"{directory}/a")
    for path in ("..tmp-file", "..tmp-dead/sub/b"):
        with open(f"{directory}/{path}", "wb") as file:
            file.write(b"half")


def upload(store: Store, directory: str, data: bytes) -> object:
    """Receive a content in three pieces, as `Volume.stage` does."""
    staged = store.stage(Operation())
    assert staged is not None
    try:
        for start in range(0, len(data), 4096):
            with oserrors.map_publish_errors(f"receive a content in {directory}"):
                staged.write(data[start : start + 4096])
        version = hashlib.sha256(data).hexdigest()[: snapshot.VERSION_DIGITS]
        return store.put("config", (staged, version), Operation())
    finally:
        staged.discard()


def child(kind: Kind, directory: str, out: int) -> None:
    def say(**facts: Any) -> None:
        os.write(out, json.dumps(facts).encode() + b"\n")

    publish = begin(kind, directory)
    open_before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    say(ready=True)
    # A call of which the publish itself makes none: whether strace sees it or not, the counts stay the same.
    signal.sigwait([signal.SIGUSR1])
    mark(BEGIN)
    try:
        publish()
    except _errors.SidecarError as error:
        outcome, message = type(error).__name__, str(error)
    else:
        outcome, message = "published", ""
    say(outcome=outcome)
    mark(END)
    leaked = len(os.listdir("/proc/self/fd")) - open_before
    say(message=message, leaked=leaked)
    # strace follows no fork: whatever is counted beyond the end of the publish, no fault reaches who looks at it.
    if (observer := os.fork()) == 0:
        say(left=left_over(directory), shown=shown(kind, directory))
        with contextlib.suppress(_errors.FileMissing):  # it was deleted the first time
            publish()
        say(again=shown(kind, directory))
        os._exit(0)
    assert os.waitpid(observer, 0)[1] == 0


def state(directory: str) -> dict[str, bytes]:
    """What a reader takes in: the set in force, or the loose files."""
    try:
        return dict(store_at(directory).snapshot())
    except _errors.NothingPublished:
        return {}


def shown(kind: Kind, directory: str) -> str:
    """Which of the two states a reader sees."""
    old, new = STATES[kind]
    found = state(directory)
    return "new" if found == new else "old" if found == old else f"torn: {found}"


def left_over(directory: str) -> list[str]:
    """Temporary entries, and generations that never came in force."""
    entries = os.listdir(directory)
    current = os.readlink(f"{directory}/{layout.DATA}") if layout.DATA in entries else ""
    unborn = [e for e in entries if e.startswith(layout.GENERATION) and e > current]
    return [e for e in entries if e.startswith(layout.TEMPORARY)] + unborn


def mark(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return


def keep_mounts() -> None:
    """Have mounts of its own, where that is permitted: how many reads their table takes is counted in each run."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)


def serve() -> None:
    keep_mounts()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    # Where Yama guards ptrace(2), a process has to permit it to those that are not its parents.
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(request["kind"], request["directory"], write_end)
            except BaseException as error:
                os.write(write_end, json.dumps({"broken": repr(error)}).encode() + b"\n")
                raise
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as said:
            facts = json.loads(said.readline() or "{}")
            print(json.dumps({"pid": pid, **facts}), flush=True)
            sys.stdin.readline()
            os.kill(pid, signal.SIGUSR1)
            for more in said:
                facts |= json.loads(more)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **facts}), flush=True)


if __name__ == "__main__":
    serve()
