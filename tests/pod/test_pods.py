"""Real Pods: what the chart renders, run by podman with an infra container, one network and one volume.

podman knows neither `fsGroup` nor Services: a directory of a common group and a `hostPort` stand for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from pod import chart, podman, tools
from pod.podman import Pod, get, http_call, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

WRITER, READER = "http://127.0.0.1:30080", "http://127.0.0.1:30081"
PORTS = {"writer": {"hostPort": 30080}, "reader": {"hostPort": 30081}}
QUICK = {"drain": {"delay": 0.5, "timeout": 10}}


@pytest.fixture
def play(image: str, directory: Path) -> Iterator[Any]:
    """`play(values)`: the Pod of the chart with these values, until the test ends.

    An emptyDir of podman belongs to whichever container comes first. What `fsGroup` makes of it in Kubernetes,
    a directory that the common group can write to, is here a directory of the node.
    """
    own = {"workload": {"kind": "Pod"}, "volume": {"hostPath": {"path": str(directory)}}}
    with ExitStack() as stack:

        def start(values: chart.Values, *arguments: str, release: str = "demo") -> Pod:
            merged = merge({**own, **PORTS, **QUICK}, values)
            text = chart.template(merged, "--no-hooks", *arguments, release=release).stdout
            pod = stack.enter_context(podman.play(text))
            for url in [READER, WRITER] if merged["writer"].get("enabled", True) else [READER]:
                until(lambda url=url: get(f"{url}/readyz").status == 200)
            return pod

        yield start


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the node that the users of the containers can reach; pytest's are for root alone."""
    path = Path(tempfile.mkdtemp(prefix="sidecar-test-"))
    path.chmod(0o2775)
    os.chown(path, 0, 65532)
    yield path
    shutil.rmtree(path)


def merge(one: Any, other: Any) -> dict[str, Any]:
    both = dict(one)
    for key, value in other.items():
        both[key] = (
            merge(both[key], value)
            if isinstance(value, dict) and isinstance(both.get(key), dict)
            else value
        )
    return both


def content(number: int, size: int = 20_000) -> bytes:
    """A content that shows whether it is whole: it begins with the digest of the rest."""
    body = (f"{number} ".encode() * size)[:size]
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def number_of(data: bytes) -> int:
    """Return the number of a content; fails if it is not whole."""
    digest, _, body = data.partition(b"\n")
    assert hashlib.sha256(body).hexdigest().encode() == digest, f"torn: {data[:100]!r}"
    return int(body.split()[0])


class Load:
    """Threads that repeat a call until they are told to stop, and keep what it said."""

    def __init__(self, call: Any, threads: int = 1) -> None:
        self.said: list[Any] = []
        self.failed: list[BaseException] = []
        self._call, self._end = call, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.said.append(self._call())
            except OSError:
                time.sleep(0.01)  # nobody listens at the moment
            except BaseException as error:  # noqa: BLE001 (shown by the test)
                self.failed.append(error)
                return


def test_the_articles_pod_answers_as_the_article_shows(image: str, directory: Path) -> None:
    """`helm template … | podman kube play -`, then the article's own requests; the file is on the node."""
    text = chart.template(
        {**PORTS, "volume": {"hostPath": {"path": str(directory)}}},
        f"--values={tools.CHART / 'values-article.yaml'}",
        "--set=writer.hostPort=30080,reader.hostPort=30081",
        f"--set=volume.hostPath.path={directory}",
        "--no-hooks",
        release="test-pod",
    ).stdout
    with podman.play(text) as pod:
        # Neither listens before it has started, and the reader follows the writer.
        until(lambda: get(READER).text == '""')
        for content in ("ok", "123"):
            assert until(lambda content=content: get(f"{WRITER}/?content={content}").text) == '"ok"'
            until(lambda content=content: get(READER).text == f'"{content}"')
        assert (directory / "gin" / "config").read_text() == "123"
        listed = podman.podman(
            "ps", "--filter=pod=test-pod", "--format={{.Names}} {{.Status}}"
        ).stdout
        running = [line for line in listed.splitlines() if "infra" not in line and " Up " in line]
        assert len(running) == 2
        assert pod.inspect("container2")["Mounts"][0]["RW"] is False


def test_the_defaults_run_as_two_users_with_a_read_only_root(play: Any) -> None:
    """Different users, one group; no capability; nothing can be written but the volume, and that by the writer alone."""
    pod = play({})
    users = {}
    for name in ("writer", "reader"):
        said = pod.execute(
            name, "python3", "-c",
            "import os; s = open('/proc/1/status').read().split('\\n');"
            "print(os.getuid(), os.getgid(), [l.split()[1] for l in s if l.startswith(('CapEff', 'NoNewPrivs'))])",
        ).stdout  # fmt: skip
        users[name] = said.split()[0]
        assert re.fullmatch(r"\d+ 65532 \['0{16}', '1'\]\n", said)
        root = pod.execute(name, "python3", "-c", "open('/opt/x', 'w')", check=False)
        assert "Read-only file system" in root.stderr
    assert users["writer"] != users["reader"] != "0"
    for path in ("/shared/content", "/shared/x"):
        done = pod.execute("reader", "python3", "-c", f"open({path!r}, 'w')", check=False)
        assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr


