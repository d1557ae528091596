"""Lines a CPU second from a file to a receiver of JSON, gzip included, offsets acknowledged.

    python benchmarks/logs_json.py [--lines 500000] [--width 256] [--json FILE]

The receiver is a process of its own: what is counted is our process alone, all its threads, by `time.process_time`.
The file lies in memory (/dev/shm) where there is one, so that no disk is measured.
"""

from __future__ import annotations

import asyncio
import gzip
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from _options import arguments
from _rows import Row, report
from aiohttp import web

from sidecar import logs
from sidecar.logs import json_encoding
from sidecar.logs.records import Batch, Block
from sidecar.logs.sinks import compression

GOALS = {"ndjson": 0.45, "ndjson, parse json, level, time": 0.25}
"""Of the speed of encoding and gzip alone, in the same run."""


def main() -> None:
    options = arguments(__doc__, lines=500_000, width=256).parse_args()
    queue: Any = multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(queue,), daemon=True)
    receiver.start()
    port = queue.get(timeout=30)
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as workdir:
        plain, as_json = os.path.join(workdir, "plain.log"), os.path.join(workdir, "json.log")
        write(plain, options.lines, options.width, text_line)
        write(as_json, options.lines, options.width, json_line)
        what = f"{options.width}-byte lines as JSON"
        alone = encode_only(plain)
        rows = [Row(f"{what}: encode and gzip alone", alone, "lines/CPU s")]
        url = f"http://127.0.0.1:{port}"
        for name, file, stages, sink in cases(plain, as_json, url):
            rate = asyncio.run(ship(file, stages, sink, os.path.join(workdir, f"{name}.json")))
            least = GOALS.get(name)
            peer, peer_name = (None, "") if least is None else (alone, "encode and gzip alone")
            made = Row(
                f"{what}: {name}",
                rate,
                "lines/CPU s",
                peer=peer,
                peer_name=peer_name,
                least_ratio=least,
            )
            rows.append(made)
    report(rows, options.json)
    receiver.terminate()


def cases(
    plain: str, as_json: str, url: str
) -> Sequence[tuple[str, str, Sequence[logs.Stage], Callable[[], logs.Sink]]]:
    parse = (logs.parse_json, logs.find_level, logs.find_time)
    return [
        ("ndjson", plain, (), lambda: logs.NdjsonSink(url)),
        ("ndjson, drop /healthz", plain, (logs.drop("/healthz"),), lambda: logs.NdjsonSink(url)),
        ("ndjson, parse json, level, time", as_json, parse, lambda: logs.NdjsonSink(url)),
        ("loki", plain, (), lambda: logs.LokiSink(url)),
        ("elasticsearch", plain, (), lambda: logs.ElasticsearchSink(url)),
        ("otlp", plain, (), lambda: logs.OtlpSink(url)),
        ("otlp, parse json, level, time", as_json, parse, lambda: logs.OtlpSink(url)),
    ]


async def ship(
    path: str, stages: Sequence[logs.Stage], sink: Callable[[], logs.Sink], checkpoint: str
) -> float:
    # These import their modules: start-up is not throughput.
    made, collect = sink(), logs.collect
    source = logs.tail(path, checkpoint=checkpoint)
    began = time.process_time()
    summary = await collect(source, *stages, sink=made, until_end=True)
    if summary.refused:
        raise SystemExit(f"{summary.refused} lines were refused")
    return summary.lines / (time.process_time() - began)


def encode_only(path: str) -> float:
    with open(path, "rb") as file:
        data = file.read(64 << 20)
    data = data[: data.rfind(b"\n") + 1]
    step = data.find(b"\n") + 1
    size = (1 << 20) // step * step
    blocks = [
        Block(data[at : at + size], path, "id", at, at + size, time.time_ns())
        for at in range(0, len(data) - size, size)
    ]
    began = time.process_time()
    for block in blocks:
        compression.gzipped(json_encoding.json_lines(Batch([block])))
    return len(blocks) * (size // step) / (time.process_time() - began)


def write(path: str, lines: int, width: int, make: Callable[[int, int], bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(make(number, width - 1) + b"\n" for number in range(lines))


def text_line(number: int, width: int) -> bytes:
    """Different words in each line: what repeats itself would flatter the compression."""
    head = b"2026-11-23T13:21:%02d.%06dZ INFO request id=%x " % (
        number % 60,
        number % 10**6,
        number * 2654435761 % 2**40,
    )
    words = b" ".join(b"%x" % (number * step * 40503 % 65521) for step in range(1, 60))
    return (head + words)[:width]


def json_line(number: int, width: int) -> bytes:
    text = text_line(number, width - 90).decode()
    return b'{"time":"2026-11-23T13:21:51.%06dZ","level":"info","status":200,"msg":"%b"}' % (
        number % 10**6,
        text.encode(),
    )


def receive(queue: Any) -> None:
    """Acknowledge everything, each format in its own way."""

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        if request.path.endswith("/_bulk"):
            count = gzip.decompress(body).count(b"\n") // 2
            items = ",".join(['{"create":{"_index":"i","_id":"x","status":201}}'] * count)
            return web.Response(text=f'{{"took":1,"errors":false,"items":[{items}]}}')
        if request.path.endswith("/push"):
            return web.Response(status=204)
        return web.json_response({})

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        queue.put(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
