"""What a probe may judge, what a limit is, how a Pod ends: rendered Pods, run as the kubelet runs them.

Each of the first four would deadlock if a probe judged what another container or a client has to mend.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pod import podman, tools
from pod.kubelet import Kubelet, running
from pod.podman import get, http_call, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow, pytest.mark.usefixtures("image")]

WRITER, READER = 8080, 8081
# The periods are shortened, and a machine under load still needs its time for a start.
PATIENT = {"startup": {"failureThreshold": 1000}}
QUICK = {"drain": {"delay": 0.5, "timeout": 10}, "probes": PATIENT}
SET = {"path": "/shared/site/", **QUICK}
MIB = b"x" * (1 << 20)


def put(pod: Kubelet, name: str, body: bytes) -> int:
    """Publish by way of the Service."""
    return http_call("PUT", f"{pod.endpoint(WRITER)}/files/{name}", body).status


def stays_ready(pod: Kubelet, periods: int = 3) -> bool:
    """Whether readiness holds for as long as it takes the kubelet to find the opposite."""
    asked = pod.container("reader").spec["readinessProbe"]
    end = (
        time.monotonic()
        + (periods + asked["failureThreshold"]) * asked["periodSeconds"] * pod.scale
    )
    while time.monotonic() < end:
        if not pod.ready:
            return False
        time.sleep(0.02)
    return True


def test_a_reader_of_an_empty_directory_lets_its_writer_be_reached() -> None:
    """Not ready before the first content, it would keep out of the Service the writer that has to bring one."""
    with running(SET) as pod:
        until(lambda: pod.ready, timeout=60)
        assert get(f"{pod.endpoint(READER)}/").status == 503
        assert put(pod, "a.txt", b"first") == 201
        until(lambda: get(f"{pod.endpoint(READER)}/files/a.txt").text == "first")
        assert [one.restarts for one in pod.lasting] == [0, 0]


def test_a_reader_waits_for_a_slow_producer_without_being_restarted() -> None:
    """A content that comes after the time of the startup probe is no fault of the reader."""
    values = {**SET, "writer": {"enabled": False}, "probes": {"startup": {"failureThreshold": 30}}}
    with running(values) as pod:
        startup = pod.container("reader").spec["startupProbe"]
        until(lambda: pod.ready, timeout=60)
        before = pod.container("reader").restarts
        time.sleep(startup["failureThreshold"] * startup["periodSeconds"] * pod.scale)
        (pod.directory() / "site").mkdir()
        (pod.directory() / "site" / "a.txt").write_text("late")
        until(lambda: get(f"{pod.endpoint(READER)}/files/a.txt").text == "late")
        assert pod.container("reader").restarts == before


def test_a_native_reader_starts_before_its_producer() -> None:
    """The kubelet starts the writer when the startup probe of the native sidecar before it has succeeded."""
    values = {"reader": {"native": True}, "pod": {"terminationGracePeriodSeconds": 45}, **SET}
    with running(values) as pod:
        until(lambda: pod.ready, timeout=60)
        assert put(pod, "a.txt", b"first") == 201
        until(lambda: get(f"{pod.endpoint(READER)}/files/a.txt").text == "first")
        pod.stop()
        assert pod.ended == ["writer", "reader"]


def test_initial_content_is_there_before_the_containers_and_stays_out_of_the_way() -> None:
    """The init container publishes where nothing is yet; when it runs again, on a volume that stays, the newer content stays."""
    with running({"initialContent": {"text": "at first"}, **QUICK}) as pod:
        until(lambda: pod.ready, timeout=60)
        assert get(pod.endpoint(READER)).text == '"at first"'
        assert put(pod, "content", b"newer") == 204
        pod.podman("start", "--attach", f"{pod.name}-writer-initial")
        assert (pod.directory() / "content").read_bytes() == b"newer"


def test_a_full_volume_is_read_and_healed_by_way_of_the_service() -> None:
    """Unready while it is full, the Pod would answer no reads, and the DELETE that heals it could not come in."""
    memory = {"medium": "Memory", "sizeLimit": "4Mi"}
    values = {"volume": {"emptyDir": memory}, "writer": {"keep": 0, "volumeBudget": "1Gi"}, **SET}
    with running(values) as pod:
        until(lambda: pod.ready, timeout=60)
        files = [f"{number}.bin" for number in range(8)]
        assert [put(pod, name, MIB) for name in files].count(507) >= 1
        assert stays_ready(pod)
        until(lambda: get(f"{pod.endpoint(READER)}/files/{files[0]}").body == MIB)
        assert http_call("DELETE", f"{pod.endpoint(WRITER)}/files/{files[0]}").status == 204
        until(lambda: put(pod, files[0], MIB) == 201)


@pytest.mark.parametrize(("budget", "evicted"), [(None, False), ("1Gi", True)])
def test_the_limit_of_the_volume_is_answered_and_never_reached(budget: Any, evicted: bool) -> None:
    """507 with the budget that the chart gives; without one the kubelet evicts the Pod, and its content is gone."""
    values = {
        "volume": {"emptyDir": {"sizeLimit": "16Mi"}},
        "writer": {"volumeBudget": budget},
        **SET,
    }
    with running(values, scale=0.02) as pod:
        until(lambda: pod.ready, timeout=60)
        said = set()
        for number in range(40):
            try:
                said.add(put(pod, f"{number}.bin", MIB))
            except OSError:
                break
        if evicted:
            until(lambda: pod.evicted)
        else:
            assert said == {201, 507}
            assert stays_ready(pod)
            assert pod.evicted is None
            assert get(f"{pod.endpoint(READER)}/files/0.bin").body == MIB


def test_what_was_begun_is_whole_although_the_network_ends_with_the_pod() -> None:
    """An answer is acknowledged by its client before the last process ends: then the network of the Pod is gone."""
    with running(QUICK) as pod, contextlib.ExitStack() as stack:
        until(lambda: pod.ready, timeout=60)
        body = os.urandom(1_000_000)
        assert put(pod, "content", body) in {201, 204}
        until(lambda: get(f"{pod.endpoint(READER)}/raw").body == body)
        reading, writing, uploading = (
            stack.enter_context(contextlib.closing(connect(pod, port)))
            for port in (READER, WRITER, WRITER)
        )
        reading.request("GET", "/raw")
        writing.request("GET", "/files/content")
        downloads = [reading.getresponse(), writing.getresponse()]
        uploading.putrequest("PUT", "/files/other")
        uploading.putheader("Content-Length", str(len(body)))
        uploading.endheaders(body[:1000])
        clients = stack.enter_context(ThreadPoolExecutor())
        ending = clients.submit(pod.stop)
        taken = [clients.submit(take_slowly, answer) for answer in downloads]
        for start in range(1000, len(body), 100_000):
            time.sleep(0.1)  # a client that sends 1 MB a second
            uploading.send(body[start : start + 100_000])
        assert uploading.getresponse().status == 201
        assert [one.result(60) == body for one in taken] == [True, True]
        ending.result(60)


def connect(pod: Kubelet, port: int) -> http.client.HTTPConnection:
    """Connect with a small buffer: what the client has not taken is on its way, and not with it."""
    connection = http.client.HTTPConnection(pod.address, port, timeout=20)
    connection.sock = socket.socket()
    connection.sock.settimeout(20)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.sock.connect((pod.address, port))
    return connection


def take_slowly(answer: http.client.HTTPResponse) -> bytes:
    """Be a client that takes 0.5 MB a second."""
    taken = b""
    with answer:
        while piece := answer.read(50_000):
            taken += piece
            time.sleep(0.1)
    return taken


def test_the_last_lines_of_an_application_are_delivered_before_the_network_ends(image: str) -> None:
    """The collector, a native sidecar, ends after the application, and only when its receiver has acknowledged."""
    program = (
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "log = open('/shared/app.log', 'w', 1)\n"
        "signal.sigwait({signal.SIGTERM})\n"
        "log.writelines(f'{number} ' + 'x' * 100 + '\\n' for number in range(20_000))\n"
    )
    app = {
        "name": "app",
        "image": image,
        "command": ["python3", "-c", program],
        "securityContext": {"runAsUser": 20000, "runAsGroup": 65532},
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }
    with slow_receiver() as (address, lines):
        values = {
            "writer": {"enabled": False},
            "reader": {"enabled": False},
            "collector": {"enabled": True, "files": ["*.log"], "sinks": [address]},
            "extraContainers": [app],
            "probes": PATIENT,
        }
        with running(values) as pod:
            until(lambda: pod.ready and (pod.directory() / "app.log").exists(), timeout=60)
            pod.stop()
            assert pod.ended == ["app", "logs"]
    assert sorted(lines) == list(range(20_000))


@contextlib.contextmanager
def slow_receiver() -> Iterator[tuple[str, list[int]]]:
    """A receiver on this machine that takes 64 KiB each 20 ms: its address for a Pod, and the numbers of the lines it has."""
    numbers: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b""
            while len(body) < int(self.headers["Content-Length"]):
                if not (piece := self.rfile.read1(1 << 16)):
                    return  # it ended in the middle
                body += piece
                time.sleep(0.02)
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            told = [json.loads(line) for line in body.splitlines()]
            numbers.extend(int(one["message"].split()[0]) for one in told)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (network,) = json.loads(podman.podman("network", "inspect", "podman").stdout)
    with http.server.ThreadingHTTPServer(("", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{network['subnets'][0]['gateway']}:{server.server_port}/", numbers
        server.shutdown()


def test_a_pod_with_a_certificate_is_asked_and_confirmed_by_https(tmp_path: Path) -> None:
    """Probes, the Service, and the writer that waits for the reader of its Pod all speak TLS then."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    tools.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days=2", "-subj=/CN=demo", "-keyout", key, "-out", cert,
    )  # fmt: skip
    secrets = {"certificate": {"tls.crt": cert.read_text(), "tls.key": key.read_text()}}
    with running({"tls": {"secret": "certificate"}, **QUICK}, secrets=secrets) as pod:
        until(lambda: pod.ready, timeout=60)
        url = pod.endpoint(WRITER, "https") + "/files/content"
        answer = http_call("PUT", url, b"sealed", prefer="wait=10")
        assert answer.status in {201, 204}, answer.text
        assert get(pod.endpoint(READER, "https")).text == '"sealed"'


