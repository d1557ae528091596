"""Stands in for `helm install`, `helm test` and `kubectl` where there is no cluster: one node, and it is podman.

Rendering is Helm's own. What Kubernetes would add is done here: a Service or `port-forward` is a `hostPort`
(30080 the writer, 30081 the reader), and `translated` says the rest in words that podman knows.
Called by the scripts that `install` writes: cluster.py STATE helm|kubectl ARGUMENT…
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def install(bin: Path, state: Path, helm: str) -> None:  # noqa: A002
    """Write `helm` and `kubectl` into a directory for PATH."""
    bin.mkdir()
    state.mkdir(exist_ok=True)
    (state / "helm").write_text(helm)
    for name in ("helm", "kubectl"):
        script = bin / name
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{state}" {name} "$@"\n'
        )
        script.chmod(0o755)


def helm(state: Path, arguments: list[str]) -> int:
    program = (state / "helm").read_text()
    if arguments[0] == "install":
        release, rest = arguments[1], arguments[2:]
        subprocess.run([program, "install", release, *rest, "--dry-run=client"], check=True)
        ports = "writer.hostPort=30080,reader.hostPort=30081"
        rendered = subprocess.run(
            [program, "template", release, *rest, f"--set={ports}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        objects = [one for one in yaml.safe_load_all(rendered) if one]
        hooks = [one for one in objects if "helm.sh/hook" in one["metadata"].get("annotations", {})]
        (state / f"{release}.hooks").write_text(yaml.safe_dump_all(hooks))
        rest_of_them = [one for one in objects if one not in hooks]
        return _play(yaml.safe_dump_all(translated(rest_of_them, state)))
    if arguments[0] == "test":
        release = arguments[-1]
        hooks = list(yaml.safe_load_all((state / f"{release}.hooks").read_text()))
        names = [
            f"{hook['metadata']['name']}-{one['name']}"
            for hook in hooks
            for one in hook["spec"]["containers"]
        ]
        # podman knows no Service, so its name becomes the address of the Pod behind it.
        text = yaml.safe_dump_all(hooks).replace(
            f"://{release}-sidecar:", f"://{_address(_pod(f'{release}-sidecar'))}:"
        )
        code = _play(text)
        for name in names:
            code = code or int(_podman("wait", name).split()[-1])
            print(_podman("logs", name), end="")
        return code
    return subprocess.run([program, *arguments], check=False).returncode


def kubectl(state: Path, arguments: list[str]) -> int:
    words = [one for one in arguments if not one.startswith("-") and one != "default"]
    if words[0] in {"port-forward", "rollout"}:
        return 0  # the hostPort is there already, and so is the Pod
    if words[0] in {"logs", "exec"}:
        target = _pod(words[1].rpartition("/")[2])
        of = arguments[arguments.index("-c") + 1] if "-c" in arguments else None
        names = [one["Names"][0] for one in _containers(target)]
        chosen = [name for name in names if of is None or name.endswith(f"-{of}")]
        if words[0] == "exec":
            command = arguments[arguments.index("--") + 1 :]
            return subprocess.run(["podman", "exec", *chosen[:1], *command], check=False).returncode
        for name in chosen:
            print(_podman("logs", name), end="")
        return 0
    if words[:2] == ["get", "pod"]:
        containers = _containers(words[2])
        ready = sum(1 for one in containers if one["State"] == "running")
        print("NAME       READY   STATUS    RESTARTS   AGE")
        print(f"{words[2]}   {ready}/{len(containers)}     Running   0          5s")
        return 0 if ready else 1
    if words[:2] == ["get", "nodes"]:
        print("127.0.0.1")
        return 0
    print(f"kubectl {' '.join(arguments)} is not known to this cluster", file=sys.stderr)
    return 2


def translated(objects: list[Any], state: Path) -> list[Any]:
    """Say in words that podman 4 knows what a Pod means.

    Directories of the node stand for its emptyDirs and paths: of the common group, which is what `fsGroup` makes of them.
    A native sidecar stands beside the other containers. What the downward API would say is written out.
    """
    added: list[Any] = []
    for one in objects:
        meta, spec = one["metadata"], one.get("spec", {})
        if one["kind"] in {"Deployment", "StatefulSet"}:
            meta, spec = spec["template"]["metadata"], spec["template"]["spec"]
        elif one["kind"] != "Pod":
            continue
        native = [c for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always"]
        spec["initContainers"] = [c for c in spec.get("initContainers", []) if c not in native]
        spec["containers"] = [*native, *spec["containers"]]
        for container in native:
            del container["restartPolicy"]
        fields = {
            "metadata.name": one["metadata"]["name"],
            "metadata.namespace": "default",
            "metadata.uid": "0e6a",
            "spec.nodeName": "node-1",
        }
        for variable in [
            v for c in spec["containers"] for v in c.get("env", []) if "valueFrom" in v
        ]:
            variable["value"] = fields[variable.pop("valueFrom")["fieldRef"]["fieldPath"]]
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume or "hostPath" in volume:
                own = volume["name"] if volume["name"] == "collector-state" else "volume"
                volume.pop("emptyDir", None)
                volume["hostPath"] = {"path": str(_directory(state / own))}
            elif volume.pop("downwardAPI", None):
                lines = "".join(f'{name}="{value}"\n' for name, value in meta["labels"].items())
                volume["configMap"] = {"name": "podinfo"}
                added.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "podinfo"}, "data": {"labels": lines}})  # fmt: skip
    return [*added, *objects]


def _directory(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(0o2777)
    os.chown(path, 0, 65532)
    return path


def _containers(pod: str) -> list[dict[str, Any]]:
    listed = json.loads(_podman("ps", "--all", f"--filter=pod={pod}", "--format=json"))
    return [one for one in listed if not one["IsInfra"]]


def _pod(workload: str) -> str:
    """Return the name of the Pod of a workload: its own, or what podman makes of a Deployment's."""
    names = _podman("pod", "ps", "--format={{.Name}}").split()
    (name,) = [one for one in names if one == workload or one.startswith(f"{workload}-pod")]
    return name


def _address(pod: str) -> str:
    infra = _podman("pod", "inspect", "--format={{.InfraContainerID}}", pod).strip()
    (described,) = json.loads(_podman("container", "inspect", infra))
    (network,) = described["NetworkSettings"]["Networks"].values()
    address: str = network["IPAddress"]
    return address


def _play(text: str) -> int:
    play = ("podman", "kube", "play", "-")
    return subprocess.run(
        play, input=text, text=True, stdout=subprocess.DEVNULL, check=False
    ).returncode


def _podman(*arguments: str) -> str:
    done = subprocess.run(
        ["podman", *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


if __name__ == "__main__":
    os.umask(0o022)
    where, command, *rest = sys.argv[1:]
    sys.exit({"helm": helm, "kubectl": kubectl}[command](Path(where), rest))
