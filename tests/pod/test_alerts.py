"""Each alert fires on what a run of the product exposed while it was in trouble, and on nothing that a healthy one exposed.

`promtool test rules` evaluates the rules of the chart; the series are scrapes of real processes, not written by hand.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pod import chart, tools
from pod.podman import until
from support import Process, environment

pytestmark = pytest.mark.timeout(120)

Scrape = dict[tuple[str, ...], float]
LABELS = {"namespace": "here", "pod": "demo-sidecar-0"}
VALUES = {
    "metrics": {
        "prometheusRule": {
            "enabled": True,
            "contentAgeSeconds": 3600,
            "logsLagSeconds": 0.5,
            "mirrorContactAgeSeconds": 2,
        }
    }
}
ALERTS = [
    "SidecarContentStale", "SidecarWatchDead", "SidecarWatchMissesEvents", "SidecarPropagationSlow", "SidecarContentOld",
    "SidecarPublishRefused", "SidecarPublishFailing", "SidecarVolumeFull", "SidecarLogsLag", "SidecarLogsLost",
    "SidecarLogsRefused", "SidecarReloadFailing", "SidecarReloadRolledBack",
    "SidecarMirrorHeld", "SidecarMirrorRefused", "SidecarMirrorSourceSilent",
]  # fmt: skip
# A reader whose events can be lost, and whose looks can fail, while a file of the test is there.
_READER = """
import os, sys
from sidecar.cli.main import main
from sidecar.fs.notify import inotify
from sidecar.volume.watch.scanner import PathScanner
drain, look = inotify.Inotify.drain, PathScanner.scan
inotify.Inotify.drain = lambda self: [] if os.path.exists("deaf") else drain(self)
def seeing(self, *a, **k):
    if os.path.exists("blind"):
        raise RuntimeError("planted")
    return look(self, *a, **k)
