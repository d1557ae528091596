"""The reloader in the chart: what it is told, what it may write, and what it cannot do to the application."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pod import chart, tools
from pod.matrix import MATRIX, rendered

ALL = "reloader with all that it knows"


def reloader(name: str) -> chart.Object:
    return chart.container(rendered(name), "reloader")


def test_every_option_of_the_command_is_a_value_of_the_same_name() -> None:
    """One word for one thing; those of storage are the values of the writer, and each that is set arrives."""
    from sidecar.cli.commands import reload

    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())
    storage = {"mode", "group", "keep", "keepBytes", "keepDeleted", "volumeBudget", "durability"}
    actions = {"webhook", "exec", "process", "pidFile"}
    # `once` is for init containers; the others are set in one place for all, or made of a Secret.
    elsewhere = {"help", "poll", "once", "logLevel", "logFormat", "tokenFile", "passwordFile"}
    options = {
        re.sub(r"_(.)", lambda letter: letter[1].upper(), str(one.name))
        for one in reload.command.params
    }
    assert options - elsewhere - actions - storage - values["reloader"].keys() == set()
    assert storage - values["writer"].keys() == set()
    given = MATRIX[ALL]["reloader"].keys() - {"enabled", "actions", "token", "readiness", "initial"}
    flags = {one.partition("=")[0] for one in reloader(ALL)["args"]}
    wanted = {
        "--" + re.sub(r"([A-Z])", lambda letter: f"-{letter[1].lower()}", one) for one in given
    }
    assert wanted - flags == set()
    assert {
        "--no-initial",
        "--token-file",
        "--mode",
        "--keep",
        "--keep-bytes",
        "--durability",
    } <= flags


def test_actions_keep_their_order() -> None:
    """It is that of the flags."""
    named = ("--exec=", "--webhook=", "--process=", "--pid-file=")
    found = [one for one in reloader(ALL)["args"] if one.startswith(named)]
    assert found == [
        "--exec=cat /shared/content",
        "--webhook=http://localhost:9090/-/reload",
        "--process=app",
        "--pid-file=/shared/pid",
    ]


def test_it_is_a_native_sidecar_or_an_ordinary_container() -> None:
    """Kubernetes: an init container with restartPolicy Always."""
    native = chart.pod_spec(rendered("reloader of a ConfigMap"))
    assert [one["name"] for one in native["initContainers"]] == ["reloader"]
    assert native["initContainers"][0]["restartPolicy"] == "Always"
    ordinary = chart.pod_spec(rendered("reloader as an ordinary container"))
    assert "reloader" in [one["name"] for one in ordinary["containers"]]
    assert "restartPolicy" not in reloader("reloader as an ordinary container")


def test_it_can_write_only_where_it_publishes() -> None:
    """A rollback, or an output on the shared volume; else it reads."""

    def mount(name: str) -> chart.Object:
        (found,) = [one for one in reloader(name)["volumeMounts"] if one["name"] == "shared"]
        return dict(found)

    assert mount("reloader of a ConfigMap")["readOnly"] is True
    assert "readOnly" not in mount(ALL)
    elsewhere: dict[str, Any] = {
        "reloader": {"enabled": True, "actions": [{"webhook": "http://x/"}], "expandTo": "/run/x"}
    }
    container = chart.container(
        chart.render({**elsewhere, "pod": {"terminationGracePeriodSeconds": 60}}), "reloader"
    )
    assert container["volumeMounts"] == [
        {"name": "shared", "mountPath": "/shared", "readOnly": True}
    ]


def test_a_refused_version_does_not_take_the_application_out_of_its_service() -> None:
    """A Pod is ready only if all its containers are."""
    assert "readinessProbe" not in reloader("reloader of a ConfigMap")
    assert {"startupProbe", "livenessProbe"} <= reloader("reloader of a ConfigMap").keys()
    assert reloader(ALL)["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_its_metrics_are_scraped_and_its_requests_may_leave_the_pod() -> None:
    """By both kinds of monitors; where all its addresses are in the Pod, no rule for egress is needed."""
    objects = rendered(ALL)
    for kind, where in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        assert "reloader" in [one["port"] for one in chart.only(objects, kind)["spec"][where]]
    assert "reloader" in [one["name"] for one in chart.only(objects, "Service")["spec"]["ports"]]
    local = {"reloader": {"enabled": True, "actions": [{"webhook": "http://localhost:1/"}]}}
    away = {"reloader": {"enabled": True, "actions": [{"webhook": "http://a.example/"}]}}
    for values, types in ((local, ["Ingress", "Egress"]), (away, ["Ingress"])):
        policy = chart.only(
            chart.render({**values, "pod": {"terminationGracePeriodSeconds": 60}}), "NetworkPolicy"
        )
        assert policy["spec"]["policyTypes"] == types


def test_a_password_for_its_requests_comes_from_a_secret() -> None:
    """As a file, which is read for each request; never as an argument."""
    values = {
        "reloader": {
            "enabled": True,
            "actions": [{"webhook": "http://localhost:3000/api"}],
            "user": "ada",
            "password": {"secret": "grafana", "key": "admin-password"},
        },
        "pod": {"terminationGracePeriodSeconds": 60},
    }
    objects = chart.render(values)
    container = chart.container(objects, "reloader")
    assert "--user=ada" in container["args"]
    assert "--password-file=/etc/sidecar/password/admin-password" in container["args"]
    assert "/etc/sidecar/password" in [one["mountPath"] for one in container["volumeMounts"]]
    assert "grafana" in [
        one["secret"]["secretName"] for one in chart.pod_spec(objects)["volumes"] if "secret" in one
    ]


def test_kubectl_logs_shows_the_application_first() -> None:
    """Beside an application the reloader is not what a person wants to see first."""
    workload = chart.only(rendered("reloader of a ConfigMap"), "Deployment")
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/default-container"] == "app"