def test_every_probe_succeeds_where_the_kubelet_would_run_it(play: Any) -> None:
    """The commands of startup, liveness and readiness probes, in the containers; by HTTP test_kubelet.py asks."""
    pod = play({})
    objects = chart.render({"workload": {"kind": "Pod"}, "probes": {"type": "exec"}})
    for name in ("writer", "reader"):
        for kind in ("startup", "liveness", "readiness"):
            done = pod.probe(chart.container(objects, name), kind)
            assert (done.returncode, done.stdout) == (0, "200 OK\n"), done.stderr
    assert (
        pod.execute(
            "reader", "sidecar", "check", "http://localhost:8081/nowhere", check=False
        ).returncode
        == 1
    )


def test_the_test_of_helm_passes_and_leaves_the_content_alone(play: Any) -> None:
    """The Pod of `helm test`, as a Pod, finds the other one by the name of its Service."""
    play({})
    assert get(f"{WRITER}/?content=mine").text == '"ok"'
    objects = chart.render({"workload": {"kind": "Pod"}})
    hook = chart.only(objects, "Pod", hook=True)
    hook["metadata"]["annotations"] = {}
    with podman.play(yaml.safe_dump(hook)) as test:
        state = until(
            lambda: (s := test.inspect("write-read")["State"])["Status"] == "exited" and s
        )
        assert state["ExitCode"] == 0, test.logs("write-read")
        assert "the same" in test.logs("write-read")
    assert get(READER).text == '"mine"'
    until(lambda: "helm-test" not in get(f"{READER}/files").text)


def test_the_writer_waits_for_the_reader_by_localhost(play: Any) -> None:
    """`Prefer: wait` asks the reader of the same Pod, which has the new content when the writer answers."""
    play({})
    answer = http_call("PUT", f"{WRITER}/files/content", b"new", prefer="wait=5")
    assert answer.status in {200, 201, 204}, answer.text
    assert get(READER).headers["etag"] == answer.headers["etag"]
    assert get(READER).text == '"new"'


def test_a_writer_killed_while_it_publishes_comes_back_with_its_content(play: Any) -> None:
    """SIGKILL in the middle of publishes, three times: restarted, nothing torn, nothing lost that was acknowledged."""
    pod = play({})
    numbers = iter(range(1, 10**9))

    def publish() -> int:
        number = next(numbers)
        answer = http_call("PUT", f"{WRITER}/files/content", content(number), timeout=5)
        assert answer.status in {200, 201, 204}
        return number

    def read() -> int:
        answer = get(f"{READER}/raw")
        assert answer.status == 200
        return number_of(answer.body) if answer.body else 0

    until(lambda: publish() == 1)
    with Load(publish) as writing, Load(read, threads=2) as reading:
        for kills in range(1, 4):
            already = len(writing.said)
            until(lambda already=already: len(writing.said) > already + 5)
            pod.kill("writer")
            until(lambda kills=kills: pod.restarts("writer") == kills)
            until(lambda: get(f"{WRITER}/readyz").status == 200)
    assert writing.failed + reading.failed == []
    acknowledged, tried = writing.said[-1], next(numbers)
    until(lambda: acknowledged <= read() < tried)
    assert len(reading.said) > 20
    assert pod.restarts("reader") == 0
    listed = pod.execute(
        "reader", "python3", "-c", "import os; print(os.listdir('/shared'))"
    ).stdout
    assert set(yaml.safe_load(listed)) == {"content", "..versions", "..lock"}, (
        "a left-over of a killed writer"
    )


def test_a_reader_killed_serves_the_latest_at_once(play: Any) -> None:
    """After SIGKILL and a restart its first answer is the newest content, published while it was away, too."""
    pod = play({})
    http_call("PUT", f"{WRITER}/files/content", b"before")
    until(lambda: get(READER).text == '"before"')
    pod.kill("reader")
    assert http_call("PUT", f"{WRITER}/files/content", b"after").status == 204
    first = until(lambda: get(READER) if pod.restarts("reader") == 1 else None)
    assert (first.status, first.text) == (200, '"after"')


def test_sigterm_under_load_truncates_nothing_and_all_exit_with_zero(play: Any) -> None:
    """Every response that was begun is complete, and each container exits with 0 within the grace period."""
    pod = play({})
    http_call("PUT", f"{WRITER}/files/content", content(1, size=1_000_000))
    until(lambda: len(get(f"{READER}/raw").body) > 1_000_000)
    with Load(lambda: number_of(get(f"{READER}/raw").body), threads=8) as load:
        until(lambda: len(load.said) > 50)
        pod.stop(30)
    assert load.failed == []
    for name in ("writer", "reader"):
        state = pod.inspect(name)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), pod.logs(name)


