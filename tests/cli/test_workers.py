"""`--workers N`: several processes at one port, that look like one from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from support import FreePorts, Process, StartProcess, WaitFor
from support.commands import Command

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="needs Linux")

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Program:
    """A command with several workers, and its address."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def workers(self) -> list[int]:
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in found]

    def get(self, path: str = "/", timeout: float = 10.0, **headers: str) -> tuple[int, str]:
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture
def start(
    sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path, wait_for: WaitFor
) -> Callable[..., Program]:
    """`start("read", "--drain-delay", 1)`: the command with two workers on `config`, once both have started."""

    def begin(name: str = "read", *options: object, workers: int = 2) -> Program:
        (port,) = free_ports(1)
        (tmp_path / "config").exists() or (tmp_path / "config").write_text("123")
        process = sidecar_process(
            *(name, "--path", "config", "--host", "127.0.0.1", "--port", port),
            *("--workers", workers, "--drain-delay", 0, *options),
            until=f"all {workers} workers have started" if workers > 1 else "listening on",
            cwd=tmp_path,
        )
        return Program(process, port)

    return begin


def connections(pid: int) -> int:
    """The open connections of a process, and what else it has of sockets."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(fd).startswith("socket:")
    return found


@contextlib.contextmanager
def load(program: Program, clients: int = 16) -> Iterator[Counter[str]]:
    """Ask without a pause from several clients that stay connected, and count how it ended each time."""
    ended: Counter[str] = Counter()
    over = False

    def ask() -> None:
        while not over:
            try:
                client = program.connect()
            except OSError:
                ended["not connected"] += 1
                time.sleep(0.01)
                continue
            with client, client.makefile("rb") as answers:
                ended[talk(client, answers)] += 1

    def talk(client: socket.socket, answers: BinaryIO) -> str:
        while not over:
            try:
                client.sendall(ASK)
                head = b""
                while not head.endswith(b"\r\n\r\n") and (line := answers.readline()):
                    head += line
                body = answers.read(5)
            except OSError as error:
                return type(error).__name__
            if body != b'"123"':
                return f"truncated to {head + body!r}"
            ended["answered"] += 1
            if b"Connection: close" in head:
                return "closed"
        return "closed"

    with ThreadPoolExecutor(clients) as pool:
        tasks = [pool.submit(ask) for _ in range(clients)]
        try:
            yield ended
        finally:
            over = True
    for task in tasks:
        task.result()


def test_more_workers_than_descriptors_are_refused_with_what_to_change(tmp_path: Path) -> None:
    """Each has a socket of its own at the port; the kernel's "too many open files" would tell nobody which."""
    command = [
        sys.executable,
        "-m",
        "sidecar.cli",
        "read",
        "--path",
        str(tmp_path),
        "--workers",
        "9999",
    ]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 100; exec "$@" --host 127.0.0.1 --port 0', "-", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1:" in done.stderr
    assert "no file descriptor is left (each of --workers needs one: choose fewer" in done.stderr


def test_connections_are_spread_over_the_workers(start) -> None:
    """Of 64, one by one, each has at least ten: the kernel chooses by the client's address."""
    program = start()
    before = {pid: connections(pid) for pid in program.workers}
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            client = stack.enter_context(program.connect())
            client.sendall(ASK)
            assert client.recv(1000).endswith(b'"123"')
        got = [connections(pid) - count for pid, count in before.items()]
    assert sum(got) == 64
    assert min(got) >= 10


def test_metrics_of_any_worker_are_the_sum_of_all(start) -> None:
    """Exactly, whoever is asked; also what the fast path has counted, and each state once."""
    program = start(workers=3)
    name = 'sidecar_http_requests_total{code="200"}'
    program.get()
    before = program.metric(name)
    for _ in range(100):
        assert program.get() == (200, '"123"')
    for scrape in range(10):
        assert program.metric(name) == before + 1 + 100 + scrape
    text = program.get("/metrics")[1]
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert [one for one, count in Counter(samples).items() if count > 1] == []
    assert 'sidecar_watch_mode{mode="inotify"} 1.0' in text
    assert len([one for one in samples if one.startswith("sidecar_content_info")]) == 1


def test_subscribers_are_added_up(start, wait_for: WaitFor) -> None:
    """Who listens to events may be connected to any of the workers."""
    program = start()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(program.connect())
            client.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: program.metric("sidecar_subscribers") == 20)


