"""The chart renders what Kubernetes takes, for all that people set, with both Helms."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pod import chart, tools
from pod.matrix import MATRIX, rendered

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="needs the package kubernetes-validate"
)

# Reading a schema takes ten times what its use takes.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)

KUBERNETES = ("1.31", "1.34", "1.37")
HELMS = (3, 4)
# Objects of operators and of the Gateway API: their schemas are not those of Kubernetes.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute"}


@pytest.mark.parametrize("name", MATRIX)
def test_each_set_of_values_passes_lint_and_both_helms_render_the_same(
    name: str, tmp_path: Path
) -> None:
    """`helm lint --strict` says nothing, and Helm 3 and Helm 4 agree on every object."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(MATRIX[name]))
    objects = []
    for major in HELMS:
        tools.run(tools.helm(major), "lint", "--strict", tools.CHART, "--values", values)
        objects.append(rendered(name, major))
    assert _sorted(objects[0]) == _sorted(objects[1])
    assert objects[0], "nothing was rendered"


@pytest.mark.parametrize("name", MATRIX)
def test_each_object_is_one_that_kubernetes_knows(name: str) -> None:
    """Each object validates against the schemas of three versions of Kubernetes, unknown fields refused."""
    for one in rendered(name):
        for version in KUBERNETES:
            if one["kind"] not in FOREIGN:
                _validate(json.dumps(one), version)
        # Rights lie where the objects are that they are for.
        if one["kind"] not in {"Role", "RoleBinding"}:
            assert one["metadata"].get("namespace", "here") == "here"


