"""A podman of our own: its images, containers and settings are apart from those of the user of this machine.

What may stay is under the cache: a base image, and the layers of the last builds.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sidecar
from pod import chart, tools

HOME = tools.CACHE / "podman"
RUN = Path("/run/sidecar-tests")
BASE = "localhost/sidecar-tests-base:bookworm"
IMAGE = f"localhost/sidecar:{sidecar.__version__}"
# For certificates that a test has made itself.
ANYBODY = ssl.create_default_context()
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE
_PROGRAMS = ("podman", "runc", "conmon", "mmdebstrap")
CERTIFICATES = ("/etc/ssl/certs", "/usr/local/share/ca-certificates")

_CONTAINERS_CONF = f"""
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{RUN}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{HOME}/networks"
"""
_STORAGE_CONF = f"""
[storage]
driver = "overlay"
graphroot = "{HOME}/storage"
runroot = "{RUN}/storage"
"""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Have podman for ourselves: fixed names and ports let one run at a time pass. Leaves nothing that runs."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root: containers of several users, and limits of memory")
    HOME.mkdir(parents=True, exist_ok=True)
    RUN.mkdir(parents=True, exist_ok=True)
    (HOME / "containers.conf").write_text(_CONTAINERS_CONF)
    (HOME / "storage.conf").write_text(_STORAGE_CONF)
    with (tools.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _clean()
        try:
            yield
        finally:
            _clean()
            with contextlib.suppress(OSError):
                shutil.rmtree(RUN)


def podman(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `podman`; fails the test if it fails."""
    return tools.run("podman", *arguments, env=environment(), **options)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": _path(),
        "CONTAINERS_CONF": str(HOME / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(HOME / "storage.conf"),
    }


@functools.cache
def base() -> str:
    """Return the name of a base image with Python, made from the packages of the distribution."""
    if podman("image", "exists", BASE, check=False).returncode:
        archive = tools.CACHE / "base.tar"
        if not archive.exists():
            include = "--include=python3,python3-venv,ca-certificates"
            made = archive.with_suffix(".new")
            tools.run(
                "mmdebstrap",
                "--quiet",
                "--format=tar",
                "--variant=minbase",
                include,
                "bookworm",
                made,
                timeout=300,
            )
            made.rename(archive)
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        podman("import", "--quiet", f"--change={path}", archive, BASE, timeout=120)
    return BASE


def build(tag: str, context: Path, **arguments: str) -> str:
    """Build an image, and return its name. The certificates of this machine serve the build, and stay outside."""
    mounts = [f"--volume={path}:{path}:ro" for path in CERTIFICATES if Path(path).exists()]
    values = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    podman("build", "--quiet", "--layers", *mounts, *values, f"--tag={tag}", context, timeout=600)
    return tag


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.body.decode()


def http_call(
    method: str, url: str, body: bytes | None = None, timeout: float = 10, **headers: str
) -> Answer:
    """Ask, and return whatever is answered; OSError if nothing is."""
    request = urllib.request.Request(url, data=body, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=ANYBODY) as answer:
            return Answer(
                answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
            )
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), {k.lower(): v for k, v in error.headers.items()})
    except http.client.HTTPException as error:
        raise OSError(f"broken answer: {error!r}") from error


def get(url: str, **headers: Any) -> Answer:
    return http_call("GET", url, **headers)


def until(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """Wait until it holds, and return what it says; an OSError is a no."""
    end = time.monotonic() + timeout
    while True:
        why: object = None
        try:
            if found := condition():
                return found
        except OSError as error:
            why = error
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout} s: {condition} ({why})")
        time.sleep(0.02)


class Pod:
    """A Pod that runs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inspect(self, container: str) -> dict[str, Any]:
        (found,) = json.loads(podman("container", "inspect", f"{self.name}-{container}").stdout)
        state: dict[str, Any] = found
        return state

    def pid(self, container: str) -> int:
        return int(self.inspect(container)["State"]["Pid"])

    def restarts(self, container: str) -> int:
        return int(self.inspect(container)["RestartCount"])

    def kill(self, container: str) -> None:
        """SIGKILL the process, as the kernel does when memory runs out: podman is not asked, and restarts it."""
        os.kill(self.pid(container), 9)

    def execute(
        self, container: str, *command: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return podman("exec", f"{self.name}-{container}", *command, **options)

    def probe(self, container: chart.Object, kind: str) -> subprocess.CompletedProcess[str]:
        """Ask as a probe does, in the container: its command, or `sidecar check` for a request of the kubelet."""
        probe = container[f"{kind}Probe"]
        if "exec" in probe:
            command = probe["exec"]["command"]
        else:
            port = container["ports"][0]["containerPort"]
            command = ["sidecar", "check", f"http://localhost:{port}{probe['httpGet']['path']}"]
        return self.execute(container["name"], *command, check=False)

    def logs(self, container: str) -> str:
        done = podman("logs", f"{self.name}-{container}")
        return done.stdout + done.stderr

    def stop(self, seconds: int) -> None:
        """SIGTERM for all containers, SIGKILL after `seconds`."""
        podman("pod", "stop", f"--time={seconds}", self.name, timeout=seconds + 30)

    def remove(self) -> None:
        remove_pod(self.name)


def remove_pod(name: str) -> None:
    """Kill and remove a Pod if it is there, or each with `--all`.

    It is stopped first: `rm` alone spends four seconds on the cgroup of conmon, which waits for the Pod that `rm` has locked.
    """
    podman("pod", "stop", "--time=0", name, check=False)
    podman("pod", "rm", "--force", "--time=0", name, check=False)


@contextlib.contextmanager
def play(text: str, timeout: float = 60) -> Iterator[Pod]:
    """Run what `podman kube play` makes of these objects; it ends with the block."""
    (name,) = [
        one["metadata"]["name"]
        for one in chart.documents(text)
        if one["kind"] == "Pod" and not chart.is_hook(one)
    ]
    pod = Pod(name)
    try:
        podman("kube", "play", "-", input=text, timeout=timeout)
        yield pod
    finally:
        pod.remove()
        podman("volume", "prune", "--force", check=False)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _clean() -> None:
    remove_pod("--all")
    podman("container", "rm", "--all", "--force", "--time=0", check=False)
    podman("volume", "prune", "--force", check=False)
    # Layers of old builds; those of the last one make the next one short.
    podman("image", "prune", "--force", "--filter=until=48h", check=False)
    if os.path.ismount(HOME / "storage" / "overlay"):
        tools.run("umount", HOME / "storage" / "overlay", check=False)
