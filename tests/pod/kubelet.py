"""What the kubelet does with a Pod, imitated for one Pod on podman: probes, readiness, restarts, limits of volumes, the end.

`podman kube play` knows no endpoints, no order of native sidecars, no eviction, and leaves the network up at the end.
The rules are those of the documentation of Kubernetes (Pod Lifecycle, Configure Probes, Sidecar Containers, Node-pressure Eviction).
Left out: several Pods, images to pull, CPU limits, resizing.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pod import chart, podman, tools

_BACKOFF = 10.0  # seconds before the second restart, doubled each time
_HOUSEKEEPING = 10.0  # seconds between two looks at the sizes of volumes
_GROUP = 65532  # the fsGroup of the chart


class Container:
    """One container: what runs, whether it has started and is ready, and how often it was restarted."""

    def __init__(self, pod: Kubelet, spec: chart.Object, *, native: bool) -> None:
        self.name: str = spec["name"]
        self.spec = spec
        self.native = native
        self.started = self.ready = False
        self.restarts = 0
        self.exit_code: int | None = None
        self.ended = threading.Event()
        self._pod = pod
        self._pid = 0

    def run(self) -> None:
        """Start it, and keep watching it in a thread of its own until it has ended for good."""
        self._launch()
        threading.Thread(target=self._supervise, daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to its first process, as the container runtime does."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def is_over(self, within: float) -> bool:
        """Wait until its first process has ended, so many seconds at most; tell whether it has."""
        return not self._pid or _gone(self._pid, within)

    def probe(self, kind: str) -> bool:
        """Ask once, as the kubelet would."""
        asked = self.spec[f"{kind}Probe"]
        timeout = asked.get("timeoutSeconds", 1)
        if "exec" in asked:
            command = ("podman", "exec", f"{self._pod.name}-{self.name}", *asked["exec"]["command"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    command,
                    env=podman.environment(),
                    capture_output=True,
                    timeout=timeout,
                    check=False,
                )
                return done.returncode == 0
            return False
        return self._asks(asked["httpGet"], timeout)

    def _asks(self, get: dict[str, Any], timeout: float) -> bool:
        (port,) = [
            one["containerPort"]
            for one in self.spec["ports"]
            if get["port"] in (one["name"], one["containerPort"])
        ]
        url = f"{get.get('scheme', 'HTTP').lower()}://{self._pod.address}:{port}{get['path']}"
        with contextlib.suppress(OSError):
            answer = podman.http_call("GET", url, timeout=timeout, user_agent="kube-probe/1.36")
            return 200 <= answer.status < 400
        return False

    def _launch(self) -> None:
        self._pod.podman("start", f"{self._pod.name}-{self.name}")
        self._pid = int(self._pod.pid_file(self.name).read_text())
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec

    def _supervise(self) -> None:
        while True:
            over = threading.Event()
            threading.Thread(target=self._look_after, args=(over,), daemon=True).start()
            if self._pid:
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(self._pid)
                    select.select([handle], [], [])
                    os.close(handle)
            over.set()
            self.started = self.ready = False
            waited = podman.podman("wait", f"{self._pod.name}-{self.name}", check=False)
            self.exit_code = int(waited.stdout or "-1")  # none where the Pod was removed meanwhile
            if not self._comes_back():
                self.ended.set()
                return
            if self.restarts:
                self._pod.ending.wait(_BACKOFF * 2 ** (self.restarts - 1) * self._pod.scale)
            if self._pod.ending.is_set():
                self.ended.set()
                return
            self.restarts += 1
            self._launch()

    def _comes_back(self) -> bool:
        policy = "Always" if self.native else self._pod.spec.get("restartPolicy", "Always")
        if policy == "Always" and not self.native and self in self._pod.init:
            policy = "OnFailure"  # an init container that has succeeded is over
        wanted = policy == "Always" or (policy == "OnFailure" and self.exit_code != 0)
        return wanted and not self._pod.ending.is_set()

    def _look_after(self, over: threading.Event) -> None:
        """Run the probes of one life of the container: the startup probe first, then the other two side by side."""
        if "startupProbe" in self.spec and not self._until_started(over):
            return
        for kind in ("liveness", "readiness"):
            if f"{kind}Probe" in self.spec:
                threading.Thread(target=self._repeat, args=(kind, over), daemon=True).start()

    def _until_started(self, over: threading.Event) -> bool:
        for good in self._results("startup", over):
            if good is None:
                self._kill()
                return False
            if good:
                self.started = True
                self.ready = "readinessProbe" not in self.spec
                return True
        return False

    def _repeat(self, kind: str, over: threading.Event) -> None:
        for good in self._results(kind, over):
            if over.is_set():
                return
            if kind == "readiness":
                self.ready = self.ready if good is False else bool(good)
            elif good is None:
                self._kill()
                return

    def _results(self, kind: str, over: threading.Event) -> Iterator[bool | None]:
        """Yield what each probe says: True, False, and None when `failureThreshold` of them in a row have failed."""
        asked = self.spec[f"{kind}Probe"]
        failures = 0
        over.wait(asked.get("initialDelaySeconds", 0) * self._pod.scale)
        while not over.wait(asked.get("periodSeconds", 10) * self._pod.scale):
            failures = 0 if self.probe(kind) else failures + 1
            yield None if failures >= asked.get("failureThreshold", 3) else failures == 0

    def _kill(self) -> None:
        self.signal(signal.SIGTERM)
        if not _gone(self._pid, self._pod.spec.get("terminationGracePeriodSeconds", 30)):
            self.signal(signal.SIGKILL)


class Kubelet:
    """Runs the Pod of a chart. `scale` shortens the periods of probes and the pauses between restarts, never a time limit.

    `secrets` are those of its namespace: name, then key, then value.
    """

    def __init__(
        self,
        objects: list[chart.Object],
        scale: float = 1.0,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.object = chart.only(objects, "Pod")
        self.name: str = self.object["metadata"]["name"]
        self.spec = self.object["spec"]
        self.scale = scale
        self.ending = threading.Event()
        self.evicted: str | None = None
        self.ended: list[str] = []
        self._config_maps = {
            one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"
        }
        self._secrets = secrets or {}
        self._root = Path(tempfile.mkdtemp(prefix="sidecar-kubelet-"))
        self._root.chmod(0o755)
        self._mounted: list[Path] = []
        first = self.spec.get("initContainers", [])
        self.init = [
            Container(self, one, native=one.get("restartPolicy") == "Always") for one in first
        ]
        self.main = [Container(self, one, native=False) for one in self.spec["containers"]]
        self._infra = self.address = ""

    def container(self, name: str) -> Container:
        (found,) = [one for one in [*self.init, *self.main] if one.name == name]
        return found

    @property
    def lasting(self) -> list[Container]:
        """Those that count for readiness: init containers that end do not."""
        return [one for one in self.init if one.native] + self.main

    @property
    def ready(self) -> bool:
        """The condition `Ready` of the Pod: all its containers are, and it does not end."""
        return not self.ending.is_set() and all(one.ready for one in self.lasting)

    def endpoint(self, port: int, scheme: str = "http") -> str:
        """Return the URL behind a Service; OSError while the Pod is not one of its endpoints."""
        if not self.ready:
            raise ConnectionRefusedError(f"{self.name} is not ready: the Service has no endpoint")
        return f"{scheme}://{self.address}:{port}"

    def start(self) -> None:
        """Make the Pod, then start its containers in the order of Kubernetes; native sidecars are waited for."""
        self.podman("pod", "create", f"--name={self.name}", f"--infra-name={self.name}-infra")
        self.podman("start", f"{self.name}-infra")
        asked = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        inspect = ("container", "inspect", f"--format={asked}", f"{self.name}-infra")
        self._infra, self.address = self.podman(*inspect).split()
        volumes = {one["name"]: self._volume(one) for one in self.spec.get("volumes", [])}
        for one in [*self.init, *self.main]:
            pid_file = f"--pidfile={self.pid_file(one.name)}"
            self.podman("create", pid_file, *_create(self.name, one.spec, self.spec, volumes))
        threading.Thread(target=self._housekeep, daemon=True).start()
        threading.Thread(target=self._run_in_order, daemon=True).start()

    def stop(self) -> None:
        """End the Pod: ordinary containers, then native sidecars from the last to the first, and at once the network."""
        deadline = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        self.ending.set()
        for group in [self.main, *([one] for one in reversed(self.init) if one.native)]:
            for one in group:
                self._pre_stop(one)
                one.signal(signal.SIGTERM)
            for one in group:
                if not one.is_over(max(0.0, deadline - time.monotonic())):
                    one.signal(signal.SIGKILL)
                    one.is_over(10)
                self.ended.append(one.name)
        # What the kernel still has to send is lost: podman alone would leave it a second or more.
        tools.run(
            "nsenter", f"--net=/proc/{self._infra}/ns/net", "ip", "link", "set", "eth0", "down"
        )
        podman.remove_pod(self.name)

    def remove(self) -> None:
        self.ending.set()
        podman.remove_pod(self.name)
        for path in self._mounted:
            tools.run("umount", "--lazy", path, check=False)
        shutil.rmtree(self._root, ignore_errors=True)

    def directory(self, volume: str = "shared") -> Path:
        """Where a volume of the Pod lies on this machine."""
        return self._root / volume

    def pid_file(self, container: str) -> Path:
        return self._root / f"{container}.pid"

    def podman(self, *arguments: str) -> str:
        return podman.podman(*arguments, timeout=120).stdout.strip()

    def _run_in_order(self) -> None:
        for one in self.init:
            one.run()
            if one.native:
                while not one.started and not self.ending.is_set():
                    time.sleep(0.02)
            else:
                one.ended.wait()
        if not self.ending.is_set():
            for one in self.main:
                one.run()

    def _pre_stop(self, one: Container) -> None:
        command = one.spec.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if command:
            podman.podman("exec", f"{self.name}-{one.name}", *command, check=False)

    def _volume(self, volume: dict[str, Any]) -> Path:
        path = self._root / volume["name"]
        path.mkdir()
        path.chmod(0o2777)
        os.chown(path, 0, _GROUP)
        empty = volume.get("emptyDir", {})
        if empty.get("medium") == "Memory":
            size = f"size={_bytes(empty['sizeLimit'])},mode=2777,gid={_GROUP}"
            tools.run("mount", "-t", "tmpfs", "-o", size, "tmpfs", path)
            self._mounted.append(path)
        elif "configMap" in volume:
            for name, text in self._config_maps[volume["configMap"]["name"]].items():
                (path / name).write_text(text)
        elif "secret" in volume:
            for name, text in self._secrets[volume["secret"]["secretName"]].items():
                (path / name).write_text(text)
                (path / name).chmod(volume["secret"].get("defaultMode", 0o644))
                os.chown(path / name, 0, _GROUP)
        return path

    def _housekeep(self) -> None:
        """Evict the Pod when a volume is larger than its limit: its containers are killed, and its volumes are gone."""
        limits = {
            one["name"]: _bytes(one["emptyDir"]["sizeLimit"])
            for one in self.spec.get("volumes", [])
            if one.get("emptyDir", {}).get("sizeLimit")
            and one["emptyDir"].get("medium") != "Memory"
        }
        while not self.ending.wait(_HOUSEKEEPING * self.scale):
            for name, limit in limits.items():
                if _taken(self._root / name) > limit:
                    self.ending.set()
                    for one in self.lasting:
                        one.signal(signal.SIGKILL)
                    self.evicted = f'Usage of EmptyDir volume "{name}" exceeds the limit "{limit}".'
                    return


@contextlib.contextmanager
def running(
    values: chart.Values,
    scale: float = 0.1,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Kubelet]:
    """Run the Pod that the chart renders with these values, as `workload.kind: Pod`, until the block ends."""
    objects = chart.render({**values, "workload": {"kind": "Pod"}}, "--no-hooks")
    pod = Kubelet(objects, scale, secrets)
    try:
        pod.start()
        yield pod
    finally:
        pod.remove()


def _create(
    pod: str, spec: chart.Object, whole: chart.Object, volumes: dict[str, Path]
) -> list[str]:
    """Return the words for podman that make this container in the Pod."""
    context = {**whole.get("securityContext", {}), **spec.get("securityContext", {})}
    command = [f"--pod={pod}", f"--name={pod}-{spec['name']}", "--pull=never"]
    if "runAsUser" in context:
        command.append(f"--user={context['runAsUser']}:{context.get('runAsGroup', 0)}")
    if context.get("readOnlyRootFilesystem"):
        command.append("--read-only")
    command += [f"--cap-drop={one}" for one in context.get("capabilities", {}).get("drop", [])]
    if memory := spec.get("resources", {}).get("limits", {}).get("memory"):
        command.append(f"--memory={_bytes(memory)}")
    for variable in spec.get("env", []):
        command.append(f"--env={variable['name']}={variable.get('value', '')}")
    for mount in spec.get("volumeMounts", []):
        end = ":ro" if mount.get("readOnly") else ""
        command.append(f"--volume={volumes[mount['name']]}:{mount['mountPath']}{end}")
    if "command" in spec:
        command.append(f"--entrypoint={spec['command'][0]}")
    return [*command, spec["image"], *spec.get("command", [])[1:], *spec.get("args", [])]


def _bytes(quantity: str | int) -> int:
    text = str(quantity)
    for end, factor in (
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 10**3),
        ("M", 10**6),
        ("G", 10**9),
    ):
        if text.endswith(end):
            return int(float(text.removesuffix(end)) * factor)
    return int(text)


def _taken(directory: Path) -> int:
    """Bytes on the disk, each inode once, as `du` and the kubelet count."""
    found: dict[int, int] = {}
    for root, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(root, name))
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _gone(pid: int, seconds: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
