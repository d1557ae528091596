"""examples/reload-nginx with the real programs: each burst ends with its last version, and what is broken is rolled back."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from sidecar import sync
from support import FreePorts, Process, StartProcess, WaitFor

EXAMPLE = Path(__file__).parents[2] / "examples" / "reload-nginx"
FILES = {"nginx": "nginx.conf", "prometheus": "prometheus.yml"}
BROKEN = {"nginx": "http { server { listen nowhere; } }\n", "prometheus": "scrape_configs: 5\n"}
BURST = 10
SEARCH = f"{os.environ['PATH']}:/usr/sbin"


pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx", path=SEARCH) and shutil.which("prometheus")),
    reason="needs nginx and prometheus (apt install nginx-light prometheus)",
)


class Site:
    """Both applications, their reloaders, and a client that never stops to ask nginx."""

    def __init__(
        self, directory: Path, ports: list[int], start: StartProcess, sidecar: StartProcess,
        wait_for: WaitFor, confirm_timeout: float,
    ) -> None:  # fmt: skip
        self.confirm_timeout = confirm_timeout
        self.shared, self.run = directory / "shared", directory / "run"
        self.run.mkdir()
        self.ports = dict(
            zip(("nginx", "prometheus", "probe-nginx", "probe-prometheus"), ports, strict=True)
        )
        self.volume = sync.Volume(self.shared)
        self.wait_for = wait_for
        self.good: dict[str, str] = {}
        self.number = 0
        self.reloaders: dict[str, Process] = {}
        for name in FILES:
            self.publish(name)
            env = {"RUN_DIR": str(self.run), "NGINX_PORT": f"127.0.0.1:{ports[0]}"}
            self.reloaders[name] = sidecar(*self._arguments(name), env={**os.environ, **env})
        for file in FILES.values():
            wait_for((self.run / file).exists)
        start(
            str(shutil.which("nginx", path=SEARCH)),
            "-c",
            self.run / "nginx.conf",
            "-g",
            "daemon off;",
        )
        start(
            "prometheus", f"--config.file={self.run}/prometheus.yml", "--web.enable-lifecycle",
            f"--storage.tsdb.path={self.run}/data", f"--web.listen-address=127.0.0.1:{ports[1]}",
        )  # fmt: skip
        for name in FILES:
            self.settle(name)

    def _arguments(self, name: str) -> list[str]:
        """Those of the Pod, with paths and ports of this machine; the number of nginx, since others may run here."""
        (pod,) = yaml.safe_load_all((EXAMPLE / "pod.yaml").read_text())
        args = next(
            one["args"] for one in pod["spec"]["initContainers"] if one["name"] == f"reload-{name}"
        )
        text = "\n".join(args)
        for old, new in (
            ("/shared", str(self.shared)),
            ("/run/app", str(self.run)),
            ("localhost:8088", f"127.0.0.1:{self.ports['nginx']}"),
            ("localhost:9090", f"127.0.0.1:{self.ports['prometheus']}"),
            ("--process=nginx", f"--pid-file={self.run}/nginx.pid"),
            ("--confirm-timeout=1.5", f"--confirm-timeout={self.confirm_timeout}"),
            ("--port=8082", f"--port={self.ports['probe-nginx']}"),
            ("--port=8083", f"--port={self.ports['probe-prometheus']}"),
        ):
            text = text.replace(old, new)
        return text.split("\n")

    def publish(self, name: str) -> str:
        """Publish another good version, and return it."""
        self.number += 1
        text = (EXAMPLE / FILES[name]).read_text() + f"# {self.number}\n"
        self.good[name] = self.volume.put(FILES[name], text).version
        return self.good[name]

    def active(self, name: str) -> str:
        """Return what the application reports."""
        path = "/version" if name == "nginx" else "/api/v1/status/config"
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.ports[name]}{path}", timeout=10
            ) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def settle(self, name: str) -> None:
        """Wait until the application has the last good version, and its reloader knows."""
        version = self.good[name]
        self.wait_for(lambda: version in self.active(name), timeout=30)
        self.wait_for(lambda: self.told(name)[-1:] == [version], timeout=30)
        confirmed = f"version {version} of {self.shared}/{FILES[name]}: confirmation"
        self.wait_for(lambda: confirmed in self.reloaders[name].output, timeout=30)

    def told(self, name: str) -> list[str]:
        """Return the versions with which the application was told to reload, in order."""
        action = "signal" if name == "nginx" else "webhook"
        found = re.findall(
            rf"version (\w+) of \S+: {action} .* succeeded", self.reloaders[name].output
        )
        return list(map(str, found))

    def reloads(self) -> int:
        """Return how often nginx itself says that it has reloaded."""
        return (self.run / "nginx.log").read_text().count("(SIGHUP) received")

    def break_and_mend(self, name: str) -> float:
        """Publish a broken version; return the seconds until the good one is published again, and active."""
        good = (self.shared / FILES[name]).read_bytes()
        begun = time.monotonic()
        self.volume.put(FILES[name], BROKEN[name] + f"# {time.monotonic_ns()}\n")
        self.wait_for(lambda: (self.shared / FILES[name]).read_bytes() == good, timeout=30)
        took = time.monotonic() - begun
        self.settle(name)
        return took


class Client(threading.Thread):
    """Asks nginx again and again, on a new connection each time, and counts what fails."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.answered = port, 0
        self.failed: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failed.append(str(answer.status))
                self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
            finally:
                connection.close()
            time.sleep(0.002)


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, free_ports: FreePorts,
    start_process: StartProcess, sidecar_process: StartProcess, wait_for: WaitFor,
) -> Site:  # fmt: skip
    """The example, working. `make test` gives good versions more time: the machine may be busy."""
    soak = request.node.get_closest_marker("soak") is not None
    return Site(
        tmp_path, free_ports(4), start_process, sidecar_process, wait_for, 1.5 if soak else 4.0
    )


