"""The collector in the chart: what it is told, what it may touch, and what it does to its Pod."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pod import chart, tools
from pod.matrix import MATRIX, rendered
from sidecar.cli.commands import collect
from sidecar.logs import config_file
from sidecar.logs import pipeline as config
from sidecar.logs.input.discovery import Discovery

WITH_COLLECTOR = [name for name, values in MATRIX.items() if "collector" in values]
HOSTPATH = {"volume": {"hostPath": {"path": "/data"}}}


def render(**collector: Any) -> list[chart.Object]:
    return chart.render({"collector": {"enabled": True, **collector}})


def pipeline(objects: list[chart.Object], directory: Path) -> config.Pipeline:
    return configured(objects, directory).only


def configured(objects: list[chart.Object], directory: Path) -> config_file.Configuration:
    """Return what the program makes of the file in the ConfigMap."""
    (text,) = [
        one["data"]["pipeline.yaml"] for one in objects if "pipeline.yaml" in one.get("data", {})
    ]
    (directory / "pipeline.yaml").write_text(text)
    return config_file.load(directory / "pipeline.yaml")


@pytest.mark.parametrize("name", WITH_COLLECTOR)
def test_the_program_takes_the_file_that_the_chart_makes(name: str, tmp_path: Path) -> None:
    """Each name, pattern and address in it means something; nothing is lost or bent on the way."""
    found = pipeline(rendered(name), tmp_path)
    given = {"drainTimeout": 10, **MATRIX[name]["collector"]}
    assert found.source()
    assert len(found.make_stages()) >= len(given.get("stages", []))
    assert len(found.make_sinks()) == len(given.get("sinks", ["stdout"]))
    assert found.stages == given.get("stages", ())
    assert found.sinks == given.get("sinks", ())
    assert found.max_line == given.get("maxLine", 1 << 20)
    assert found.held_limit == (64 << 20) or "heldLimit" not in given
    assert found.drain_timeout == given["drainTimeout"]
    assert found.remove_after == given.get("removeAfter")
    assert found.until_process == given.get("untilProcess")
    until_file = given.get("untilFile")
    assert found.until_file == (until_file and f"/var/log/app/{until_file}")
    assert all(one.startswith("/") for one in found.files)


@pytest.mark.parametrize(
    ("volume", "limit"),
    [
        ({}, 128 << 20),
        ({"emptyDir": {"sizeLimit": "1.5Gi"}}, 768 << 20),
        ({"emptyDir": {"sizeLimit": "10M"}}, 5_000_000),
        ({"emptyDir": {"sizeLimit": 4097}}, 2048),
        ({"emptyDir": {"sizeLimit": "2Ti", "medium": "Memory"}}, 1 << 40),
        ({"emptyDir": {"sizeLimit": ""}}, 1 << 30),
        ({"hostPath": {"path": "/data"}}, 1 << 30),
    ],
)
def test_deleted_files_may_keep_half_of_the_volume(
    volume: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    """A receiver that is away must not fill the volume of the application, with no value set."""
    values = {"collector": {"enabled": True}, "volume": volume}
    for major in (3, 4):
        found = pipeline(chart.render(values, major=major), tmp_path)
        assert found.held_limit == limit


def test_every_name_of_the_file_is_a_value() -> None:
    """`drain_timeout` is `drainTimeout`: one word for one thing, and the chart leaves none out."""
    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())["collector"]
    assert {camel(name) for name in config.READERS} - values.keys() == set()


def test_each_name_of_the_file_is_set_by_its_value() -> None:
    """A value that is there and does nothing would be worse than none."""
    given = {"timeZone": "Europe/Berlin", "removeAfter": 7, "untilFile": "done", "untilProcess": "app", "ignoreOlder": 7, "pipelines": {"a": {}}}  # fmt: skip
    everything = MATRIX["collector with all that it knows"]
    collector = {**everything["collector"], **given}
    objects = chart.render({**everything, "enabled": False, "collector": collector})
    (text,) = [one["data"]["pipeline.yaml"] for one in objects if "pipeline.yaml" in one.get("data", {})]  # fmt: skip
    written = yaml.safe_load(text)
    # `podinfo` is the mount of the chart, which is the default of the command.
    assert config.READERS.keys() - {"podinfo"} | {"pipelines"} == written.keys()
    for name in written.keys() - {"files", "checkpoint", "until_file"}:
        assert written[name] == collector[camel(name)]


def test_pipelines_share_what_stands_beside_them(tmp_path: Path) -> None:
    """Each gets its own checkpoint beside the others', and the receivers of all where it names none."""
    pipelines = {"web": {"files": "/logs/web/*.log"}, "app": {"stages": [{"parse": "json"}]}}
    objects = render(sinks=["loki+http://loki:3100"], pipelines=pipelines)
    found = configured(objects, tmp_path).pipelines

    assert found["web"].files == ["/logs/web/*.log"]
    assert [one.name for one in found["app"].make_sinks()] == ["http://loki:3100/loki/api/v1/push"]
    assert {one.checkpoint for one in found.values()} == {"/var/lib/sidecar/offsets-web.json", "/var/lib/sidecar/offsets-app.json"}  # fmt: skip