def test_the_limit_of_memory_holds_under_load(play: Any) -> None:
    """64 MiB for each container, contents of the greatest size that the chart lets pass, 32 clients: nobody is killed."""
    pod = play({})
    size = 1 << 20
    numbers = iter(range(10**9))

    def publish() -> int:
        answer = http_call(
            "PUT", f"{WRITER}/files/content", content(next(numbers), size - 65), timeout=30
        )
        assert answer.status in {201, 204}, answer.text
        return answer.status

    until(lambda: publish() > 0)
    until(lambda: get(f"{READER}/raw").body)
    with (
        Load(publish, threads=2) as writing,
        Load(lambda: get(READER).status, threads=16) as texts,
        Load(lambda: number_of(get(f"{READER}/raw").body), threads=14) as raws,
    ):
        until(lambda: min(map(len, (writing.said, raws.said, texts.said))) > 50, timeout=90)
    assert writing.failed + texts.failed + raws.failed == []
    assert set(texts.said) == {200}
    for name in ("writer", "reader"):
        state = pod.inspect(name)
        assert state["HostConfig"]["Memory"] == 64 << 20
        assert (state["RestartCount"], state["State"]["OOMKilled"]) == (0, False)
        print(f"{name}: {peak(state) / 2**20:.1f} MiB at most")


def peak(state: dict[str, Any]) -> int:
    """Return the greatest resident size of the container's process, from the kernel."""
    status = Path(f"/proc/{state['State']['Pid']}/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) * 1024


def test_a_container_of_ones_own_stands_beside_ours(play: Any, readers_image: str) -> None:
    """An image of a user, whose program imports `sidecar`: examples/reader, in the same Pod, with the initial content."""
    own = {
        "name": "own",
        "image": readers_image,
        "imagePullPolicy": "Never",
        "env": [
            {"name": "CONFIG_FILE", "value": "/shared/content"},
            {"name": "PORT", "value": "8090"},
        ],
        "ports": [{"containerPort": 8090, "hostPort": 30090}],
        "securityContext": {
            "runAsUser": 20000,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "shared", "mountPath": "/shared", "readOnly": True}],
    }
    pod = play({"extraContainers": [own]})
    url = "http://127.0.0.1:30090"
    until(lambda: get(f"{url}/readyz").status == 200)
    http_call("PUT", f"{WRITER}/files/content", b"for you, too")
    for one in (url, READER):
        until(lambda one=one: get(one).text == '"for you, too"')
    assert get(url).headers["etag"] == get(READER).headers["etag"]
    assert "20000" in pod.execute("own", "python3", "-c", "import os; print(os.getuid())").stdout


def test_updates_of_a_configmap_are_followed(play: Any, directory: Path) -> None:
    """A volume as the kubelet lays it out and flips it: the reader serves each version, whole and soon."""
    flip(directory, 0)
    play({"writer": {"enabled": False}})
    for number in range(1, 20):
        flip(directory, number)
        until(lambda number=number: number_of(get(f"{READER}/raw").body) == number)


def flip(volume: Path, number: int) -> None:
    """Replace what a ConfigMap volume holds, in the steps of the kubelet's AtomicWriter."""
    old = os.readlink(volume / "..data") if (volume / "..data").is_symlink() else None
    generation = volume / f"..2026_01_01_00_00_00.{number:09}"
    generation.mkdir(mode=0o755)
    generation.chmod(0o755)
    (generation / "content").write_bytes(content(number))
    (volume / "..data_tmp").symlink_to(generation.name)
    (volume / "..data_tmp").rename(volume / "..data")
    if not (volume / "content").is_symlink():
        (volume / "content").symlink_to("..data/content")
    if old:
        shutil.rmtree(volume / old)


@pytest.mark.parametrize("name", ["reader", "writer"])
def test_the_plain_pod_of_each_example_runs(
    name: str, readers_image: str, writers_image: str
) -> None:
    """`podman kube play examples/…/pod.yaml`, then what the comment in it says."""
    text = (tools.ROOT / "examples" / name / "pod.yaml").read_text()
    ports = {8080: 30080, 8081: 30081}
    # The ports of the file may be taken on this machine.
    text = re.sub(r"hostPort: (\d+)", lambda found: f"hostPort: {ports[int(found[1])]}", text)
    with podman.play(text):
        until(lambda: get(READER).text == '""' and get(f"{WRITER}/readyz").status == 200)
        assert get(f"{WRITER}/?content=123").text == '"ok"'
        until(lambda: get(READER).text == '"123"')


def test_json_lines_of_the_log_are_json(play: Any) -> None:
    """`log.format: json` reaches both programs."""
    pod = play({"log": {"format": "json"}})
    for name in ("writer", "reader"):
        for line in pod.logs(name).strip().splitlines():
            assert json.loads(line)
