"""The defaults meet the Pod Security Standard "restricted": field by field, in every container.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import Any

import pytest

from pod import chart
from pod.matrix import MATRIX, rendered

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image",
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
# Those that ask for what the standard forbids.
BEYOND = {"the article", "daemon set on a path of the node", "any volume source"}
# Those with containers that are the user's own affair.
OTHERS = {
    *("containers of one's own", "native sidecars", "ci: native-values.yaml"),
    *("reloader with all that it knows", "reloader of a ConfigMap"),
    *("mirror with all that it knows", "mirror as an init container"),
}


def violations(spec: dict[str, Any]) -> list[str]:
    """Return what the standard forbids, as paths of fields."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec.get("securityContext", {})
    found += [
        f"volume {one['name']}"
        for one in spec.get("volumes", [])
        if (one.keys() - {"name"}) - VOLUMES
    ]
    found += [
        f"sysctl {one['name']}" for one in pod.get("sysctls", []) if one["name"] not in SYSCTLS
    ]
    found += _of_context("pod", pod)
    for one in [*chart.containers(spec), *spec.get("ephemeralContainers", [])]:
        found += _of_container(one, pod)
    return found


def _of_container(one: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    name, own = one["name"], one.get("securityContext", {})
    effective = {**pod, **own}
    capabilities = own.get("capabilities", {})
    handlers = [one.get(f"{probe}Probe") for probe in ("liveness", "readiness", "startup")]
    handlers += one.get("lifecycle", {}).values()
    wrong = {
        "privileged": own.get("privileged"),
        "hostPort": any(port.get("hostPort") for port in one.get("ports", [])),
        "host of a probe": any(
            (h or {}).get(k, {}).get("host") for h in handlers for k in ("httpGet", "tcpSocket")
        ),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
        "runAsNonRoot": effective.get("runAsNonRoot") is not True,
        "runAsUser": effective.get("runAsUser") == 0,
        "seccompProfile": effective.get("seccompProfile", {}).get("type")
        not in {"RuntimeDefault", "Localhost"},
        "capabilities.drop": "ALL" not in capabilities.get("drop", []),
        "capabilities.add": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
    }
    return [f"{name}: {field}" for field, bad in wrong.items() if bad] + _of_context(name, own)


def _of_context(name: str, context: dict[str, Any]) -> list[str]:
    selinux = context.get("seLinuxOptions", {})
    wrong = {
        "hostProcess": context.get("windowsOptions", {}).get("hostProcess"),
        "procMount": context.get("procMount", "Default") != "Default",
        "seLinuxOptions.type": selinux.get("type", "") not in {
            "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t",
        },
        "seLinuxOptions.user": selinux.get("user") or selinux.get("role"),
        "appArmorProfile": context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined",
    }  # fmt: skip
    return [f"{name}: {field}" for field, bad in wrong.items() if bad]


@pytest.mark.parametrize("name", sorted(MATRIX.keys() - BEYOND - OTHERS))
def test_nothing_that_is_restricted_is_asked_for(name: str) -> None:
    """No Pod of any of these sets of values violates the standard, the Pod of `helm test` included."""
    for one, spec in chart.pod_specs(rendered(name)):
        assert violations(spec) == [], one["metadata"]["name"]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_beside_other_containers_ours_stay_restricted(name: str) -> None:
    """What a user adds is the user's; ours keep the standard in init containers too."""
    found = [
        violation for _, spec in chart.pod_specs(rendered(name)) for violation in violations(spec)
    ]
    assert [one for one in found if one.split(":")[0] not in {"app", "first", "beside"}] == []


def test_the_article_goes_beyond_the_standard_in_two_points_only() -> None:
    """It asks for a directory of the node, and so for a writer that is root there; nothing else."""
    found = violations(chart.pod_spec(rendered("the article")))
    assert found == ["volume shared-data", "container1: runAsNonRoot", "container1: runAsUser"]


FAULTS = [
    ({"hostNetwork": True}, "hostNetwork"),
    ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
    ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, "sysctl kernel.msgmax"),
    ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, "pod: appArmorProfile"),
]
CONTAINER_FAULTS = [
    ({"ports": [{"hostPort": 80}]}, "hostPort"),
    ({"livenessProbe": {"httpGet": {"host": "a"}}}, "host of a probe"),
    ({"securityContext": {}}, "allowPrivilegeEscalation"),
    ({"securityContext": {"privileged": True}}, "privileged"),
    (
        {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}},
        "capabilities.add",
    ),
    ({"securityContext": {"procMount": "Unmasked"}}, "procMount"),
]


@pytest.mark.parametrize(("fault", "field"), FAULTS)
def test_each_violation_of_a_pod_is_found(fault: dict[str, Any], field: str) -> None:
    """The check itself: a planted violation is named."""
    assert field in violations({**chart.pod_spec(chart.render()), **fault})


@pytest.mark.parametrize(("fault", "field"), CONTAINER_FAULTS)
@pytest.mark.parametrize("where", ["containers", "initContainers", "ephemeralContainers"])
def test_each_violation_of_a_container_is_found(
    fault: dict[str, Any], field: str, where: str
) -> None:
    """The same for each kind of container."""
    spec = chart.pod_spec(chart.render())
    spec[where] = [{**spec["containers"][0], "name": "x", **fault}, *spec.get(where, [])]
    assert f"x: {field}" in violations(spec)


def test_containers_have_what_linters_ask_beyond_the_standard() -> None:
    """Read-only root, users above 10000, no token, and requests and limits of all three resources."""
    for _, spec in chart.pod_specs(chart.render()):
        assert spec["automountServiceAccountToken"] is False
        for one in chart.containers(spec):
            context = {**spec["securityContext"], **one["securityContext"]}
            assert context["readOnlyRootFilesystem"] is True
            assert context["runAsUser"] > 10000
            assert context["runAsGroup"] > 10000
            for kind in ("requests", "limits"):
                assert one["resources"][kind].keys() == {"cpu", "memory", "ephemeral-storage"}
