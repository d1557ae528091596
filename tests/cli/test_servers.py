"""`sidecar write` and `sidecar read`, as processes: the article's transcript, their options, their end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from support import FreePorts, Process, StartProcess, WaitFor
from support.commands import Command


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as one:
            return one.status, one.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Server:
    """A running command, and its address."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        return get(self.url + path, **headers)


@pytest.fixture
def serve(sidecar_process: StartProcess, free_ports: FreePorts, tmp_path: Path):
    """`serve("write", "--path", path)`: the command on a free port, once it answers."""

    def start(name: str, *options: object, env: dict[str, str] | None = None) -> Server:
        (port,) = free_ports(1)
        process = sidecar_process(
            name,
            *("--host", "127.0.0.1", "--port", port, "--drain-delay", 0, *options),
            until=f"http://127.0.0.1:{port}/livez",
            cwd=tmp_path,
            env=env,
        )
        return Server(process, port)

    return start


def test_the_transcript_of_the_article(serve, wait_for: WaitFor) -> None:
    """First read "" then "ok" then "123"; the directory is made, and both end with 0."""
    writer = serve("write", "--path", "gin/config")
    reader = serve("read", "--path", "gin/config", "--missing", "ok")
    assert reader.get() == (200, '""')
    assert writer.get("/?content=ok") == (200, '"ok"')
    wait_for(lambda: reader.get() == (200, '"ok"'))
    assert writer.get("/?content=123") == (200, '"ok"')
    wait_for(lambda: reader.get() == (200, '"123"'))
    assert writer.process.stop() == 0
    assert reader.process.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("command", ["write", "read", "collect"])
def test_as_many_descriptors_are_asked_for_as_may_be_had(
    command: str, start_process: StartProcess, free_port: int, tmp_path: Path
) -> None:
    """Of containers the soft limit is 1,024 often, and the hard one a thousand times as much."""
    where = tmp_path / "config"
    options = (
        [where, "--sink", f"file://{tmp_path}/out"] if command == "collect" else ["--path", where]
    )
    process = start_process(
        *("sh", "-c", 'ulimit -Sn 100; ulimit -Hn 500; exec "$@"', "-"),
        *(sys.executable, "-m", "sidecar.cli.main", command, *options, "--port", free_port),
        until=f"http://127.0.0.1:{free_port}/livez",
    )
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE) == ["500"]