def test_every_option_of_the_command_is_a_value_or_stands_in_the_file() -> None:
    """What the chart has under another word, or has no use for, is known, each with its reason."""
    elsewhere = {
        "archive": "archives", "sink": "sinks", "label": "labels", "dead_letter": "deadLetters",
        "multiline_end": "multiline", "parse": "stages", "keep": "stages", "drop": "stages", "redact": "stages",
        "add": "stages", "token_file": "token",
    }  # fmt: skip
    # Set for all containers; made by the chart; or for people at a terminal.
    beside = {"log_level", "log_format", "config", "once", "check_config", "dry_run", "replay", "status", "help"}  # fmt: skip
    names = {option.name for option in collect.command.params if option.name} - beside
    values = yaml.safe_load((tools.CHART / "values.yaml").read_text())["collector"]
    assert {elsewhere.get(name, camel(name)) for name in names} - values.keys() == set()


def test_the_schema_knows_the_stages_that_there_are() -> None:
    """A misspelt stage is refused by Helm, a new one is not."""
    properties = yaml.safe_load((tools.CHART / "values.schema.json").read_text())["definitions"]
    assert properties["stage"]["properties"].keys() == config._MAKERS.keys()


def test_a_change_of_the_pipeline_makes_new_pods() -> None:
    """An upgrade tells by its Pods whether the pipeline works: its checksum is in their annotations."""

    def annotations(**collector: Any) -> dict[str, str]:
        found: dict[str, str] = chart.only(render(**collector), "Deployment")["spec"]["template"]["metadata"]["annotations"]  # fmt: skip
        return found

    assert annotations() == annotations()
    assert annotations() != annotations(stages=[{"drop": "x"}])


def test_it_begins_before_the_application_and_ends_after_it() -> None:
    """A native sidecar by default; before the user's init containers, whose lines it delivers, too."""
    spec = chart.pod_spec(
        chart.render({**MATRIX["logs only"], "initContainers": [{"name": "first", "image": "x"}]})
    )
    assert [one["name"] for one in spec["initContainers"]] == ["logs", "first"]
    collector, _ = spec["initContainers"]
    assert collector["restartPolicy"] == "Always"
    assert "lifecycle" not in collector