def test_the_validation_would_find_a_misspelt_field() -> None:
    """The schemas are strict: a field that Kubernetes would drop in silence is an error here."""
    (pod,) = [one for one in chart.render() if one["kind"] == "Deployment"]
    pod["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("major", HELMS)
def test_the_package_holds_all_that_renders(major: int, tmp_path: Path) -> None:
    """`helm package` makes an archive that renders what the directory renders."""
    tools.run(tools.helm(major), "package", tools.CHART, "--destination", tmp_path)
    (archive,) = tmp_path.glob("sidecar-*.tgz")
    everything = MATRIX["observed"]
    assert chart.render(everything, chart=archive, major=major) == chart.render(
        everything, major=major
    )


def test_schema_and_readme_are_made_from_the_values_of_today() -> None:
    """`make chart` was run after the last change of values.yaml, and every value is described."""
    command = [sys.executable, str(tools.ROOT / "charts" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_value() -> None:
    """A value that is in values.yaml is in the README."""
    readme = (tools.CHART / "README.md").read_text()

    def leaves(node: Any, path: str = "") -> list[str]:
        if isinstance(node, dict) and node and f"| `{path}` |" not in readme:
            return [
                leaf
                for key, child in node.items()
                for leaf in leaves(child, f"{path}.{key}".strip("."))
            ]
        return [path]

    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())
    assert [leaf for leaf in leaves(values) if f"| `{leaf}` |" not in readme] == []


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_every_option_of_the_command_is_a_value_of_the_same_name(role: str) -> None:
    """`--check-timeout` is `checkTimeout`: one word for one thing, and none is missing in the chart."""
    from sidecar.cli.commands import read, write

    command = {"writer": write, "reader": read}[role].command
    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())
    # Set in one place for both, or made of something else; a socket cannot be reached by a Service.
    elsewhere = {
        "log_level",
        "log_format",
        "drain_delay",
        "drain_timeout",
        "tls_cert",
        "tls_key",
        "token_file",
        "read_token_file",
    }
    beside = {"help", "host", "unix_socket", "poll"}
    options = {option.name for option in command.params} - elsewhere - beside
    camel = {re.sub(r"_(.)", lambda letter: letter[1].upper(), name) for name in options if name}
    assert camel - values[role].keys() == set()
    # A value that is there and does nothing would be worse than none.
    given = {name: _sample(role, name) for name in camel - {"path", "port"}}
    taken = chart.container(chart.render({role: given}), role)["args"]
    # The last way to say it: of a pair, as `--ui/--no-ui`, that which is not the default.
    flags = {[*one.opts, *one.secondary_opts][-1] for one in command.params if one.name in options}
    assert flags - {one.partition("=")[0] for one in taken} == set()
    arguments = " ".join(chart.container(chart.render(), role)["args"])
    for name in elsewhere - {"tls_cert", "tls_key", "token_file", "read_token_file"}:
        assert f"--{name.replace('_', '-')}=" in arguments


@pytest.mark.parametrize("name", MATRIX)
def test_every_argument_in_the_chart_is_one_that_the_command_takes(name: str) -> None:
    """What the chart passes is parsed by the command itself: no flag that it does not know, no value it refuses."""
    from sidecar.cli.commands import collect, publish, read, reload, write

    commands = {
        "reload": reload.command,
        "write": write.command,
        "read": read.command,
        "publish": publish.command,
        "collect": collect.command,
    }
    for _, spec in chart.pod_specs(rendered(name)):
        for container in chart.containers(spec):
            first, *arguments = container.get("args", [""])
            if first in commands:
                arguments = [
                    one
                    for one in arguments
                    if not re.match("--(schema|token-file|read-token-file|confirm-ca|tls-)", one)
                ]
                arguments = [
                    "/dev/null" if one.startswith("/etc/sidecar/") else one for one in arguments
                ]
                commands[first].make_context(first, arguments)


def test_a_change_of_configuration_makes_new_pods() -> None:
    """The Pod's annotations hold checksums of what is read at its start only."""

    def annotations(**values: Any) -> dict[str, str]:
        return chart.only(chart.render(values), "Deployment")["spec"]["template"]["metadata"][
            "annotations"
        ]

    for one, other in (
        ({"initialContent": {"text": "a"}}, {"initialContent": {"text": "b"}}),
        ({"writer": {"schema": "{}"}}, {"writer": {"schema": "true"}}),
    ):
        assert annotations(**one) == annotations(**one)
        assert annotations(**one) != annotations(**other)


def test_a_claim_for_one_node_is_never_waited_for_by_two_pods() -> None:
    """A rolling update would start the new Pod while the old one holds the claim: it is recreated instead."""

    def strategy(modes: list[str]) -> Any:
        values = {"volume": {"persistentVolumeClaim": {"size": "1Gi", "accessModes": modes}}}
        return chart.only(chart.render(values), "Deployment")["spec"].get("strategy")

    assert strategy(["ReadWriteOnce"]) == {"type": "Recreate"}
    assert strategy(["ReadWriteMany"]) is None


def test_a_pod_that_ends_has_time_to_drain() -> None:
    """The grace period is longer than both times of draining together."""
    spec = chart.pod_spec(chart.render())
    times = [
        float(one.partition("=")[2])
        for one in spec["containers"][0]["args"]
        if one.startswith("--drain-")
    ]
    assert len(times) == 2
    assert sum(times) < spec["terminationGracePeriodSeconds"]


def test_selectors_find_the_pods_and_nothing_else() -> None:
    """Service, NetworkPolicy, monitors and budget select the Pods of the release, and not the Pod of `helm test`."""
    values = {**MATRIX["observed"], "podDisruptionBudget": {"enabled": True}}
    objects = chart.render(values)
    pod = chart.only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    test = chart.only(objects, "Pod", hook=True)["metadata"]["labels"]
    selectors = {
        "Service": chart.only(objects, "Service")["spec"]["selector"],
        "NetworkPolicy": chart.only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        "PodDisruptionBudget": chart.only(objects, "PodDisruptionBudget")["spec"]["selector"][
            "matchLabels"
        ],
        "PodMonitor": chart.only(objects, "PodMonitor")["spec"]["selector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        assert selector.items() <= pod.items(), kind
        assert not selector.items() <= test.items(), kind
    monitored = chart.only(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= chart.only(objects, "Service")["metadata"]["labels"].items()


def test_all_ports_have_names_that_lead_somewhere() -> None:
    """Whatever names a port names one of a container."""
    objects = chart.render(MATRIX["observed"] | {"ingress": {"enabled": True}})
    names = {port["name"] for one in chart.pod_spec(objects)["containers"] for port in one["ports"]}
    service = chart.only(objects, "Service")["spec"]["ports"]
    assert {port["targetPort"] for port in service} == names
    assert {
        one["port"] for one in chart.only(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    } == names
    assert {
        one["port"] for one in chart.only(objects, "ServiceMonitor")["spec"]["endpoints"]
    } == names
    (rule,) = chart.only(objects, "Ingress")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["port"]["name"] in {
        port["name"] for port in service
    }


def test_no_service_can_set_our_variables() -> None:
    """A Service named sidecar-write would set SIDECAR_WRITE_PORT in each Pod of its namespace."""
    for name in MATRIX:
        for _, spec in chart.pod_specs(rendered(name)):
            assert spec["enableServiceLinks"] is False


def test_the_reader_cannot_write_and_neither_is_the_other() -> None:
    """The reader's mount is read-only, and the two are different users of one group."""
    writer, reader = (chart.container(chart.render(), name) for name in ("writer", "reader"))
    assert reader["volumeMounts"] == [{"name": "shared", "mountPath": "/shared", "readOnly": True}]
    assert writer["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert writer["securityContext"]["runAsUser"] != reader["securityContext"]["runAsUser"]
    assert writer["securityContext"]["runAsGroup"] == reader["securityContext"]["runAsGroup"]


def test_public_keys_are_mounted_where_the_argument_names_them() -> None:
    """As a directory, not by `subPath`: a key that is added or retired arrives without a restart."""
    spec = copy.deepcopy(chart.pod_spec(rendered("signed")))
    sources = {
        "writer": {"secret": {"secretName": "keys", "defaultMode": 0o440}},
        "reader": {"configMap": {"name": "keys"}},
        "reloader": {"configMap": {"name": "keys"}},
        "mirror": {"configMap": {"name": "other-keys"}},
        "mirror-init": {"configMap": {"name": "other-keys"}},
    }
    volumes = {one.pop("name"): one for one in spec["volumes"]}
    for container in chart.containers(spec):
        source = sources.pop(container["name"])
        (mount,) = [m for m in container["volumeMounts"] if m["name"].endswith("-verify-key")]
        assert "subPath" not in mount
        assert mount["readOnly"] is True
        key = "of-ci.pem" if container["name"] == "writer" else "verify.pem"
        assert f"--verify-key={mount['mountPath']}/{key}" in container["args"]
        assert volumes[mount["name"]] == source
    assert sources == {}


def test_notes_are_for_this_release() -> None:
    """NOTES.txt names the release, its namespace and its ports."""
    notes = tools.notes("--set=writer.port=9090")
    assert "kubectl port-forward --namespace here service/demo-sidecar 9090:9090 8081:8081" in notes
    assert 'curl "http://localhost:9090/?content=123"' in notes
    assert "helm test --namespace here --logs demo" in notes


def _sample(role: str, name: str) -> Any:
    """A value that the schema lets pass, and that is not the default."""
    schema = json.loads((tools.CHART / "values.schema.json").read_text())
    found = schema["properties"][role]["properties"][name]
    if name == "verifyKey":
        return {"configMap": "keys"}
    if "enum" in found:
        return found["enum"][-1]
    types = {found["type"]} if isinstance(found["type"], str) else set(found["type"])
    if types & {"integer", "number"}:
        return 7
    if "array" in types:
        return ["a.example"]
    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())
    return not values[role][name] if "boolean" in types else "0600"


@cache
def _validate(one: str, version: str) -> None:
    """Validate an object, once: many sets of values render the same ones."""
    kubernetes_validate.validate(json.loads(one), version, strict=True)


def _sorted(objects: list[chart.Object]) -> list[str]:
    return sorted(json.dumps(one, sort_keys=True) for one in objects)
