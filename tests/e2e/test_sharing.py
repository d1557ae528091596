"""Writer and reader as real processes on one directory, under load: nobody ever sees a mixture.

Contents say what they are: a number, repeated to a length that depends on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar.testing import rewrite_in_place, until
from sidecar.volume import snapshot as snapshots
from support import FreePorts, StartProcess

PUBLISHES = 20_000
READERS = 4


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
    sidecar_process(
        "read", "--path", path, "--port", ports[1], *options, until=f"{reader}/readyz"
    )
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
        except BaseException as error:
            errors.append(error)
            raise

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
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_no_reader_sees_a_torn_empty_or_missing_file_in_20000_publishes(
    sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path
) -> None:
    """4 readers over HTTP and 4 over the file system: every body is one whole content, and its digest its ETag."""
    path = tmp_path / "config"
    async with pair(sidecar_process, free_ports(2), path) as (writer, reader, client):
        async with client.put(f"{writer}/files/config", data=content(0)) as answer:
            assert answer.status == 204
        await until(lambda: path.read_bytes() == content(0))
        async with client.get(f"{reader}/raw", headers={"Prefer": "wait=5", "If-None-Match": '""'}):
            pass

        def read_files(stop: threading.Event, count: list[int]) -> None:
            while not stop.is_set():
                assert is_whole(path.read_bytes())
                count[0] += 1

        async def read_http(count: list[int]) -> None:
            seen = ""
            while number < PUBLISHES:
                async with client.get(f"{reader}/raw") as answer:
                    body = await answer.read()
                    assert answer.status == 200
                    assert is_whole(body)
                    seen = answer.headers["ETag"]
                    assert seen == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                    count[0] += 1

        number = 0
        finish = in_threads(read_files)
        http_counts = [[0] for _ in range(READERS)]
        readers = [asyncio.create_task(read_http(count)) for count in http_counts]
        lock = asyncio.Lock()

        async def publish() -> None:
            nonlocal number
            while number < PUBLISHES:
                async with lock:
                    number += 1
                    mine = number
                async with client.put(f"{writer}/files/config", data=content(mine)) as answer:
                    assert answer.status in (201, 204)

        await asyncio.gather(*(publish() for _ in range(2)), *readers)
        file_counts = finish()

    assert min(*file_counts, *(count[0] for count in http_counts)) > 100


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_no_reader_sees_a_mixed_set(
    sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path
) -> None:
    """Four files change together, and every answer holds four of one generation."""
    from sidecar import Volume

    directory = tmp_path / "site"
    volume = Volume(directory, keep=2)
    names = ("a", "b", "c", "d/e")

    def files(number: int) -> dict[str, bytes]:
        return {name: name.encode() + content(number) for name in names}

    def check(found: dict[str, bytes]) -> None:
        numbers = {found[name].removeprefix(name.encode()) for name in names}
        assert len(numbers) == 1
        assert is_whole(numbers.pop())

    await volume.publish(files(0))
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    sidecar_process("read", "--path", directory, "--port", port, until=f"{url}/readyz")

    def read_pinned(stop: threading.Event, count: list[int]) -> None:
        fd = os.open(directory, os.O_RDONLY)
        while not stop.is_set():
            found = snapshots.load_directory(fd, str(directory), limit=1 << 20, before=None)
            check(dict(found.snapshot))
            count[0] += 1
        os.close(fd)

    publishing = True

    async def read_http(client: aiohttp.ClientSession, count: list[int]) -> None:
        while publishing:
            async with client.get(url) as answer:
                found = await answer.json()
                check({name: text.encode() for name, text in found.items()})
                count[0] += 1

    finish = in_threads(read_pinned)
    http_counts = [[0] for _ in range(READERS)]
    async with aiohttp.ClientSession() as client:
        readers = [asyncio.create_task(read_http(client, count)) for count in http_counts]
        for number in range(1, 2001):
            await volume.publish(files(number))
        publishing = False
        await asyncio.gather(*readers)
    file_counts = finish()

    assert min(*file_counts, *(count[0] for count in http_counts)) > 50


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
    assert all(is_whole(body) for body in bodies)
