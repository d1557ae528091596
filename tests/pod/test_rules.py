"""What a value brings with it, so that nobody is surprised on a cluster: each rule is one of the chart's README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sidecar
from pod import chart, tools
from pod.matrix import MATRIX, rendered

PROBES = ("startup", "liveness", "readiness")


def ingress(values: dict[str, Any], port: str) -> Any:
    """Return who may reach a port by the NetworkPolicy; None is everybody."""
    policy = chart.only(chart.render(values), "NetworkPolicy")
    (rule,) = [one for one in policy["spec"]["ingress"] if one["ports"][0]["port"] == port]
    return rule.get("from")


@pytest.mark.parametrize("name", ["defaults", "guarded", "native sidecars", "IPv6 alone"])
def test_the_kubelet_asks_by_http_itself(name: str) -> None:
    """A command would start a Python of 16 MB for each probe: 52 ms of CPU a second a Pod in place of 4."""
    scheme = "HTTPS" if "tls" in MATRIX[name] else "HTTP"
    for role in ("writer", "reader"):
        container = chart.container(rendered(name), role)
        found = {kind: container[f"{kind}Probe"]["httpGet"] for kind in PROBES}
        urls = {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}
        assert found == {
            kind: {"path": url, "port": role, "scheme": scheme} for kind, url in urls.items()
        }


def test_commands_ask_where_the_kubelet_cannot() -> None:
    """On a loopback address nobody outside of the Pod is heard: `sidecar check`, at that very address."""
    urls = {"writer": "http://127.0.0.1:8080/readyz", "reader": "http://[::1]:8081/readyz"}
    for role, url in urls.items():
        probe = chart.container(rendered("on loopback only"), role)["readinessProbe"]
        assert probe["exec"]["command"] == ["sidecar", "check", url, "--timeout=3"]
    probe = chart.container(rendered("probes by commands"), "reader")["readinessProbe"]
    assert probe["exec"]["command"][2] == "http://localhost:8081/readyz"


def test_the_states_of_the_readme_are_those_of_the_page_on_http() -> None:
    """One table, of which each cell is tested; the chart's README says what the kubelet makes of it."""

    def states(page: Path) -> set[tuple[str, ...]]:
        rows = re.findall(r"^\| ((?:reader|writer|either): .*) \|$", page.read_text(), re.MULTILINE)
        return {tuple(row.split(" | ")[:4]) for row in rows}

    assert len(states(tools.CHART / "README.md")) == 10
    assert states(tools.CHART / "README.md") == states(tools.ROOT / "docs" / "http.md")


@pytest.mark.parametrize("name", MATRIX)
def test_no_readiness_of_one_container_is_about_a_receiver(name: str) -> None:
    """A Pod is in its Service only while all its containers are ready: a collector beside others is never asked."""
    for one, spec in chart.pod_specs(rendered(name)):
        for container in spec.get("initContainers", []) + spec["containers"]:
            if container.get("args", [""])[0] == "collect" and not chart.is_hook(one):
                alone = len(chart.containers(spec)) == 1
                assert ("readinessProbe" in container) <= alone


