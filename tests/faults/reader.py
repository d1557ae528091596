"""Programs that read a volume as fast as they can while it is published to, and count what they find wrong.

    reader.py KIND DIRECTORY      until stdin ends; then one line of JSON on stdout

`file` opens a path, as any program does. `pinned` reads a set as ours do.
`resolved` follows `..data` once and opens the files of that generation, as careful readers of a ConfigMap do.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping

from sidecar.fs import openat
from sidecar.volume.content import loader

#: As large as it takes for a copy to be seen half done.
FILLING = 2000


def content(number: int, name: str = "config") -> bytes:
    """A content that proves itself: a digest, and what it is the digest of."""
    payload = f"{number} {name} ".encode() + b"%d" % (number % 10) * FILLING
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def number_in(data: bytes) -> int:
    """Return the number of a content. Raises `ValueError` if it is torn."""
    digest, _, payload = data.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError(f"torn: {len(data)} bytes, {data[:40]!r}")
    return int(payload.split(b" ", 1)[0])


def read_file(directory: str) -> Mapping[str, bytes]:
    with open(f"{directory}/config", "rb") as file:
        return {"config": file.read()}


def read_pinned(directory: str) -> Mapping[str, bytes]:
    fd = openat.open_directory(directory)
    try:
        return loader.read_directory(fd, directory, limit=1 << 20, before=None).snapshot
    finally:
        os.close(fd)


def read_resolved(directory: str) -> Mapping[str, bytes]:
    generation = os.path.realpath(f"{directory}/..data")
    found = {}
    for name in ("config", "other"):
        with open(f"{generation}/{name}", "rb") as file:
            found[name] = file.read()
    return found


READ: Mapping[str, Callable[[str], Mapping[str, bytes]]] = {
    "file": read_file,
    "pinned": read_pinned,
    "resolved": read_resolved,
}


def main(kind: str, directory: str) -> None:
    read, wrong, last, reads, seen = READ[kind], Counter[str](), 0, 0, 0
    while not (reads % 16 == 0 and select.select([sys.stdin], [], [], 0)[0]):
        reads += 1
        try:
            numbers = {number_in(data) for data in read(directory).values()}
        except (OSError, ValueError) as error:
            wrong[f"{type(error).__name__}: {error}"[:200]] += 1
            continue
        if len(numbers) != 1:
            wrong["mixed" if numbers else "empty"] += 1
            continue
        (number,) = numbers
        if number < last:
            wrong["went back"] += 1
        seen += number != last
        last = number
        time.sleep(0)
    print(json.dumps({"reads": reads, "seen": seen, "last": last, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
