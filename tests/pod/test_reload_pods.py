"""examples/reload-nginx as a real Pod: a signal from one container to another, in the process namespace that they share."""

from __future__ import annotations

import shutil

import pytest
import yaml

from pod import podman, tools
from pod.podman import get, http_call, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.soak,
    pytest.mark.skipif(
        shutil.which("nginx", path="/usr/sbin:/usr/bin") is None,
        reason="needs nginx (apt install nginx-light)",
    ),
]

EXAMPLE = tools.ROOT / "examples" / "reload-nginx"
WRITER, NGINX = "http://127.0.0.1:30080", "http://127.0.0.1:30088"
BROKEN = b"http { server { listen nowhere; } }\n"


def pod_of_the_example(base: str) -> str:
    """Return the Pod as podman can run it: without native sidecars, and with the nginx of this machine, from its /usr."""
    (pod,) = yaml.safe_load_all((EXAMPLE / "pod.yaml").read_text())
    spec = pod["spec"]
    sidecars = {one["name"]: one for one in spec.pop("initContainers")}
    (nginx,) = (one for one in spec["containers"] if one["name"] == "nginx")
    command = " ".join(f"'{word}'" for word in nginx["command"])
    nginx |= {
        "image": base,
        # In the place of the init container `wait`.
        "command": [
            "sh",
            "-c",
            f"until [ -e /run/app/nginx.conf ]; do sleep .1; done; exec {command}",
        ],
        "ports": [{"containerPort": 8088, "hostPort": 30088}],
    }
    nginx["volumeMounts"].append({"name": "usr", "mountPath": "/usr", "readOnly": True})
    writer, reload = sidecars["writer"], sidecars["reload-nginx"]
    writer["ports"] = [{"containerPort": 8080, "hostPort": 30080}]
    for one in (writer, reload):
        del one["restartPolicy"]
    spec["containers"] = [writer, reload, nginx]
    spec["volumes"].append({"name": "usr", "hostPath": {"path": "/usr"}})
    return yaml.safe_dump(pod)


def test_a_signal_reaches_nginx_in_another_container_and_what_it_refuses_is_rolled_back(
    image: str,
) -> None:
    """`shareProcessNamespace` and one user: the master gets SIGHUP, goes on as the same process, and has the new version."""
    config = (EXAMPLE / "nginx.conf").read_bytes()

    def publish(data: bytes) -> str:
        answer = http_call("PUT", f"{WRITER}/files/nginx.conf", data)
        assert answer.status in (201, 204), answer.text
        return answer.headers["etag"].strip('"')

    with podman.play(pod_of_the_example(podman.base())) as pod:

        def logs() -> str:
            return pod.logs("reload-nginx")

        until(lambda: get(f"{WRITER}/readyz").status == 200)
        first = publish(config)
        until(lambda: first in get(f"{NGINX}/version").text)
        master = pod.pid("nginx")
        second = publish(config + b"# second\n")
        until(lambda: f"version {second} of /shared/nginx.conf: confirmation" in logs())
        publish(BROKEN)
        until(lambda: get(f"{WRITER}/files/nginx.conf").body == config + b"# second\n")
        until(lambda: f"was rolled back to {second}" in logs())
        assert second in get(f"{NGINX}/version").text
        assert pod.pid("nginx") == master