def test_the_imitation_restarts_what_is_dead_and_takes_what_is_not_ready_out_of_its_service(
    image: str,
) -> None:
    """The rules of the kubelet itself, with a container whose answers are files of the test."""
    program = (
        "import http.server, os\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(503 if os.path.exists('/shared' + self.path) else 200)\n"
        "        self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "http.server.ThreadingHTTPServer(('', 9000), H).serve_forever()\n"
    )
    probe = {"periodSeconds": 2, "failureThreshold": 2}
    own = {
        "name": "own",
        "image": image,
        "command": ["python3", "-c", program],
        "ports": [{"name": "own", "containerPort": 9000}],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        "startupProbe": {
            "httpGet": {"path": "/start", "port": "own"},
            **probe,
            "failureThreshold": 1000,
        },
        "livenessProbe": {"httpGet": {"path": "/live", "port": "own"}, **probe},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "own"}, **probe},
    }
    values = {
        "writer": {"enabled": False},
        "pod": {"terminationGracePeriodSeconds": 1},
        "drain": {"delay": 0, "timeout": 0.5},
        "probes": PATIENT,
        "extraContainers": [own],
    }
    with running(values, scale=0.05) as pod:
        until(lambda: pod.ready, timeout=60)
        switch(pod.directory() / "ready")
        until(lambda: not pod.ready)
        with pytest.raises(ConnectionRefusedError, match="no endpoint"):
            pod.endpoint(READER)
        (pod.directory() / "ready").unlink()
        until(lambda: pod.ready, timeout=60)
        assert pod.container("own").restarts == 0
        switch(pod.directory() / "live")
        until(lambda: pod.container("own").restarts >= 1)
        (pod.directory() / "live").unlink()
        until(lambda: pod.ready, timeout=60)
        assert pod.container("reader").restarts == 0
        pod.stop()
        assert podman.podman("pod", "exists", pod.name, check=False).returncode == 1


def switch(path: Path) -> None:
    path.write_text("no")
