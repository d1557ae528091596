"""Load from the other core: wrk(1), and what it has measured."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from _rows import cpu_seconds
from _servers import cores

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True)
class Load:
    """Requests that were answered, a second; how long they took (ms); what they cost the server (µs of CPU)."""

    answered: int
    rate: float
    median: float
    p99: float
    cost: float


def load(
    pid: int,
    port: int,
    path: str = "/",
    *,
    scheme: str = "http",
    seconds: int = 3,
    connections: int = 64,
    headers: tuple[str, ...] = (),
    script: str | None = None,
) -> Load:
    """Send requests for so many seconds over so many connections that stay open.

    Raises:
        RuntimeError: there were errors, so the numbers would mean nothing.
    """
    url = f"{scheme}://127.0.0.1:{port}{path}"
    more = [part for header in headers for part in ("-H", header)]
    more += ["-s", script] if script else []
    command = ["taskset", "-c", str(cores()[1]), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    before = cpu_seconds(pid)
    printed = subprocess.run(
        [*command, "--latency", "--timeout", "10s", *more, url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    spent = cpu_seconds(pid) - before
    if wrong := re.findall(r"(?:Socket errors|Non-2xx or 3xx).*", printed):
        raise RuntimeError(f"{url}: {'; '.join(wrong)}")
    answered = int(_found(r"(\d+) requests in", printed))
    return Load(
        answered,
        float(_found(r"Requests/sec:\s+([\d.]+)", printed)),
        _milliseconds(_found(r"^ +50% +(\S+)", printed)),
        _milliseconds(_found(r"^ +99% +(\S+)", printed)),
        spent / answered * 1e6,
    )


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk says no {pattern!r}: {text}")
    return found[1]


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([a-z]+)", text)
    if found is None:
        raise RuntimeError(f"wrk says {text!r} for a time")
    return float(found[1]) * _UNITS[found[2]]