def test_a_killed_worker_is_replaced_while_the_others_go_on(start, wait_for: WaitFor) -> None:
    """Only its own connections are lost, and no counter goes back."""
    program = start()
    name = 'sidecar_http_requests_total{code="200"}'
    program.get()
    with load(program) as ended:
        seen = [program.metric(name)]
        victim, survivor = program.workers
        os.kill(victim, signal.SIGKILL)
        answered = ended["answered"]
        wait_for(lambda: "has ended by SIGKILL; another one begins now" in program.process.output)
        wait_for(lambda: len(program.workers) == 2 and victim not in program.workers)
        seen += [program.metric(name) for _ in range(20)]
        wait_for(lambda: ended["answered"] > answered + 100)
    assert survivor in program.workers
    assert seen == sorted(seen)
    assert program.metric("sidecar_worker_restarts_total") == 1
    lost = sum(ended.values()) - ended["answered"] - ended["closed"]
    assert lost <= 16, ended


def test_what_a_killed_worker_has_counted_stays_counted(start, wait_for: WaitFor) -> None:
    """All that it had told by the last scrape; nothing is counted twice either."""
    program = start()
    for _ in range(50):
        program.get()
    name = 'sidecar_http_requests_total{code="200"}'
    before = program.metric(name)
    os.kill(program.workers[0], signal.SIGKILL)
    wait_for(lambda: program.process.output.count("all 2 workers have started") == 2)
    assert before <= program.metric(name) <= before + 1  # that scrape may have been its last answer


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(start, workers: int, wait_for: WaitFor) -> None:
    """Each request for which there was a connection is answered whole, then nobody can connect; the status is 0."""
    program = start("read", "--drain-delay", 0.3, workers=workers)
    with load(program, clients=32) as ended:
        wait_for(lambda: ended["answered"] > 100)
        program.process.send(signal.SIGTERM)
        assert program.process.wait() == 0
    assert set(ended) <= {"answered", "closed", "not connected"}