def run(site: Site, bursts: int) -> tuple[Client, dict[str, list[float]]]:
    """Publish bursts of versions for each application in turn, and break each after every tenth, and at the end."""
    client = Client(site.ports["nginx"])
    client.start()
    took: dict[str, list[float]] = {name: [] for name in FILES}
    for number in range(bursts):
        name = ("nginx", "prometheus")[number % 2]
        before = len(site.told(name))
        published = [site.publish(name) for _ in range(BURST)]
        site.settle(name)
        told = site.told(name)[before:]
        places = [published.index(version) for version in told]
        assert places == sorted(set(places)), "no version twice, and none after a newer one"
        assert told[-1] == published[-1]
        if number % 10 >= 8 or number >= bursts - 2:
            took[name].append(site.break_and_mend(name))
            assert site.told(name)[-1] == published[-1]
    client.ended.set()
    client.join()
    assert client.failed == []
    assert client.answered > 10 * bursts
    # nginx takes signals that come while it reloads for one.
    assert bursts / 2 <= site.reloads() <= len(site.told("nginx"))
    return client, took


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_each_burst_ends_with_its_last_version_and_a_broken_one_is_rolled_back(site: Site) -> None:
    """Sixty versions; nginx answers all the time."""
    run(site, bursts=6)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_five_hundred_versions_of_nginx_and_prometheus(site: Site) -> None:
    """The figures of examples/reload-nginx/README.md; each rollback within 2 s."""
    client, took = run(site, bursts=50)
    worst = {name: f"{max(times):.2f} s" for name, times in took.items()}
    print(
        f"{client.answered} requests, {len(client.failed)} failed;"
        f" {len(site.told('nginx'))} and {len(site.told('prometheus'))} reloads; rolled back within {worst}"
    )
    assert max(map(max, took.values())) < 2