@pytest.mark.root
def test_process_1_obeys_a_signal_while_it_is_still_importing(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The kernel drops one that nobody handles: a Pod that is stopped while it starts would wait for SIGKILL."""
    (tmp_path / "orjson.py").write_text("import time\nprint('importing')\ntime.sleep(60)\n")
    command = (sys.executable, "-m", "sidecar.cli.main", "read", "--path", tmp_path / "config")
    process = start_process(
        "unshare",
        "--pid",
        "--fork",
        *command,
        env={"PYTHONPATH": str(tmp_path)},
        until="importing\n",
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (inner,) = [int(pid) for pid in children.read_text().split()]
    os.kill(inner, signal.SIGTERM)
    assert process.wait() == 143


def test_a_reader_alone_says_what_it_is_told_to_say(serve) -> None:
    """`--missing ok` is the article's reader; without it, nothing published is an error."""
    assert serve("read", "--path", "gin/config", "--missing", "ok").get() == (200, '"ok"')
    honest = serve("read", "--path", "gin/config")
    assert honest.get()[0] == 503
    assert honest.get("/readyz")[0] == 200
    assert honest.get("/livez")[0] == 200


def test_content_survives_a_restart_of_the_writer(serve, tmp_path: Path) -> None:
    """In the article a restart wipes it."""
    writer = serve("write", "--path", "config")
    assert writer.get("/?content=kept") == (200, '"ok"')
    assert writer.process.stop() == 0
    serve("write", "--path", "config")
    assert (tmp_path / "config").read_text() == "kept"


@pytest.mark.parametrize("name", ["write", "read"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_it_not_ready_before_it_ends(
    name: str, number: int, serve, tmp_path: Path, wait_for: WaitFor
) -> None:
    """503 on /readyz while requests are still answered, for --drain-delay; a second signal ends it at once.

    Then the exit code is 128 + the number of the signal, whatever was still going on.
    """
    (tmp_path / "config").write_text("hello")
    server = serve(name, "--path", "config", "--drain-delay", "60")
    wait_for(lambda: server.get("/readyz")[0] == 200)
    server.process.send(number)
    wait_for(lambda: server.get("/readyz")[0] == 503)
    assert server.get("/livez")[0] == 200
    server.process.send(number)
    assert server.process.wait() == 128 + number


@pytest.mark.parametrize("name", ["write", "read"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_the_delay_it_ends_with_0(name: str, number: int, serve) -> None:
    """Once, by itself."""
    server = serve(name, "--path", "config", "--drain-delay", "100ms")
    server.process.send(number)
    assert server.process.wait() == 0


def test_a_request_that_runs_is_finished_before_the_end(serve, tmp_path: Path) -> None:
    """An upload that has begun when SIGTERM comes is published, and its client gets its answer."""
    writer = serve("write", "--path", "config")
    host, port = writer.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            b"PUT /files/config HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")  # now it is under way
        client.sendall(b"ab")
        writer.process.send(signal.SIGTERM)
        writer.process.wait_until("draining")
        client.sendall(b"cd")
        assert client.recv(1000).startswith(b"HTTP/1.1 204 ")
    assert writer.process.wait() == 0
    assert (tmp_path / "config").read_text() == "abcd"


@pytest.mark.parametrize("name", ["write", "read"])
def test_a_busy_port_is_told_with_its_remedy(name: str, command: Command, free_port: int) -> None:
    """Which port, and which flag chooses another; one line, and no success."""
    with socket.create_server(("127.0.0.1", free_port)):
        done = command(name, "--path", "config", "--host", "127.0.0.1", "--port", free_port)
    assert done.code in (1, 2)
    (line,) = [line for line in done.err.splitlines() if line.startswith("sidecar: ")]
    assert str(free_port) in line
    assert "port" in line


def test_a_free_port_is_chosen_and_told(sidecar_process: StartProcess, tmp_path: Path) -> None:
    """`--port 0`: the address is in the log."""
    process = sidecar_process(
        *("write", "--path", tmp_path / "config", "--host", "127.0.0.1", "--port", 0),
        until="listening on ",
    )
    address = process.output.split("http://", 1)[1].split()[0].rstrip("/,;)")
    assert get(f"http://{address}/livez")[0] == 200


def test_a_unix_socket_replaces_the_port(
    sidecar_process: StartProcess, command: Command, tmp_path: Path
) -> None:
    """`--unix-socket` alone opens no port; `sidecar check` can ask it."""
    path = tmp_path / "s.sock"
    process = sidecar_process(
        *("read", "--path", tmp_path / "config", "--missing", "ok", "--unix-socket", path),
        until="listening on",
    )
    assert command("check", f"unix:{path}:/readyz").code == 0, process
    assert "8081" not in process.output
    assert process.stop() == 0


@pytest.mark.parametrize(
    ("options", "content", "status"),
    [
        (("--format", "json"), "{", 422),
        (("--max-size", "1k"), "x" * 1001, 413),
        (("--check", "grep -q debug"), "nothing", 422),
    ],
)
def test_the_gate_of_the_command_line_stands_before_the_writer(
    options: tuple[str, ...], content: str, status: int, serve, tmp_path: Path
) -> None:
    """Each option arrives where it works; the old content stays."""
    (tmp_path / "config").write_text("old")
    writer = serve("write", "--path", "config", *options)
    assert writer.get(f"/?content={content}")[0] == status
    assert (tmp_path / "config").read_text() == "old"


def test_a_token_is_asked_of_everybody_but_probes(serve, tmp_path: Path) -> None:
    """`--token-file`, here by its variable."""
    (tmp_path / "token").write_text("secret\n")
    env = {"SIDECAR_WRITE_TOKEN_FILE": "token"}
    writer = serve("write", "--path", "config", env=env)
    assert writer.get("/?content=x")[0] == 401
    assert writer.get("/?content=x", Authorization="Bearer secret")[0] == 200
    assert writer.get("/livez")[0] == 200


def test_mode_and_history_of_the_command_line_arrive(serve, tmp_path: Path) -> None:
    """`--mode` on the file, `--keep` in the history."""
    writer = serve("write", "--path", "shared/config", "--mode", "600", "--keep", "2")
    for content in "123":
        assert writer.get(f"/?content={content}")[0] == 200
    assert (tmp_path / "shared" / "config").stat().st_mode & 0o777 == 0o600
    assert len(json.loads(writer.get("/versions")[1])) == 2


def test_certificate_and_key_of_the_command_line_are_served(
    sidecar_process: StartProcess,
    command: Command,
    certificate: Path,
    free_port: int,
    tmp_path: Path,
) -> None:
    """`--tls-cert` and `--tls-key`; `sidecar check --ca` is a client that verifies."""
    process = sidecar_process(
        *("read", "--path", tmp_path / "config", "--missing", "ok", "--host", "127.0.0.1"),
        *("--port", free_port, "--tls-cert", certificate, "--tls-key", tmp_path / "key.pem"),
        until="listening on https://",
    )
    url = f"https://127.0.0.1:{free_port}/readyz"
    assert command("check", url, "--ca", certificate).code == 0, process
    assert command("check", url.replace("https", "http")).code == 1


def test_a_write_can_wait_for_the_reader_of_the_command_line(serve, tmp_path: Path) -> None:
    """`--confirm`: the answer comes once the reader serves the new content."""
    reader = serve("read", "--path", "config", "--missing", "ok")
    writer = serve("write", "--path", "config", "--confirm", f"{reader.url}/")
    assert writer.get("/?content=new", Prefer="wait=10")[0] == 200
    assert reader.get() == (200, '"new"')
    assert reader.process.stop() == 0
    assert writer.get("/?content=newer", Prefer="wait=1")[0] == 202


@pytest.mark.parametrize("options", [("--poll",), ("--watch", "poll", "--recheck", "100ms")])
def test_polling_can_be_chosen(
    options: tuple[str, ...], serve, tmp_path: Path, wait_for: WaitFor
) -> None:
    """The metric says which mode is at work."""
    (tmp_path / "config").write_text("1")
    reader = serve("read", "--path", "config", *options)
    wait_for(lambda: reader.get() == (200, '"1"'))
    assert 'sidecar_watch_mode{mode="poll"} 1' in reader.get("/metrics")[1]
    temporary = tmp_path / "..tmp-of-the-test"
    temporary.write_text("2")
    temporary.rename(tmp_path / "config")
    wait_for(lambda: reader.get() == (200, '"2"'))


def test_the_log_can_be_json(serve) -> None:
    """One object a line, for log collectors."""
    writer = serve("write", "--path", "config", "--log-format", "json")
    assert writer.process.stop() == 0
    for line in writer.process.output.splitlines():
        assert json.loads(line)


@pytest.mark.parametrize("name", ["write", "read"])
def test_kubernetes_own_variables_do_not_configure_it(name: str, serve, tmp_path: Path) -> None:
    """In a namespace with Services `sidecar` and `sidecar-write` it runs as without them."""
    env = {
        "SIDECAR_PORT": "tcp://10.0.0.1:8080",
        "SIDECAR_SERVICE_HOST": "10.0.0.1",
        f"SIDECAR_{name.upper()}_PORT": "tcp://10.0.0.1:8080",
        f"SIDECAR_{name.upper()}_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    (tmp_path / "config").write_text("1")
    assert serve(name, "--path", "config", env=env).get("/livez")[0] == 200


def in_a_process(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_reader_has_no_more_in_its_memory_than_it_needs() -> None:
    """No client, no code that publishes, no second web server, no C++: 5 MB of each reader."""
    in_a_process(
        "import sys, sidecar.cli.lazy_imports as light\n"
        "with light.server_alone():\n"
        "    from sidecar.http.apps import reader; from sidecar.http.server import serve\n"
        "app = reader.reader_app('/tmp/config')\n"
        "unwanted = {'aiohttp.client', 'aiohttp.connector', 'aiohttp.cookiejar', 'http.server', 'wsgiref',\n"
        "            'frozenlist._frozenlist', 'sidecar.volume.volume', 'sidecar.volume.validation.gate'}\n"
        "assert not unwanted & set(sys.modules), unwanted & set(sys.modules)\n"
    )


def test_a_server_has_the_client_as_soon_as_it_asks_for_it() -> None:
    """It is that of aiohttp, without the certificates of the system; what was changed for it is as it was."""
    in_a_process(
        "import os, ssl, sidecar.cli.lazy_imports as light\n"
        "from importlib.metadata import version\n"
        "before, real = dict(os.environ), ssl.SSLContext.load_default_certs\n"
        "with light.server_alone():\n"
        "    from sidecar.http.server import serve; from sidecar.http.apps import writer\n"
        "import aiohttp\n"
        "assert aiohttp.__version__ == version('aiohttp')\n"
        "assert aiohttp.web is serve.web and aiohttp.http.SERVER_SOFTWARE.endswith(aiohttp.__version__)\n"
        "from aiohttp import ClientSession, client\n"
        "assert ClientSession is client.ClientSession and set(aiohttp.__all__) <= set(dir(aiohttp))\n"
        "assert aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()['x509'] == 0\n"
        "assert ssl.SSLContext.load_default_certs is real and dict(os.environ) == before\n"
        "assert ssl.create_default_context().cert_store_stats()['x509'] > 0\n"
        "assert not hasattr(aiohttp, 'no_such_name')\n"
    )


def test_in_a_program_of_a_user_aiohttp_is_what_it_is() -> None:
    """Only the commands go without its client."""
    in_a_process(
        "import sys, sidecar\n"
        "sidecar.reader_app, sidecar.writer_app, sidecar.serve\n"
        "assert 'aiohttp.client' in sys.modules and 'sidecar.cli.lazy_imports' not in sys.modules\n"
    )