def test_a_second_signal_ends_all_at_once(start, wait_for: WaitFor) -> None:
    """128 + its number, and no worker is left."""
    program = start("read", "--drain-delay", 60)
    workers = program.workers
    program.process.send(signal.SIGTERM)
    wait_for(lambda: program.get("/readyz")[0] == 503)
    program.process.send(signal.SIGTERM)
    assert program.process.wait() == 128 + signal.SIGTERM
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_signals_to_all_processes_at_once_drain_too(start, wait_for: WaitFor) -> None:
    """As Ctrl-C at a terminal and systemd send them: the parent's word is no second signal to a worker."""
    program = start("read", "--drain-delay", 0.3)
    for pid in (*program.workers, program.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert program.process.wait() == 0
    assert "ended with" not in program.process.output


def test_workers_do_not_outlive_a_parent_that_is_killed(start, wait_for: WaitFor) -> None:
    """At once and without draining: the port is free again, as when one process is killed."""
    program = start("read", "--drain-delay", 60)
    workers = program.workers
    program.process.send(signal.SIGKILL)
    assert program.process.wait() == -signal.SIGKILL
    wait_for(lambda: not [pid for pid in workers if alive(pid)] and is_free(program.port))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def test_a_worker_that_is_told_to_end_is_replaced_without_a_loss(start, wait_for: WaitFor) -> None:
    """It drains, and its place at the port is kept: connections wait there for the next one."""
    program = start()
    (one, _) = program.workers
    os.kill(one, signal.SIGTERM)
    wait_for(lambda: "has ended with 0; another one begins now" in program.process.output)
    for _ in range(32):
        assert program.get() == (200, '"123"')


def test_a_worker_that_hangs_fails_the_probes(start, wait_for: WaitFor) -> None:
    """Whoever is asked: a client may reach the one that hangs, and no probe can choose it."""
    program = start()
    stopped = program.workers[1]
    os.kill(stopped, signal.SIGSTOP)

    def said() -> str:
        with contextlib.suppress(OSError):  # this one has reached it
            status, text = program.get("/livez", timeout=2.0)
            return text if status == 503 else ""
        return ""

    wait_for(lambda: "worker 2: it does not answer" in said(), timeout=30)
    os.kill(stopped, signal.SIGCONT)
    wait_for(lambda: program.get("/livez")[0] == 200)


def test_what_one_worker_finds_wrong_is_told_by_all(start, wait_for: WaitFor) -> None:
    """Not ready, whoever answers: here one of them drains."""
    program = start("read", "--drain-delay", 60)
    os.kill(program.workers[0], signal.SIGTERM)
    of_others: set[bool] = set()

    def told_by_both() -> bool:
        status, text = program.get("/readyz")
        if status == 503:
            of_others.add(bool(re.search(r"worker \d: process: draining", text)))
        return of_others == {True, False}

    wait_for(told_by_both)
    program.process.send(signal.SIGTERM)
    program.process.wait_until("2 workers drain")
    program.process.send(signal.SIGTERM)
    assert program.process.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_other_workers_listen_at_is_busy(
    start, command: Command, workers: int, tmp_path: Path
) -> None:
    """`SO_REUSEPORT` would let a second program of the same user take half of the connections, unnoticed."""
    program = start()
    done = command(
        *("read", "--path", tmp_path / "config", "--host", "127.0.0.1"),
        *("--port", program.port, "--workers", workers),
    )
    assert done.code == 2
    assert f"port {program.port} is in use by another program" in done.err


def test_a_busy_port_is_told_once(command: Command, free_port: int, tmp_path: Path) -> None:
    """By the parent, in one line, with the remedy, as ever."""
    with socket.create_server(("127.0.0.1", free_port)):
        done = command(
            *("read", "--path", tmp_path / "config", "--host", "127.0.0.1"),
            *("--port", free_port, "--workers", 2),
        )
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert f"port {free_port} is in use by another program" in line


def test_all_workers_take_the_free_port_that_is_chosen(
    sidecar_process: StartProcess, tmp_path: Path
) -> None:
    """`--port 0`, with the number of the worker on each line of the log."""
    process = sidecar_process(
        *("read", "--path", tmp_path / "config", "--missing", "ok", "--host", "127.0.0.1"),
        *("--port", 0, "--workers", 3),
        until="all 3 workers have started",
    )
    told = re.findall(r"serve\[(\d)\]: listening on (\S+)", process.output)
    assert sorted(number for number, _ in told) == ["1", "2", "3"]
    assert len({address for _, address in told}) == 1


def test_a_unix_socket_is_shared_and_stays_until_the_end(
    sidecar_process: StartProcess, tmp_path: Path, command: Command, wait_for: WaitFor
) -> None:
    """A worker that ends does not remove what the others listen at."""
    path = tmp_path / "http.sock"
    process = sidecar_process(
        *("read", "--path", tmp_path / "config", "--missing", "ok", "--drain-delay", 0),
        *("--unix-socket", path, "--workers", 2),
        until="all 2 workers have started",
    )
    os.kill(Program(process, 0).workers[0], signal.SIGTERM)
    wait_for(lambda: process.output.count("listening on") == 3)
    assert path.exists()
    assert command("check", f"unix:{path}:/readyz").code == 0
    assert process.stop() == 0
    assert not path.exists()


def test_conditions_keep_the_workers_of_a_writer_apart(start) -> None:
    """Of many who create the same file one does, whichever worker each of them has reached."""
    program = start("write")

    async def create() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
        writer.write(
            b"PUT /files/new HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            b"If-None-Match: *\r\nConnection: close\r\n\r\nhi"
        )
        answer = await reader.read()
        writer.close()
        return answer.split()[1].decode()

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(create() for _ in range(20)))

    assert sorted(asyncio.run(all_of_them())) == ["201"] + ["412"] * 19
    assert program.metric('sidecar_publish_total{result="published"}') >= 1


def test_what_all_workers_have_wrong_is_said_once(
    command: Command, tmp_path: Path, certificate: Path
) -> None:
    """Before any of them begins: here a key that does not fit."""
    (tmp_path / "other.pem").write_text("no key")
    done = command(
        *("read", "--path", tmp_path / "config", "--port", 0, "--workers", 4),
        *("--tls-cert", certificate, "--tls-key", tmp_path / "other.pem"),
    )
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_the_log_as_json_names_the_worker(start) -> None:
    """A field of its own."""
    program = start("read", "--log-format", "json")
    lines = [json.loads(line) for line in program.process.output.splitlines()]
    assert {line.get("worker") for line in lines} == {None, 1, 2}