def test_an_ordinary_container_goes_on_while_the_others_end() -> None:
    """All get SIGTERM at the same moment then; what an application writes on its way out is waited for."""
    collector = chart.container(rendered("collector as an ordinary container"), "logs")
    assert "restartPolicy" not in collector
    command = collector["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["python3", "-c", "import time; time.sleep(3)"]


def test_no_receiver_can_take_the_application_out_of_service() -> None:
    """A Pod is ready only if all its containers are, and Loki may be away for an hour: a collector that is alone may ask."""
    quiet = chart.container(render(), "logs")
    assert "readinessProbe" not in quiet
    assert {"startupProbe", "livenessProbe"} <= quiet.keys()
    alone = chart.container(rendered("collector that waits alone"), "logs")
    assert alone["readinessProbe"]["httpGet"] == {
        "path": "/readyz",
        "port": "logs",
        "scheme": "HTTP",
    }


def test_its_log_files_are_read_only_and_its_checkpoint_is_its_own() -> None:
    """Nothing but the collector mounts the checkpoint, and it cannot write where the application writes."""
    spec = chart.pod_spec(rendered("logs only"))
    mounts = {one["name"]: one["volumeMounts"] for one in chart.containers(spec)}
    assert {"name": "shared", "mountPath": "/var/log/app", "readOnly": True} in mounts["logs"]
    assert [name for name, held in mounts.items() if "collector-state" in str(held)] == ["logs"]
    writable = [one["name"] for one in mounts["logs"] if not one.get("readOnly")]
    assert writable == ["collector-state"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "emptyDir"),
        (HOSTPATH, "shared"),
        ({"volume": {"persistentVolumeClaim": {"size": "1Gi"}}}, "shared"),
        ({"volume": {"source": {"configMap": {"name": "a"}}}, "writer": {"enabled": False}}, "emptyDir"),
    ],
)  # fmt: skip
def test_a_checkpoint_lives_as_long_as_the_files_it_is_about(
    values: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    """Files that outlive their Pod would be delivered again by the next one without it."""
    objects = chart.render({"collector": {"enabled": True}, **values})
    held = {one["name"]: one for one in chart.pod_spec(objects)["volumes"]}
    checkpoint = pipeline(objects, tmp_path).checkpoint
    if kind == "shared":
        assert checkpoint == "/shared/..collector/offsets.json"
        assert "collector-state" not in held
    else:
        assert checkpoint == "/var/lib/sidecar/offsets.json"
        assert kind in held["collector-state"]


def test_it_never_collects_what_it_writes_itself(tmp_path: Path) -> None:
    """With patterns for everything on the shared volume its refused lines would go round for ever."""
    files = ["**", "*/*", "**/*.ndjson"]
    objects = chart.render({"collector": {"enabled": True, "files": files}, **HOSTPATH})
    found = pipeline(objects, tmp_path)
    checkpoint = str(found.checkpoint)
    for name in ("/shared/app.log", checkpoint, f"{checkpoint}.dead-letters.ndjson"):
        Path(f"{tmp_path}{name}").parent.mkdir(parents=True, exist_ok=True)
        Path(f"{tmp_path}{name}").write_text("line\n")

    def here(patterns: Any) -> list[str]:
        return [one.replace("/shared", f"{tmp_path}/shared") for one in patterns]

    assert Discovery(here(found.files)).scan().files.keys() == {f"{tmp_path}/shared/app.log"}


def test_two_collectors_never_follow_the_same_files() -> None:
    """Where the files outlive a Pod the old one ends before the new one begins."""

    def strategy(values: dict[str, Any]) -> Any:
        objects = chart.render({"collector": {"enabled": True}, **values})
        return chart.only(objects, "Deployment")["spec"].get("strategy")

    claim = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}
    assert strategy(HOSTPATH) == {"type": "Recreate"}
    assert strategy({"volume": {"persistentVolumeClaim": claim}}) == {"type": "Recreate"}
    assert strategy({}) is None


def test_it_may_reach_its_receivers() -> None:
    """The NetworkPolicy forbids outgoing traffic only where nothing goes out."""

    def types(*sinks: Any) -> list[str]:
        found: list[str] = chart.only(render(sinks=list(sinks)), "NetworkPolicy")["spec"]["policyTypes"]  # fmt: skip
        return found

    assert types() == types("stdout") == ["Ingress", "Egress"]
    assert types("https://logs.example") == types({"url": "loki+http://loki:3100"}) == ["Ingress"]


