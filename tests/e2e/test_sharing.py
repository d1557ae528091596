"""Writer and reader as real processes on one directory, under load: nobody ever sees a mixture.

Contents say what they are: a number, repeated to a length that depends on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar import Volume
from sidecar.testing import rewrite_in_place, until
from sidecar.volume.content import loader
from support import FreePorts, StartProcess

READERS = 4
PAUSE = 0.002
"""Seconds between two reads of one reader: all share two cores with the publisher."""

FILE_PUBLISHER = """
import asyncio, sys
from sidecar import Volume
from pathlib import Path

async def main(path, publishes):
    volume = Volume(path.parent, keep=3)
    for number in range(1, publishes + 1):
        await volume.put(path.name, (b"%d;" % number) * (1 + number % 700))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""

SET_PUBLISHER = """
import asyncio, sys
from sidecar import Volume

async def main(directory, publishes):
    volume = Volume(directory, keep=2)
    for number in range(1, publishes + 1):
        content = (b"%d;" % number) * (1 + number % 700)
        await volume.publish({name: name.encode() + content for name in ("a", "b", "c/d")})

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of publishes to a disk would take minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sidecar-test-") as directory:
        yield Path(directory)


def content(number: int) -> bytes:
    return (b"%d;" % number) * (1 + number % 700)


def is_whole(data: bytes) -> bool:
    """Whether the bytes are one content of `content`, complete."""
    head, _, _ = data.partition(b";")
    return head.isdigit() and data == content(int(head))


@asynccontextmanager
async def pair(
    sidecar_process: StartProcess, ports: list[int], path: Path, *options: str
) -> AsyncIterator[tuple[str, str, aiohttp.ClientSession]]:
    """Start `sidecar write` and `sidecar read` on a path; yield their addresses and a client."""
    writer, reader = (f"http://127.0.0.1:{port}" for port in ports)
    sidecar_process(
        "write", "--path", path, "--port", ports[0], "--keep", 3, until=f"{writer}/readyz"
    )
    sidecar_process("read", "--path", path, "--port", ports[1], *options, until=f"{reader}/readyz")
    async with aiohttp.ClientSession() as client:
        yield writer, reader, client


def in_threads(work: Callable[[threading.Event, list[int]], None]) -> Callable[[], list[int]]:
    """Start `work` in threads, each counting its reads; return what ends them and gives their counts."""
    stop = threading.Event()
    counts = [[0] for _ in range(READERS)]
    errors: list[BaseException] = []

    def guarded(count: list[int]) -> None:
        try:
            work(stop, count)
        except BaseException as error:  # noqa: BLE001 (raised again by `finish`, in the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()

    def finish() -> list[int]:
        stop.set()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [count[0] for count in counts]

    return finish


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("publishes", [8_000, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_no_reader_sees_a_torn_empty_or_missing_file(
    publishes: int,
    sidecar_process: StartProcess,
    start_process: StartProcess,
    free_port: int,
    memory: Path,
) -> None:
    """4 readers over HTTP and 4 over the file system: every body is one whole content, and its digest its ETag."""
    path = memory / "config"
    path.write_bytes(content(0))
    url = f"http://127.0.0.1:{free_port}"
    sidecar_process("read", "--path", path, "--port", free_port, until=f"{url}/readyz")

    def read_files(stop: threading.Event, count: list[int]) -> None:
        while not stop.wait(PAUSE):
            assert is_whole(path.read_bytes())
            count[0] += 1

    async def read_http(client: aiohttp.ClientSession, count: list[int]) -> None:
        while publisher.popen.poll() is None:
            async with client.get(f"{url}/raw") as answer:
                body = await answer.read()
                assert answer.status == 200
                assert is_whole(body)
                assert answer.headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                count[0] += 1
            await asyncio.sleep(PAUSE)

    publisher = start_process(sys.executable, "-c", FILE_PUBLISHER, path, publishes)
    finish = in_threads(read_files)
    http_counts = [[0] for _ in range(READERS)]
    async with aiohttp.ClientSession() as client:
        await asyncio.gather(*(read_http(client, count) for count in http_counts))
        file_counts = finish()
        async with client.get(
            f"{url}/raw", headers={"Prefer": "wait=5", "If-None-Match": '"another"'}
        ) as answer:
            assert await answer.read() == content(publishes)

    assert publisher.wait() == 0
    assert min(*file_counts, *(count[0] for count in http_counts)) > publishes / 80


async def test_what_the_writer_acknowledges_is_what_the_reader_serves(
    sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path
) -> None:
    """The ETag of a PUT is the one under which the reader has these bytes, a moment later."""
    path = tmp_path / "config"
    async with pair(sidecar_process, free_ports(2), path) as (writer, reader, client):
        for number in range(1, 200):
            async with client.put(f"{writer}/files/config", data=content(number)) as answer:
                assert answer.status == 204
                etag = answer.headers["ETag"]
            url = f"{reader}/files/config"
            while True:
                async with client.get(url) as answer:
                    body = await answer.read()
                    if answer.headers["ETag"] == etag:
                        break
            assert body == content(number)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("publishes", [4_000, pytest.param(20_000, marks=pytest.mark.soak)])
async def test_no_reader_sees_a_mixed_set(
    publishes: int,
    sidecar_process: StartProcess,
    start_process: StartProcess,
    free_port: int,
    memory: Path,
) -> None:
    """Three files change together, and every answer and every look holds three of one generation."""
    names = ("a", "b", "c/d")
    directory = memory / "site"

    def check(found: Mapping[str, bytes]) -> None:
        contents = {found[name].removeprefix(name.encode()) for name in names}
        assert len(contents) == 1
        assert is_whole(contents.pop())

    await Volume(directory).publish({name: name.encode() + content(0) for name in names})
    url = f"http://127.0.0.1:{free_port}"
    sidecar_process("read", "--path", directory, "--port", free_port, until=f"{url}/readyz")

    def read_pinned(stop: threading.Event, count: list[int]) -> None:
        fd = os.open(directory, os.O_RDONLY)
        while not stop.wait(PAUSE):
            found = loader.read_directory(fd, str(directory), limit=1 << 20, before=None)
            check(found.snapshot)
            count[0] += 1
        os.close(fd)

    async def read_http(client: aiohttp.ClientSession, count: list[int]) -> None:
        while publisher.popen.poll() is None:
            async with client.get(url) as answer:
                found = await answer.json()
                check({name: text.encode() for name, text in found.items()})
                count[0] += 1
            await asyncio.sleep(PAUSE)

    publisher = start_process(sys.executable, "-c", SET_PUBLISHER, directory, publishes)
    finish = in_threads(read_pinned)
    http_counts = [[0] for _ in range(READERS)]
    async with aiohttp.ClientSession() as client:
        await asyncio.gather(*(read_http(client, count) for count in http_counts))
    file_counts = finish()

    assert publisher.wait() == 0
    assert min(*file_counts, *(count[0] for count in http_counts)) > publishes / 100


@pytest.mark.slow
async def test_a_careless_writer_is_never_served_in_the_middle(
    sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path
) -> None:
    """Truncated, written in two pieces, closed: what is served is what was there before, or all of it."""
    path = tmp_path / "config"
    path.write_bytes(content(0))
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}/raw"
    sidecar_process("read", "--path", path, "--port", port, until=f"http://127.0.0.1:{port}/readyz")
    bodies: list[bytes] = []
    writing = True

    async def read(client: aiohttp.ClientSession) -> None:
        while writing:
            async with client.get(url) as answer:
                assert answer.status == 200
                bodies.append(await answer.read())

    async with aiohttp.ClientSession() as client:
        reader = asyncio.create_task(read(client))
        for number in range(1, 40):
            pause = 0.0 if number % 4 else 0.15
            await asyncio.to_thread(rewrite_in_place, path, content(number), pause)
        await until(lambda: bodies[-1] == content(39))
        writing = False
        await reader

    assert len(bodies) > 100
    assert [body for body in bodies if not is_whole(body)] == []