PathScanner.scan = seeing
sys.exit(main())
"""


class Product:
    """A writer, a reader, two collectors, a reloader and a mirror, each with the URL of its metrics."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.volume = directory / "volume"
        self.log = directory / "app.log"
        self.log.write_text("")
        self.urls: dict[str, str] = {}
        self._stack = stack
        address = stack.enter_context(_refusing())
        collect = ["collect", str(self.log), "--budget=64k", "--drain-timeout=0"]
        content = f"--path={self.volume}/content"
        self._start(
            "writer", "write", content, "--drain-delay=0", "--format=json", "--volume-budget=1Mi"
        )
        self._start("reader", "read", content, "--drain-delay=0", "--recheck=0.05")
        self._start("away", *collect, f"--checkpoint={directory}/1", "--sink=http://127.0.0.1:9/")
        self._start("refused", *collect, f"--checkpoint={directory}/2", f"--sink={address}")
        self._start_reloader()
        self._start_mirror()

    def _start_reloader(self) -> None:
        """A reloader of a file of its own; the application takes it as long as it has no `x`."""
        (self.directory / "settings").mkdir()
        (self.directory / "settings/app.conf").write_text("a")
        check = f"grep -qv x {self.directory}/settings/app.conf"
        options = (f"--exec={check}", "--rollback-on-failure", "--confirm-timeout=0.2")
        self._start("reloader", "reload", f"--path={self.directory}/settings/app.conf", *options)

    def _start_mirror(self) -> None:
        """A mirror of a set and of a file, both from a web server that can be changed and stopped."""
        served = self.site = self._stack.enter_context(_Site())
        served.files |= {"/set.tar": archive("a", "b", "c", "d"), "/one.json": b"{}"}
        sources = (
            f"{served.url}/set.tar#interval=0.05",
            f"{served.url}/one.json#into=one&interval=0.05",
        )
        self._start(
            "mirror", "mirror", *sources, f"--path={self.directory}/mirrored", "--format=json"
        )

    def put(self, name: str, body: bytes) -> int:
        request = urllib.request.Request(f"{self.urls['writer']}/files/{name}", body, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def scrape(self) -> Scrape:
        """Return each sample of each container: (name, label=value, …) to its value."""
        found = {}
        for container in self.urls:
            for family in text_string_to_metric_families(self._exposed(container)):
                for sample in family.samples:
                    labels = {**sample.labels, **LABELS, "container": container}
                    told = [f"{name}={json.dumps(one)}" for name, one in labels.items()]
                    found[sample.name, *told] = sample.value
        return found

    def value(self, container: str, name: str) -> float:
        """Return the sum of the samples of this name, or of this name with labels."""
        lines = re.findall(
            rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self._exposed(container), re.MULTILINE
        )
        return sum(map(float, lines))

    def _exposed(self, container: str) -> str:
        with urllib.request.urlopen(f"{self.urls[container]}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def _start(self, container: str, command: str, *arguments: str) -> None:
        program = ["-c", _READER] if container == "reader" else ["-m", "sidecar.cli"]
        line = [sys.executable, *program, command, *arguments, "--host=127.0.0.1", "--port=0"]
        own = self.directory / container
        own.mkdir()
        process = Process(line, own, cwd=self.directory, env=environment())
        self._stack.callback(process.stop)
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+", process.output))
        self.urls[container] = found[0]


def archive(*names: str) -> bytes:
    """A tar archive of files of these names."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name in names:
            one = tarfile.TarInfo(name)
            one.size = 2
            tar.addfile(one, io.BytesIO(b"{}"))
    return written.getvalue()


class _Site:
    """A web server with files that a test replaces; with none it answers 503."""

    def __enter__(self) -> Self:
        files = self.files = dict[str, bytes]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = files.get(self.path)
                self.send_response(503 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _refusing:  # noqa: N801 (a context manager)
    """A receiver that takes no line, for good."""

    def __enter__(self) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(400)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def scrapes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Scrape, ...]]:
    """What the product exposes when it is well, and when everything has gone wrong."""
    with ExitStack() as stack:
        product = Product(tmp_path_factory.mktemp("alerts"), stack)
        assert product.put("content", b"{}") in {201, 204}
        until(lambda: product.value("reader", "sidecar_content_info") == 1)
        until(
            lambda: (
                product.value("reloader", 'sidecar_reload_total{action="command",result="ok"}') == 1
            )
        )
        until(lambda: product.value("mirror", "sidecar_mirror_units") == 2)
        well = product.scrape()
        trouble(product)
        yield well, product.scrape()


def trouble(product: Product) -> None:
    """Bring about all that there is an alert for; the last step takes the watch away."""
    assert product.put("content", b"{") == 422
    assert product.put("large", json.dumps("x" * 1_000_000).encode()) == 201
    assert product.put("larger", json.dumps("x" * 1_000_000).encode()) == 507
    with product.log.open("a") as log:
        log.write("".join(f"line {number} {'x' * 100}\n" for number in range(5000)))
    until(lambda: product.value("away", "sidecar_logs_lag_bytes") > 100_000)
    product.log.write_text("")
    (product.directory / "deaf").touch()
    old = time.time() - 7200
    for number in range(6):
        before = product.value("reader", "sidecar_poll_rescues_total")
        new = product.volume / ".new"
        new.write_text(str(number))
        os.utime(new, (old, old + number))
        new.rename(product.volume / "content")
        until(lambda before=before: product.value("reader", "sidecar_poll_rescues_total") > before)
    (product.volume / "content").unlink()
    until(lambda: product.value("reader", "sidecar_content_stale") == 1)
    until(lambda: product.value("away", "sidecar_logs_lost_bytes_total") > 0)
    until(lambda: product.value("refused", "sidecar_logs_dead_letters_total") > 0)
    with product.log.open("a") as log:
        log.write("one that waits\n")
    until(lambda: product.value("away", "sidecar_logs_lag_seconds") > 0.5)
    trouble_with_reload_and_mirror(product)
    (product.directory / "blind").touch()
    until(lambda: product.value("reader", "sidecar_watch_mode") == 0)


def trouble_with_reload_and_mirror(product: Product) -> None:
    """A version that the application rejects; a set that was emptied, a file that is no JSON, and sources that are silent."""
    settings = product.directory / "settings" / "app.conf"
    (new := settings.with_name(".new")).write_text("x")
    new.rename(settings)
    product.site.files["/set.tar"] = archive("a")
    product.site.files["/one.json"] = b"{"
    until(lambda: product.value("mirror", "sidecar_mirror_held") == 1)
    until(lambda: product.value("mirror", 'sidecar_mirror_versions_total{result="refused"}') == 1)
    product.site.files.clear()
    until(lambda: product.value("mirror", "sidecar_mirror_contact_age_seconds") > 2)
    rolled_back = 'sidecar_reload_total{action="rollback",result="ok"}'
    until(lambda: product.value("reloader", rolled_back) == 1)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rule file that the chart renders."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(chart.only(chart.render(VALUES), "PrometheusRule")["spec"]))
    return path


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool (package prometheus)")
    return tools.run(program, *arguments).stdout


def firing(rules: Path, before: Scrape, after: Scrape, expected: list[str]) -> None:
    """Hold the first scrape for half an hour, then let what the run did happen each minute; compare the alerts that fire."""
    series = [
        {
            "series": f"{name}{{{','.join(labels)}}}",
            "values": values(before, (name, *labels), value),
        }
        for (name, *labels), value in after.items()
        if name.startswith("sidecar_")
    ]
    asked = {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "50m",
        "exp_samples": [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in expected],
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    file = rules.with_name("test.yaml")
    told = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(told))
    promtool("test", "rules", file)


def values(before: Scrape, key: tuple[str, ...], value: float) -> str:
    """A series in promtool's notation; one that was not scraped before has no samples before, and so no increase."""
    counts = key[0].endswith(("_total", "_bucket", "_count", "_sum"))
    step = value - before.get(key, 0.0) if counts else 0.0
    first = f"{before[key]}+0x30" if key in before else "_x30"
    return f"{first} {value}+{step}x30"


def test_the_rules_are_ones_that_prometheus_loads(rules: Path) -> None:
    """Expressions and the templates of the texts."""
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", rules)


def test_a_healthy_product_fires_nothing(rules: Path, scrapes: tuple[Scrape, ...]) -> None:
    """An alert that fires by itself is switched off, and then missed."""
    well, _ = scrapes
    firing(rules, well, well, [])


def test_each_alert_fires_on_what_the_product_exposes(
    rules: Path, scrapes: tuple[Scrape, ...]
) -> None:
    """All at once, after a run in which everything went wrong; so a counter has begun at 0 before it counts."""
    well, ill = scrapes
    assert {
        rule["alert"]
        for group in yaml.safe_load(rules.read_text())["groups"]
        for rule in group["rules"]
    } == set(ALERTS)
    firing(rules, well, ill, ALERTS)