def test_its_metrics_are_scraped_without_the_tokens_of_others() -> None:
    """By http whatever `tls` says of writer and reader; its own token is for receivers, not for Prometheus."""
    objects = rendered("collector with all that it knows")
    (port,) = chart.only(objects, "Service")["spec"]["ports"]
    assert (port["name"], port["port"]) == ("logs", 9000)
    for kind, key in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        (endpoint,) = chart.only(objects, kind)["spec"][key]
        assert endpoint == {"port": "logs", "path": "/metrics", "interval": "30s"}


def test_a_service_without_a_port_is_none() -> None:
    """Kubernetes refuses one; a Pod that only collects needs none, unless something asks for its metrics."""
    kinds = {one["kind"] for one in rendered("logs only")}
    assert "Service" not in kinds
    assert chart.only(rendered("collector with its checkpoint on the shared claim"), "Service")


def test_the_pods_labels_come_by_the_downward_api() -> None:
    """Names that `sidecar.logs.pod_metadata` knows, and no token for the API of Kubernetes."""
    objects = rendered("collector with all that it knows")
    collector = chart.container(objects, "logs")
    fields = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in collector["env"] if "valueFrom" in one}  # fmt: skip
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
    }
    (volume,) = [one for one in chart.pod_spec(objects)["volumes"] if "downwardAPI" in one]
    assert [one["path"] for one in volume["downwardAPI"]["items"]] == ["labels", "annotations"]
    assert {"name": volume["name"], "mountPath": "/etc/podinfo", "readOnly": True} in collector["volumeMounts"]  # fmt: skip
    assert chart.pod_spec(objects)["automountServiceAccountToken"] is False


def test_kubectl_logs_shows_the_application_first() -> None:
    """Beside an application the collector is not what a person wants to see first."""

    def first(values: dict[str, Any]) -> str:
        annotations = chart.only(chart.render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]  # fmt: skip
        return str(annotations["kubectl.kubernetes.io/default-container"])

    assert first(MATRIX["logs only"]) == "app"
    assert first({"collector": {"enabled": True}}) == "reader"


def test_refused_lines_fit_where_they_are_kept() -> None:
    """Two generations of 256 MiB: a volume that is too small would have the whole Pod evicted."""
    from sidecar.logs.sinks.deadletter import DeadLetterFile

    objects = rendered("logs only")
    (state,) = [one for one in chart.pod_spec(objects)["volumes"] if one["name"] == "collector-state"]  # fmt: skip
    (shared,) = [one for one in chart.pod_spec(objects)["volumes"] if one["name"] == "shared"]
    most = 2 * DeadLetterFile("/x").max_bytes
    limit = chart.container(objects, "logs")["resources"]["limits"]["ephemeral-storage"]
    assert size(state["emptyDir"]["sizeLimit"]) > most
    # kubelet compares the sum of what the Pod has on the disk with the sum of the limits that are set.
    assert size(limit) > most + size(shared["emptyDir"]["sizeLimit"])


def test_notes_say_where_the_lines_are(tmp_path: Path) -> None:
    """NOTES.txt has the commands for what was collected, and for how far it is."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(MATRIX["logs only"]))
    notes = tools.notes(f"--values={values}")
    assert "kubectl logs --namespace here deployment/demo-sidecar -c logs" in notes
    assert "sidecar collect --status /var/lib/sidecar/offsets.json" in notes
    assert "/shared/content" not in notes


def test_notes_name_the_checkpoint_of_each_pipeline() -> None:
    """Each has its own; the one of a collector without pipelines is never written then."""
    notes = tools.notes("--set=collector.enabled=true,collector.pipelines.web.root=/a,collector.pipelines.app.root=/a")  # fmt: skip
    found = re.findall(r"sidecar collect --status /var/lib/sidecar/(\S+)", notes)
    assert found == ["offsets-app.json", "offsets-web.json"]


def camel(name: str) -> str:
    return re.sub(r"_(.)", lambda letter: letter[1].upper(), name)


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]