@pytest.mark.parametrize(
    ("values", "budget"),
    [
        ({}, 224 << 20),
        ({"volume": {"emptyDir": {"sizeLimit": "100M"}}}, 87_500_000),
        ({"volume": {"emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}}, 28 << 20),
        ({"collector": {"enabled": True}}, 128 << 20),
        ({"writer": {"volumeBudget": "64Mi"}}, "64Mi"),
        ({"volume": {"emptyDir": {"sizeLimit": ""}}}, None),
        ({"volume": {"persistentVolumeClaim": {"size": "1Gi"}}}, None),
    ],
)
def test_the_writer_stays_below_the_limit_of_its_volume(values: Any, budget: Any) -> None:
    """7/8 of an emptyDir's limit, half of it beside a collector: beyond the limit the kubelet evicts the Pod."""
    for major in (3, 4):
        arguments = chart.container(chart.render(values, major=major), "writer")["args"]
        found = [one for one in arguments if one.startswith("--volume-budget=")]
        assert found == ([] if budget is None else [f"--volume-budget={budget}"])


def test_the_network_policy_follows_what_leads_to_the_writer() -> None:
    """Pods of its namespace by default; whoever comes from outside where a port of the node or a route leads to it."""
    ours: dict[str, Any] = {"podSelector": {}}
    (first, *_) = ingress({}, "writer")
    assert first == ours
    route = {"enabled": True, "hosts": [{"paths": [{"path": "/", "to": "writer"}]}]}
    gateway = {
        "enabled": True,
        "parentRefs": [{"name": "a"}],
        "paths": [{"path": "/", "to": "writer"}],
    }
    for values in (
        {"service": {"type": "NodePort"}},
        {"service": {"type": "LoadBalancer"}},
        {"ingress": route},
        {"httpRoute": gateway},
        {"writer": {"hostPort": 8080}},
    ):
        assert ingress(values, "writer") is None, values
    assert ingress({"ingress": {"enabled": True}}, "writer")[0] == ours
    closed = {"type": "NodePort"}, {"writer": {"service": {"enabled": False}}}
    assert ingress({"service": closed[0], **closed[1]}, "writer")[0] == ours


def test_the_network_policy_lets_prometheus_and_the_test_in() -> None:
    """Who is asked for by other values reaches the ports that are closed to the rest."""
    peers = ingress({"metrics": {"podMonitor": {"enabled": True}}}, "writer")
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    assert {"namespaceSelector": {}, "podSelector": {"matchLabels": prometheus}} in peers
    objects = chart.render(
        {"networkPolicy": {"readerFrom": [{"podSelector": {"matchLabels": {"a": "b"}}}]}}
    )
    test = chart.only(objects, "Pod", hook=True)["metadata"]["labels"]
    for rule in chart.only(objects, "NetworkPolicy")["spec"]["ingress"]:
        labels = [one["podSelector"].get("matchLabels", {}) for one in rule["from"]]
        assert any(one and one.items() <= test.items() for one in labels)
    assert ingress({"networkPolicy": {"writerFrom": []}}, "writer") is None


def test_the_network_policy_lets_out_what_the_values_ask_for() -> None:
    """A reader elsewhere is asked by the writer, a receiver is written to; the reader of the Pod needs no rule."""

    def types(values: Any) -> Any:
        return chart.only(chart.render(values), "NetworkPolicy")["spec"]["policyTypes"]

    assert types({}) == ["Ingress", "Egress"]
    assert types({"writer": {"confirm": "http://[::1]:8081"}}) == ["Ingress", "Egress"]
    assert types({"writer": {"confirm": "http://reader.example"}}) == ["Ingress"]
    extra = chart.render(
        {"service": {"extraPorts": [{"name": "app", "port": 80, "targetPort": 9000}]}}
    )
    rules = chart.only(extra, "NetworkPolicy")["spec"]["ingress"]
    assert {"ports": [{"port": 9000, "protocol": "TCP"}]} in rules


def test_a_claim_outlives_the_release() -> None:
    """Helm deletes what it does not render any more: after an uninstall, and when `workload.kind` changes."""

    def policy(values: Any) -> Any:
        (claim,) = [one for one in chart.render(values) if one["kind"] == "PersistentVolumeClaim"]
        return claim["metadata"].get("annotations", {}).get("helm.sh/resource-policy")

    assert policy({"volume": {"persistentVolumeClaim": {"size": "1Gi"}}}) == "keep"
    assert policy({"volume": {"persistentVolumeClaim": {"size": "1Gi", "keep": False}}}) is None


def test_a_stateful_set_has_a_service_that_names_its_pods() -> None:
    """`serviceName` is a headless Service that is there, and has the Pods that are not ready, too."""
    objects = rendered("stateful set with a claim a Pod")
    name = chart.only(objects, "StatefulSet")["spec"]["serviceName"]
    (service,) = [
        one for one in objects if one["kind"] == "Service" and one["metadata"]["name"] == name
    ]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_an_image_that_no_registry_has_is_never_pulled() -> None:
    """`ErrImageNeverPull` says at once what is wrong; a pull from the registry `localhost` would fail with a refused connection."""
    assert chart.container(chart.render(), "writer")["imagePullPolicy"] == "Never"
    spec = chart.pod_spec(rendered("one of many charts"))
    assert {one["image"] for one in spec["containers"]} == {
        f"registry.example:5000/sidecar:{sidecar.__version__}"
    }
    assert {one["imagePullPolicy"] for one in spec["containers"]} == {"IfNotPresent"}
    assert spec["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize("major", [3, 4])
def test_lines_of_the_collector_have_one_form(major: int) -> None:
    """With stages some lines would be objects and others not; `json: false` asks for that."""

    def written(**collector: Any) -> str:
        objects = chart.render({"collector": {"enabled": True, **collector}}, major=major)
        (found,) = [one for one in objects if one["metadata"]["name"].endswith("-collector")]
        return str(found["data"]["pipeline.yaml"])

    stages = [{"parse": "json"}]
    assert "json: true" in written(stages=stages)
    assert "json:" not in written()
    assert "json:" not in written(stages=stages, json=False)


def test_the_names_of_service_and_routes_are_allowed() -> None:
    """Where names are limited, what the chart itself leads to the container goes on working."""
    names = "a.example,demo-sidecar,demo-sidecar.here,demo-sidecar.here.svc"
    objects = rendered("names and origins")
    assert f"--allowed-hosts={names}" in chart.container(objects, "writer")["args"]
    assert f"--allowed-hosts={names},c.example" in chart.container(objects, "reader")["args"]
    assert "--allowed-origins=https://b.example" in chart.container(objects, "writer")["args"]


def test_secrets_of_tokens_are_files_or_directories_of_names() -> None:
    """`key: ""` gives the mount as a whole, whose files are the names."""
    objects = rendered("tokens by name")
    mounts = {"--token-file": "/etc/sidecar/token", "--read-token-file": "/etc/sidecar/read-token"}
    for role, given in (
        ("writer", {"--token-file": "", "--read-token-file": "/token"}),
        ("reader", {"--read-token-file": ""}),
    ):
        container = chart.container(objects, role)
        wanted = {f"{flag}={mounts[flag]}{key}" for flag, key in given.items()}
        assert {one for one in container["args"] if "token-file=" in one} == wanted
        mounted = {one["mountPath"] for one in container["volumeMounts"]}
        assert {mounts[flag] for flag in given} == {one for one in mounted if "token" in one}
    spec = chart.pod_spec(objects)
    secrets = {
        one["name"]: one["secret"]["secretName"] for one in spec["volumes"] if "secret" in one
    }
    assert secrets == {
        "writer-token": "publishers",
        "writer-read-token": "viewers",
        "reader-read-token": "viewers",
    }


def test_a_monitor_uses_a_token_that_may_only_read() -> None:
    """And refuses to be without one: Prometheus would get 401 for ever."""
    writer = {"token": {"secret": "a", "key": ""}, "readToken": {"secret": "b", "key": "c"}}
    values: dict[str, Any] = {"metrics": {"podMonitor": {"enabled": True}}, "writer": writer}
    endpoint = chart.only(chart.render(values), "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    assert endpoint["authorization"]["credentials"] == {"name": "b", "key": "c"}
    writer["readToken"]["key"] = ""
    refused = chart.template(values, check=False)
    assert refused.returncode != 0
    assert "set writer.readToken.key" in refused.stderr


def test_an_admin_port_has_the_probes_and_the_metrics() -> None:
    """By plain HTTP and without a token, for the kubelet and Prometheus alone; on a loopback address by commands."""
    objects = rendered("admin ports")
    writer, reader = (chart.container(objects, role) for role in ("writer", "a-long-name"))
    assert {"--admin-port=9080", "--admin-host=127.0.0.1"} <= set(writer["args"])
    assert "--admin-port=9081" in reader["args"]
    assert reader["ports"][1] == {
        "name": "a-long-na-admin",
        "containerPort": 9081,
        "protocol": "TCP",
    }
    for probe in PROBES:
        assert writer[f"{probe}Probe"]["exec"]["command"][2].startswith("http://127.0.0.1:9080/")
        asked = reader[f"{probe}Probe"]["httpGet"]
        assert (asked["port"], asked["scheme"]) == ("a-long-na-admin", "HTTP")
    for kind, key in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        endpoints = chart.only(objects, kind)["spec"][key]
        wanted = [{"port": one, "path": "/metrics"} for one in ("writer-admin", "a-long-na-admin")]
        assert [one | {"interval": endpoints[0]["interval"]} for one in wanted] == endpoints
    ports = {one["name"]: one["port"] for one in chart.only(objects, "Service")["spec"]["ports"]}
    assert ports["a-long-na-admin"] == 9081
    rules = chart.only(objects, "NetworkPolicy")["spec"]["ingress"]
    (rule,) = [one for one in rules if one["ports"][0]["port"] == "a-long-na-admin"]
    assert rule["from"] == [
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
        }
    ]
    plain = chart.only(chart.render({"reader": {"adminPort": 9081}}), "Service")
    assert len(plain["spec"]["ports"]) == 2, "the Service leads there for a ServiceMonitor alone"
    clash = chart.template({"reader": {"adminPort": 8080}}, check=False)
    assert "reader.adminPort is 8080, a port of the writer" in clash.stderr


def test_both_addresses_of_a_service_can_be_asked_for() -> None:
    """One value for each thing: the families of the Service, and where a container listens."""
    objects = rendered("both families")
    spec = chart.only(objects, "Service")["spec"]
    assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == ("RequireDualStack", ["IPv6", "IPv4"])
    assert "--host=::" in chart.container(rendered("IPv6 alone"), "writer")["args"]
    assert not [one for one in chart.container(objects, "writer")["args"] if "--host" in one]


NOTES = {
    "an emptyDir is lost": ((), ["on an emptyDir of 256Mi", "WARNING", "volume.persistentVolumeClaim.size=1Gi"]),
    "the image must be loaded": (
        (),
        [f"kind load docker-image localhost/sidecar:{sidecar.__version__}", "minikube image load", "images import"],
    ),
    "the address of the Ingress": (
        ("--set=ingress.enabled=true", "--set=ingress.hosts[0].host=a.example",
         "--set=ingress.hosts[0].paths[0].path=/x", "--set=ingress.hosts[0].paths[0].to=writer"),
        ["http://a.example/x   # writer", "asks for no token"],
    ),
    "the token of the writer": (
        ("--set=writer.token.secret=a",), ['"token" | base64decode', "awk 'NF {print $NF; exit}'"],
    ),
    "the first of its tokens": (
        ("--set=writer.token.secret=a,writer.token.key=",), ["{{range .data}}{{. | base64decode}}"],
    ),
    "how to delete a claim": (
        ("--set=volume.persistentVolumeClaim.size=1Gi",),
        ["on the claim demo-sidecar", "kubectl delete pvc --namespace here demo-sidecar"],
    ),
    "the claims of a StatefulSet": (
        ("--set=workload.kind=StatefulSet,volume.persistentVolumeClaim.size=1Gi",),
        ["a claim of 1Gi for each Pod", "kubectl delete pvc --namespace here -l app.kubernetes.io"],
    ),
    "a content that the gate takes": (("--set=writer.format=toml",), ["?content=answer%3D123"]),
    "a file where a schema decides": (("--set-string=writer.schema=true",), ["--upload-file FILE", "writer.schema"]),
    "what never restarts": (
        ("--set=workload.kind=Pod,pod.restartPolicy=Never",),
        ["stays down, and the Pod 1/2", "Always"],
    ),
    "the log of the test": ((), ["helm test --namespace here --logs demo"]),
    "a namespace of its own": (("--set=namespaceOverride=there",), ["--namespace there service/demo-sidecar"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_the_notes_say_it(name: str) -> None:
    """What would surprise is told where everybody reads it."""
    options, words = NOTES[name]
    notes = tools.notes(*options)
    for word in words:
        assert word in notes, notes
