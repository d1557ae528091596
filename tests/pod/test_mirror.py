"""The mirror in the chart: what it is told, which rights it gets, and that no other container gets them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from pod import chart, tools
from pod.matrix import MATRIX, rendered

ALL = "mirror with all that it knows"
INIT = "mirror as an init container"
EVERYWHERE = "mirror of all namespaces beside a writer"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def mirror(name: str = ALL, container: str = "mirror") -> chart.Object:
    return chart.container(rendered(name), container)


def roles(name: str, kind: str = "Role") -> dict[str, Any]:
    """Return the rules by namespace."""
    found = [one for one in rendered(name) if one["kind"] == kind]
    return {one["metadata"].get("namespace", "*"): one["rules"] for one in found}


def test_every_option_of_the_command_is_a_value_of_the_same_name() -> None:
    """One word for one thing; those of storage are the values of the writer, and each that is set arrives."""
    from sidecar.cli.commands import mirror as command

    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())
    storage = {"mode", "group", "keep", "keepBytes", "keepDeleted", "volumeBudget", "durability"}
    actions = {"webhook", "exec", "process", "pidFile"}
    init = {"once", "orLastGood", "timeout"}
    elsewhere = {"help", "logLevel", "logFormat", "tokenFile", "passwordFile"}
    options = {
        re.sub(r"_(.)", lambda letter: letter[1].upper(), str(one.name))
        for one in command.command.params
    }
    assert options - elsewhere - actions - storage - init - values["mirror"].keys() == set()
    given = MATRIX[ALL]["mirror"].keys() - {"enabled", "init", "sources", "secrets", "actions", "initial", "readiness", "env", "extraArgs", "password"}  # fmt: skip
    flags = {one.partition("=")[0] for one in mirror()["args"]}
    wanted = {
        "--" + re.sub(r"([A-Z])", lambda letter: f"-{letter[1].lower()}", one) for one in given
    }
    assert wanted - flags == set()
    assert {"--no-initial", "--webhook", "--process", "--keep", "--durability"} <= flags


def test_it_runs_first_once_and_then_for_good() -> None:
    """The init container publishes before anything else starts; the native sidecar goes on."""
    first, second = chart.pod_spec(rendered(ALL))["initContainers"][:2]
    assert (first["name"], second["name"]) == ("mirror-init", "mirror")
    assert "restartPolicy" not in first
    assert second["restartPolicy"] == "Always"
    assert {"--once", "--timeout=30", "--or-last-good"} <= set(first["args"])
    assert {"--once", "--port=8083"} & set(second["args"]) == {"--port=8083"}
    assert first["args"][1:6] == second["args"][1:6] == [*MATRIX[ALL]["mirror"]["sources"], "--path=/shared/site/"]  # fmt: skip
    alone = chart.pod_spec(rendered(INIT))
    assert [one["name"] for one in alone["initContainers"]] == ["mirror-init"]
    assert "mirror" not in [one["name"] for one in alone["containers"]]
    assert "mirror" in [one["name"] for one in chart.pod_spec(rendered(EVERYWHERE))["containers"]]


def test_it_gets_the_right_to_list_and_watch_what_it_names_and_nothing_else() -> None:
    """A rule for each namespace; objects by their names where the source names them."""
    every = {"apiGroups": [""], "verbs": ["list", "watch"]}
    labelled = {**every, "resources": ["configmaps", "secrets"]}
    assert roles(ALL) == {
        "here": [labelled],
        "other": [
            labelled,
            {**every, "resources": ["configmaps"], "resourceNames": ["one", "two"]},
            {**every, "resources": ["secrets"], "resourceNames": ["three"]},
        ],
    }
    assert roles(EVERYWHERE) == {}
    assert roles(EVERYWHERE, "ClusterRole") == {"*": [{**every, "resources": ["configmaps"]}]}
    assert roles(INIT) == roles(INIT, "ClusterRole") == {}
    values = {**MATRIX[EVERYWHERE], "mirror": {**MATRIX[EVERYWHERE]["mirror"], "rbac": {"create": False}}}  # fmt: skip
    assert not [one for one in chart.render(values) if "rbac" in one["apiVersion"]]


@pytest.mark.parametrize(("name", "kind"), [(ALL, "Role"), (EVERYWHERE, "ClusterRole")])
def test_the_role_is_bound_to_the_account_of_the_pod(name: str, kind: str) -> None:
    """Which is that of its namespace, wherever the role is."""
    account = chart.pod_spec(rendered(name))["serviceAccountName"]
    bindings = [one for one in rendered(name) if one["kind"] == f"{kind}Binding"]
    roles_there = {(one["metadata"].get("namespace"), one["metadata"]["name"]) for one in rendered(name) if one["kind"] == kind}  # fmt: skip
    assert {(one["metadata"].get("namespace"), one["roleRef"]["name"]) for one in bindings} == roles_there  # fmt: skip
    for one in bindings:
        assert one["roleRef"]["kind"] == kind
        assert one["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "here"}]


def test_only_the_mirror_has_a_token_and_one_of_a_short_life() -> None:
    """Projected, with the authority and the namespace, as the kubelet would mount it; and for kube:// alone."""
    spec = chart.pod_spec(rendered(ALL))
    assert spec["automountServiceAccountToken"] is False
    having = [one["name"] for one in chart.containers(spec) if ACCOUNT in [mount["mountPath"] for mount in one.get("volumeMounts", [])]]  # fmt: skip
    assert having == ["mirror-init", "mirror"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "mirror-account"]
    token, authority, namespace = volume["projected"]["sources"]
    assert token["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600}
    assert (authority["configMap"]["name"], namespace["downwardAPI"]["items"][0]["path"]) == ("kube-root-ca.crt", "namespace")  # fmt: skip
    assert "mirror-account" not in [one["name"] for one in chart.pod_spec(rendered(INIT))["volumes"]]  # fmt: skip
    outside = {**MATRIX[INIT], "mirror": {**MATRIX[INIT]["mirror"], "sources": ["kube://shop/configmaps#into=a&server=https://k8s.example"]}}  # fmt: skip
    objects = chart.render(outside)
    assert "mirror-account" not in [one["name"] for one in chart.pod_spec(objects)["volumes"]]
    assert not [one for one in objects if "rbac" in one["apiVersion"]]


def test_credentials_are_files_of_secrets() -> None:
    """Those of sources where the addresses name them; the schema is a file, too; git has a /tmp."""
    mounts = {one["mountPath"]: one.get("readOnly") for one in mirror()["volumeMounts"]}
    assert mounts["/etc/sidecar/secrets/git"] is mounts["/etc/sidecar/password"] is True
    assert "--password-file=/etc/sidecar/password/admin-password" in mirror()["args"]
    assert "--schema=/etc/sidecar/config/schema.json" in mirror()["args"]
    maps = [one["data"] for one in rendered(ALL) if one["kind"] == "ConfigMap"]
    assert {"schema.json": "{}"} in maps
    assert mounts["/tmp"] is None
    assert "/tmp" not in [one["mountPath"] for one in mirror(INIT, "mirror-init")["volumeMounts"]]


def test_an_absent_source_does_not_take_the_application_out_of_its_service() -> None:
    """A Pod is ready only if all its containers are; who wants to wait for the content says so."""
    assert "readinessProbe" not in mirror(EVERYWHERE)
    assert {"startupProbe", "livenessProbe"} <= mirror(EVERYWHERE).keys()
    assert mirror()["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_its_metrics_are_scraped_and_its_requests_may_leave_the_pod() -> None:
    """By both kinds of monitors; one that only runs once has none."""
    objects = rendered(ALL)
    for kind, where in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        assert "mirror" in [one["port"] for one in chart.only(objects, kind)["spec"][where]]
    assert "mirror" in [one["name"] for one in chart.only(objects, "Service")["spec"]["ports"]]
    assert chart.only(objects, "NetworkPolicy")["spec"]["policyTypes"] == ["Ingress"]
    once = chart.only(rendered(INIT), "NetworkPolicy")["spec"]
    assert (once["policyTypes"], once["ingress"]) == (["Ingress"], None)
