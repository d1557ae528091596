"""A wrong value is refused, in words: which value, and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from pod import chart

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "port as text": ({"writer": {"port": "http"}}, ("writer", "port", "string", "integer")),
    "port out of range": ({"reader": {"port": 70000}}, ("reader", "port", "65535|65,535")),
    "unknown key": ({"writer": {"prot": 1}}, ("writer", "prot", "port")),
    "unknown key at the top": ({"wirter": {}}, ("wirter", "writer")),
    "hostPath without path": (
        {"volume": {"hostPath": {"type": "Directory"}}},
        ("volume.hostPath.path", "/data"),
    ),
    "hostPath that is relative": (
        {"volume": {"hostPath": {"path": "data"}}},
        ("volume.hostPath.path", "absolute"),
    ),
    "node port out of range": (
        {"writer": {"service": {"nodePort": 80}}},
        ("nodePort", "30000|30,000"),
    ),
    "node port of no node": (
        {"writer": {"service": {"nodePort": 30080}}},
        ("writer.service.nodePort", "service.type", "NodePort"),
    ),
    "claim and path of the node": (
        {"volume": {"hostPath": {"path": "/data"}, "persistentVolumeClaim": {"size": "1Gi"}}},
        ("volume.hostPath and volume.persistentVolumeClaim", "at most one"),
    ),
    "two claims": (
        {"volume": {"persistentVolumeClaim": {"size": "1Gi", "existingClaim": "a"}}},
        ("persistentVolumeClaim", "existingClaim", "size"),
    ),
    "two sources": (
        {"volume": {"source": {"nfs": {}, "csi": {}}}},
        ("volume.source", "csi, nfs", "one source"),
    ),
    "size that is none": ({"volume": {"emptyDir": {"sizeLimit": "much"}}}, ("sizeLimit",)),
    "keys in two places": (
        {"reader": {"verifyKey": {"configMap": "a", "secret": "b"}}},
        ("reader.verifyKey.configMap", "reader.verifyKey.secret", "one of them"),
    ),
    "kind that is none": (
        {"workload": {"kind": "Job"}},
        ("workload", "kind", "Deployment", "StatefulSet", "Pod"),
    ),
    "path outside of the volume": (
        {"path": "/elsewhere/a"},
        ("/elsewhere/a", "/shared/", "volume.mountPath"),
    ),
    "same port twice": ({"writer": {"port": 8081}}, ("writer.port", "reader.port", "8081")),
    "same name twice": ({"writer": {"name": "reader"}}, ("writer.name", "reader.name")),
    "no container": (
        {"writer": {"enabled": False}, "reader": {"enabled": False}},
        ("writer.enabled", "extraContainers"),
    ),
    "native collector that ends by itself": (
        {"collector": {"enabled": True, "untilFile": "done"}},
        ("collector.untilFile", "collector.native=false"),
    ),
    "collector that waits for a process it cannot see": (
        {"collector": {"enabled": True, "native": False, "untilProcess": "app"}},
        ("collector.untilProcess", "pod.shareProcessNamespace=true"),
    ),
    "deployment that never restarts": (
        {"pod": {"restartPolicy": "Never"}},
        ("pod.restartPolicy", "Always", "Pod"),
    ),
    "grace too short": (
        {"pod": {"terminationGracePeriodSeconds": 10}},
        ("terminationGracePeriodSeconds", "15"),
    ),
    "writer on a ConfigMap": (
        {"volume": {"source": {"configMap": {"name": "a"}}}},
        ("volume.source.configMap", "writer.enabled=false"),
    ),
    "scaled writer": (
        {"autoscaling": {"enabled": True}},
        ("autoscaling.enabled", "writer.enabled=false"),
    ),
    "scaled daemon set": (
        {"autoscaling": {"enabled": True}, "workload": {"kind": "DaemonSet"}},
        ("autoscaling.enabled", "Deployment or StatefulSet"),
    ),
    "two initial contents": (
        {"initialContent": {"text": "a", "secret": "b"}},
        ("initialContent.text and initialContent.secret",),
    ),
    "route without a gateway": (
        {"httpRoute": {"enabled": True}},
        ("httpRoute.parentRefs", "- name"),
    ),
    "ingress without a service": (
        {"ingress": {"enabled": True}, "service": {"enabled": False}},
        ("ingress.enabled", "service.enabled"),
    ),
    "digest that is none": ({"image": {"digest": "latest"}}, ("image", "digest", "sha256")),
    "mode that is none": ({"writer": {"mode": "rw"}}, ("writer", "mode", "[0-7]")),
    "collector without files": (
        {"collector": {"enabled": True, "files": []}},
        ("collector.files", "*.log*"),
    ),
    "log files on no volume": (
        {"collector": {"enabled": True, "files": ["/var/log/app/*.log"]}},
        ("collector.files", "/var/log/app/*.log", "/shared/", "collector.extraVolumeMounts"),
    ),
    "collector on the port of another": (
        {"collector": {"enabled": True, "port": 8081}},
        ("reader.port and collector.port", "8081"),
    ),
    "collector with the name of another": (
        {"collector": {"enabled": True, "name": "writer"}},
        ("writer.name and collector.name",),
    ),
    "collector beside nothing": (
        {
            "writer": {"enabled": False},
            "reader": {"enabled": False},
            "collector": {"enabled": True},
        },
        ("collector.native", "extraContainers", "init container"),
    ),
    "reloader without actions": (
        {"reloader": {"enabled": True}},
        ("reloader.actions", "webhook"),
    ),
    "action that is none": (
        {"reloader": {"actions": [{"webhok": "http://x"}]}},
        ("reloader", "actions", "webhok", "webhook, exec, process, pidFile"),
    ),
    "signal to a process that it cannot see": (
        {"reloader": {"enabled": True, "actions": [{"process": "app"}]}},
        ("reloader.actions", "pod.shareProcessNamespace=true"),
    ),
    "password in a webhook": (
        {"reloader": {"enabled": True, "actions": [{"webhook": "http://ada:secret@x/"}]}},
        ("reloader.actions", "…@x", "reloader.token.secret"),
    ),
    "rollback of a ConfigMap": (
        {
            "writer": {"enabled": False},
            "path": "/shared/",
            "volume": {"source": {"configMap": {"name": "app"}}},
            "reloader": {
                "enabled": True,
                "actions": [{"webhook": "http://x/"}],
                "rollbackOnFailure": True,
            },
        },
        ("reloader.rollbackOnFailure", "volume.source.configMap"),
    ),
    "reloader with half of its credentials": (
        {"reloader": {"enabled": True, "actions": [{"webhook": "http://x/"}], "user": "ada"}},
        ("reloader.user", "reloader.password.secret", "go together"),
    ),
    "reloader on the port of another": (
        {"reloader": {"enabled": True, "port": 8081, "actions": [{"webhook": "http://x/"}]}},
        ("reader.port and reloader.port", "8081"),
    ),
    "reloader that is killed in its drain": (
        {
            "reloader": {
                "enabled": True,
                "drainTimeout": 20,
                "actions": [{"webhook": "http://x/"}],
            }
        },
        ("pod.terminationGracePeriodSeconds", "reloader.drainTimeout (20)"),
    ),
    "mirror without sources": (
        {"writer": {"enabled": False}, "mirror": {"enabled": True}},
        ("mirror.sources", "kube://./configmaps"),
    ),
    "source that is no address": (
        {"mirror": {"sources": ["configmaps/app"]}},
        ("mirror", "sources", "pattern"),
    ),
    "mirror and writer of one set": (
        {"mirror": {"enabled": True, "sources": ["https://x/a"]}},
        ("writer.enabled=false", "mirror.path", "/shared/content/"),
    ),
    "password in a source": (
        {
            "writer": {"enabled": False},
            "mirror": {"enabled": True, "sources": ["git+https://ada:secret@x/a.git"]},
        },
        ("mirror.sources", "git+https://…@x/a.git", "mirror.secrets"),
    ),
    "mirror that does nothing": (
        {
            "writer": {"enabled": False},
            "mirror": {"enabled": True, "sources": ["https://x/a"], "follow": False},
        },
        ("mirror.follow", "mirror.init.enabled"),
    ),
    "last good content without a time": (
        {
            "writer": {"enabled": False},
            "mirror": {
                "enabled": True,
                "sources": ["https://x/a"],
                "init": {"enabled": True, "orLastGood": True},
            },
        },
        ("mirror.init.orLastGood", "mirror.init.timeout"),
    ),
    "mirror of all namespaces": (
        {
            "writer": {"enabled": False},
            "mirror": {"enabled": True, "sources": ["kube://*/secrets"]},
        },
        ("mirror.rbac.clusterWide=true", "ClusterRole"),
    ),
    "mirror into a ConfigMap": (
        {
            "writer": {"enabled": False},
            "path": "/shared/",
            "volume": {"source": {"configMap": {"name": "app"}}},
            "mirror": {"enabled": True, "sources": ["https://x/a"]},
        },
        ("volume.source.configMap", "mirror.enabled=false"),
    ),
    "mirror with half of its credentials": (
        {
            "writer": {"enabled": False},
            "mirror": {"enabled": True, "sources": ["https://x/a"], "password": {"secret": "a"}},
        },
        ("mirror.user", "mirror.password.secret", "go together"),
    ),
    "stage that is none": (
        {"collector": {"stages": [{"pasre": "json"}]}},
        ("collector", "stages", "pasre", "parse, level"),
    ),
    "receiver without address": (
        {"collector": {"sinks": [{"tenant": "shop"}]}},
        ("collector", "sinks", "url"),
    ),
    "unknown key of the collector": (
        {"collector": {"paths": ["*.log"]}},
        ("collector", "paths", "files"),
    ),
    "size of a line that is none": (
        {"collector": {"maxLine": "long"}},
        ("collector", "maxLine", "Ki|Mi"),
    ),
    "password in a ConfigMap": (
        {"collector": {"enabled": True, "sinks": ["https://ada:secret@logs.example/in"]}},
        ("collector.sinks", "…@logs.example", "collector.secrets", "password_file"),
    ),
    "file where nothing can be written": (
        {"collector": {"enabled": True, "sinks": ["file:///archive/app.log"]}},
        ("collector.sinks", "file:///archive/app.log", "collector.extraVolumeMounts"),
    ),
    "refused lines where nothing can be written": (
        {"collector": {"enabled": True, "deadLetters": "/shared/refused"}},
        ("collector.deadLetters", "/var/lib/sidecar/"),
    ),
    "two places for a checkpoint": (
        {
            "collector": {
                "enabled": True,
                "checkpoint": {"volume": "shared", "persistentVolumeClaim": {"size": "1Gi"}},
            }
        },
        ("collector.checkpoint.volume", "collector.checkpoint.persistentVolumeClaim"),
    ),
    "claim for a checkpoint that is not named": (
        {"collector": {"enabled": True, "checkpoint": {"volume": "persistentVolumeClaim"}}},
        ("collector.checkpoint.persistentVolumeClaim.existingClaim", "size"),
    ),
    "checkpoint on a ConfigMap": (
        {
            "writer": {"enabled": False},
            "volume": {"source": {"configMap": {"name": "a"}}},
            "collector": {"enabled": True, "checkpoint": {"volume": "shared"}},
        },
        ("collector.checkpoint.volume", "volume.source.configMap", "emptyDir"),
    ),
    "several collectors of the same files": (
        {
            "workload": {"replicas": 2},
            "volume": {"source": {"nfs": {"server": "a", "path": "/"}}},
            "collector": {"enabled": True},
        },
        ("collector.enabled", "workload.replicas=1", "volume.emptyDir"),
    ),
    "several collectors on one checkpoint": (
        {
            "workload": {"kind": "DaemonSet"},
            "collector": {
                "enabled": True,
                "checkpoint": {"persistentVolumeClaim": {"existingClaim": "a"}},
            },
        },
        ("collector.checkpoint.persistentVolumeClaim", "StatefulSet"),
    ),
    "grace too short for the last lines": (
        {"collector": {"enabled": True, "drainTimeout": 20}},
        ("terminationGracePeriodSeconds is 30", "collector.drainTimeout", "35"),
    ),
    "grace too short for an ordinary collector": (
        {"collector": {"enabled": True, "native": False, "stopDelay": 25}},
        ("terminationGracePeriodSeconds is 30", "collector.stopDelay", "35"),
    ),
    "readiness that would cut off the others": (
        {"collector": {"enabled": True, "readiness": True}},
        ("collector.readiness", "out of their Service", "metrics.prometheusRule"),
    ),
    "native sidecars that end one after the other": (
        {
            "writer": {"native": True},
            "reader": {"native": True},
            "extraContainers": [{"name": "a"}],
        },
        ("terminationGracePeriodSeconds is 30", "drain.delay", "writer (15)", "reader (15)"),
    ),
    "volume larger than the disk of the Pod": (
        {"volume": {"emptyDir": {"sizeLimit": "2Gi"}}},
        (
            "volume.emptyDir.sizeLimit is 2Gi",
            "evicted",
            "writer.resources.limits.ephemeral-storage",
        ),
    ),
    "service that leads nowhere": (
        {"reader": {"host": "127.0.0.1"}},
        ("reader.host is 127.0.0.1", "reader.service.enabled=false"),
    ),
    "address family that is none": (
        {"service": {"ipFamilies": ["IPv5"]}},
        ("service", "ipFamilies", "IPv4", "IPv6"),
    ),
    **{
        f"name of other charts: {name}": ({name: value}, (name, f"its name here is {ours}"))
        for name, value, ours in (
            ("replicaCount", 2, "workload.replicas"),
            ("podAnnotations", {"a": "b"}, "pod.annotations"),
            ("nodeSelector", {"a": "b"}, "pod.nodeSelector"),
            ("tolerations", [], "pod.tolerations"),
            ("affinity", {}, "pod.affinity"),
            ("imagePullSecrets", [], "image.pullSecrets"),
            ("resources", {}, "writer.resources"),
        )
    },
    "flag as text": ({"writer": {"enabled": "yes please"}}, ("writer", "enabled", "boolean")),
}


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, major: int) -> None:
    """Both Helms refuse it, and say all that a person needs to correct it."""
    values, words = CASES[name]
    done = chart.template(values, major=major, check=False)
    assert done.returncode != 0
    for word in words:
        assert any(one in done.stderr for one in word.split("|")), (
            f"{word!r} is not in: {done.stderr}"
        )
    assert "nil pointer" not in done.stderr


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize(
    ("role", "values"),
    [("writer", {"writer": {"native": True}}), ("collector", {"collector": {"enabled": True}})],
)
def test_native_sidecars_are_refused_where_kubernetes_does_not_know_them(
    role: str, values: dict[str, Any], major: int
) -> None:
    """Before 1.29 the field is dropped, and the Pod would wait for ever for its first container to end."""
    done = chart.template(values, "--kube-version=1.28.0", major=major, check=False)
    assert done.returncode != 0
    assert f"{role}.native needs Kubernetes 1.29" in done.stderr
