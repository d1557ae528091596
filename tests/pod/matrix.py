"""Sets of values that people use, each with a name; all of them are rendered, linted and validated."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import yaml

from pod import chart, tools

_OWN = {
    "name": "app",
    "image": "registry.example/app:1",
    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
}

# An application that writes log files, hardened as ours are.
_APP = {
    "name": "app",
    "image": "registry.example/app:1",
    "securityContext": {
        "runAsUser": 20000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    },
    "volumeMounts": [{"name": "shared", "mountPath": "/var/log/app"}],
}
_LOGS_ONLY: dict[str, Any] = {
    "writer": {"enabled": False},
    "reader": {"enabled": False},
    "volume": {"mountPath": "/var/log/app"},
    "extraContainers": [_APP],
}

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the article": yaml.safe_load((tools.CHART / "values-article.yaml").read_text()),
    "stateful set with a claim a Pod": {
        "workload": {"kind": "StatefulSet", "replicas": 3, "strategy": {"type": "OnDelete"}},
        "volume": {
            "persistentVolumeClaim": {
                "size": "1Gi",
                "storageClassName": "fast",
                "annotations": {"a": "b"},
            }
        },
    },
    "daemon set on a path of the node": {
        "workload": {"kind": "DaemonSet"},
        "volume": {"hostPath": {"path": "/var/lib/shared", "type": "DirectoryOrCreate"}},
        "pod": {
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    },
    "bare Pod": {"workload": {"kind": "Pod"}, "pod": {"restartPolicy": "OnFailure"}},
    "volume in memory": {"volume": {"emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}},
    "new claim": {"volume": {"persistentVolumeClaim": {"size": "1Gi", "keep": True}}},
    "new claim for many nodes": {
        "workload": {"replicas": 3},
        "volume": {"persistentVolumeClaim": {"size": "10Gi", "accessModes": ["ReadWriteMany"]}},
    },
    "existing claim": {"volume": {"persistentVolumeClaim": {"existingClaim": "mine"}}},
    "any volume source": {
        "volume": {"source": {"nfs": {"server": "nfs.example", "path": "/export"}}}
    },
    "reader of a ConfigMap": {
        "writer": {"enabled": False},
        "workload": {"replicas": 2},
        "path": "/shared/",
        "volume": {"source": {"configMap": {"name": "app"}}},
        "autoscaling": {
            "enabled": True,
            "metrics": [],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
        },
        "podDisruptionBudget": {"enabled": True},
    },
    "writer alone": {"reader": {"enabled": False}},
    "containers of one's own": {
        "extraContainers": [_OWN],
        "initContainers": [
            {**_OWN, "name": "first"},
            {**_OWN, "name": "beside", "restartPolicy": "Always"},
        ],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "networkPolicy": {"extraIngress": [{"ports": [{"port": 9000, "protocol": "TCP"}]}]},
        "service": {"extraPorts": [{"name": "app", "port": 9000, "targetPort": 9000}]},
    },
    "native sidecars": {
        "writer": {"native": True},
        "reader": {"native": True},
        "extraContainers": [_OWN],
        "pod": {"terminationGracePeriodSeconds": 45},
    },
    "initial text": {"initialContent": {"text": "hello\nworld: 1.10\n"}},
    "initial files": {
        "path": "/shared/site/",
        "initialContent": {"files": {"index.html": "<h1>", "a.css": "b {}"}},
    },
    "initial content of a ConfigMap": {"initialContent": {"configMap": "first", "key": "a.txt"}},
    "initial content of a Secret": {"initialContent": {"secret": "first"}},
    "node ports": {
        "service": {"type": "NodePort", "externalTrafficPolicy": "Local"},
        "writer": {"service": {"nodePort": 30080}},
        "reader": {"service": {"nodePort": 30081, "port": 80}},
    },
    "load balancer": {
        "service": {
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "ipFamilyPolicy": "PreferDualStack",
            "annotations": {"a": "b"},
        }
    },
    "ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": [
                {
                    "host": "a.example",
                    "paths": [
                        {"path": "/", "to": "reader"},
                        {"path": "/w", "pathType": "Exact", "to": "writer"},
                    ],
                }
            ],
            "tls": [{"hosts": ["a.example"], "secretName": "tls"}],
        }
    },
    "route of a gateway": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "gateway"}],
            "hostnames": ["a.example"],
        }
    },
    "guarded": {
        "tls": {"secret": "certificate"},
        "writer": {"token": {"secret": "tokens", "key": "write"}},
        "reader": {"token": {"secret": "tokens", "key": "read"}},
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "admin ports": {
        "tls": {"secret": "certificate"},
        "writer": {
            "adminPort": 9080,
            "adminHost": "127.0.0.1",
            "token": {"secret": "a", "key": ""},
        },
        "reader": {"name": "a-long-name", "adminPort": 9081, "token": {"secret": "a", "key": ""}},
        "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
    },
    "tokens by name": {
        "writer": {
            "token": {"secret": "publishers", "key": ""},
            "readToken": {"secret": "viewers", "key": "token"},
        },
        "reader": {"readToken": {"secret": "viewers", "key": ""}},
    },
    "signed": {
        "path": "/shared/site/",
        "writer": {"verifyKey": {"secret": "keys", "key": "of-ci.pem"}},
        "reader": {"verifyKey": {"configMap": "keys"}},
        "reloader": {
            "enabled": True,
            "actions": [{"webhook": "http://localhost:9090/-/reload"}],
            "verifyKey": {"configMap": "keys"},
        },
        "mirror": {
            "enabled": True,
            "path": "/shared/mirrored",
            "init": {"enabled": True},
            "sources": ["https://config.example/set.tar.gz"],
            "verifyKey": {"configMap": "other-keys"},
        },
    },
    "gate": {
        "writer": {
            "format": "json",
            "schema": '{"type": "object"}',
            "check": "python3 -m json.tool",
            "checkTimeout": 0.5,
            "maxSize": "1Mi",
            "keep": 0,
            "durability": "none",
            "group": 1000,
            "mode": "640",
        }
    },
    "watch": {"reader": {"watch": "poll", "recheck": 0.25, "missing": "", "maxSize": 1048576}},
    "observed": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "podMonitor": {
                "enabled": True,
                "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
            },
            "prometheusRule": {
                "enabled": True,
                "contentAgeSeconds": 3600,
                "alertLabels": {"team": "a"},
            },
            "dashboard": {"enabled": True},
        }
    },
    "placed": {
        "pod": {
            "priorityClassName": "high",
            "runtimeClassName": "gvisor",
            "hostUsers": False,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                }
            ],
            "affinity": {
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}
            },
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["a.example"]}],
        },
        "workload": {"replicas": 3},
        "podDisruptionBudget": {"enabled": True, "minAvailable": "50%"},
    },
    "named": {
        "fullnameOverride": "other",
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "selectorLabels": {"app": "other"},
        "pod": {"labels": {"c": "d"}, "annotations": {"e": "f"}},
        "workload": {"labels": {"g": "h"}, "annotations": {"i": "j"}},
        "serviceAccount": {"name": "somebody", "annotations": {"k": "l"}},
        "image": {
            "repository": "registry.example/sidecar",
            "digest": "sha256:" + "0" * 64,
            "pullSecrets": [{"name": "p"}],
        },
    },
    "probes by commands": {"probes": {"type": "exec", "startup": None}},
    "on loopback only": {
        "writer": {"host": "127.0.0.1", "service": {"enabled": False}},
        "reader": {"host": "::1", "service": {"enabled": False}},
    },
    "IPv6 alone": {
        "writer": {"host": "::"},
        "reader": {"host": "::"},
        "service": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]},
    },
    "both families": {
        "service": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    },
    "budgets": {
        "writer": {"keepBytes": "16Mi", "keepDeleted": 2, "volumeBudget": "100M"},
        "volume": {"emptyDir": {"sizeLimit": "500M"}},
    },
    "no limit of the volume": {"volume": {"emptyDir": {"sizeLimit": ""}}},
    "one of many charts": {
        "global": {
            "imageRegistry": "registry.example:5000",
            "imagePullSecrets": ["a", {"name": "b"}],
            "others": {"of": "the parent"},
        },
        "image": {"pullSecrets": [{"name": "b"}]},
        "namespaceOverride": "here",
    },
    "environment and hooks": {
        "writer": {
            "extraEnvFrom": [{"secretRef": {"name": "more"}}],
            "lifecycleHooks": {"preStop": {"exec": {"command": ["sidecar", "--version"]}}},
        },
        "reader": {"extraEnvFrom": [{"configMapRef": {"name": "more", "optional": True}}]},
        "collector": {
            "enabled": True,
            "native": False,
            "extraEnvFrom": [{"secretRef": {"name": "more"}}],
            "lifecycleHooks": {"postStart": {"exec": {"command": ["sidecar", "--version"]}}},
        },
    },
    "node port with metrics": {
        "service": {"type": "NodePort"},
        "metrics": {"serviceMonitor": {"enabled": True}},
        "networkPolicy": {"readerFrom": [{"podSelector": {}}]},
    },
    "content for the test": {
        "writer": {"schema": '{"type": "object"}'},
        "tests": {"content": '{"a": "it\'s"}'},
    },
    "names and origins": {
        "writer": {"allowedHosts": ["a.example"], "allowedOrigins": ["https://b.example"]},
        "reader": {"allowedHosts": ["a.example"]},
        "ingress": {
            "enabled": True,
            "hosts": [{"host": "c.example", "paths": [{"path": "/", "to": "reader"}]}],
        },
    },
    "confirmed elsewhere": {
        "writer": {
            "confirm": "https://reader.example:8081",
            "confirmCa": "/etc/sidecar/ca/ca.crt",
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/sidecar/ca"}],
        },
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    },
    "without a page": {
        "writer": {"ui": False},
        "reader": {"ui": False},
        "collector": {"enabled": True, "ui": False},
    },
    "every request logged": {"writer": {"accessLog": True}, "reader": {"accessLog": True}},
    "each change in an audit log": {"writer": {"auditLog": "-"}},
    "collector that waits alone": {
        "writer": {"enabled": False},
        "reader": {"enabled": False},
        "collector": {"enabled": True, "native": False, "readiness": True},
    },
    "closed": {
        "networkPolicy": {
            "writerFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
            "readerFrom": [{"podSelector": {"matchLabels": {"a": "b"}}}],
            "egress": [{"to": [{"podSelector": {}}]}],
        },
        "serviceAccount": {"create": False},
        "service": {"enabled": False},
        "tests": {"enabled": False},
    },
    "more objects": {
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}-more"},
                "data": {},
            }
        ]
    },
    **{
        f"ci: {path.name}": yaml.safe_load(path.read_text())
        for path in sorted((tools.CHART / "ci").glob("*-values.yaml"))
    },
    "for everybody": {"networkPolicy": {"writerFrom": [], "enabled": True}},
    "without its extras": {
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
        "probes": {"startup": None, "liveness": None, "readiness": None},
    },
    "stateful set without claims": {
        "workload": {"kind": "StatefulSet"},
        "service": {"name": "mine", "enabled": False},
    },
    "from images of one's own": {
        "image": {"repository": "registry.example/sidecar", "tag": "1", "pullPolicy": "Always"}
    },
    "as a library": {
        "enabled": False,
        "initialContent": {"text": "x"},
        "volume": {"persistentVolumeClaim": {"size": "1Gi"}},
    },
    "collector beside writer and reader": {"collector": {"enabled": True}},
    "logs only": {**_LOGS_ONLY, "collector": {"enabled": True}},
    "collector as an ordinary container": {
        **_LOGS_ONLY,
        "collector": {"enabled": True, "native": False, "podinfo": False, "stopDelay": 3},
    },
    "collector with all that it knows": {
        **_LOGS_ONLY,
        "extraVolumes": [{"name": "archive", "emptyDir": {}}],
        "collector": {
            "enabled": True,
            "files": ["*.log*", "/archive/**/*.json"],
            "exclude": ["debug.log"],
            "start": "end",
            "archives": ["/archive/old"],
            "root": "/archive",
            "encoding": "latin-1",
            "maxLine": 1048576,
            "multiline": {"start": r"^\d{4}-", "timeout": "1s"},
            "stages": [
                {"parse": {"regex": r"(?P<status>\d+) (?P<path>\S+)"}},
                "level",
                {"drop": "/healthz"},
                {"redact": {"pattern": r"card=\d+", "with": "<&>"}},
                {"add": {"team": "shop"}},
            ],
            "sinks": [
                "stdout",
                "file:///archive/out/app.log",
                {
                    "url": "loki+https://loki.example",
                    "token_file": "/etc/sidecar/secrets/loki.example/token",
                    "max_body": 1048576,
                    "label_fields": ["tier"],
                },
                "otlp+http://otlp.example:4318#timeout=5s",
            ],
            "json": True,
            "labels": {"site": "berlin"},
            "annotations": ["note"],
            "deadLetters": "/archive/refused.ndjson",
            "budget": "16Mi",
            "heldLimit": "64Mi",
            "drainTimeout": 2.5,
            "secrets": ["loki.example", "other"],
            "token": {"secret": "tokens", "key": "write"},
            "caFile": "/etc/sidecar/secrets/other/ca.crt",
            "tenant": "shop",
            "extraArgs": ["--once"],
            "env": [{"name": "TZ", "value": "UTC"}],
            "extraVolumeMounts": [{"name": "archive", "mountPath": "/archive"}],
        },
        "tls": {"secret": "certificate"},
        "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
    },
    "reloader with all that it knows": {
        "extraContainers": [_OWN],
        "pod": {"shareProcessNamespace": True, "terminationGracePeriodSeconds": 60},
        "writer": {"mode": "0644", "keep": 3, "keepBytes": "1Mi", "durability": "none"},
        "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "reloader": {
            "enabled": True,
            "actions": [
                {"exec": "cat /shared/content"},
                {"webhook": "http://localhost:9090/-/reload"},
                {"process": "app"},
                {"pidFile": "/shared/pid"},
            ],
            "signal": "USR1",
            "expectStatus": [200, 202],
            "timeout": 3,
            "parallel": True,
            "confirmUrl": "https://app.example/version",
            "confirmTimeout": 1.5,
            "rollbackOnFailure": True,
            "stateFile": "/shared/..state.json",
            "expandTo": "/shared/expanded",
            "splay": 60,
            "stopUrl": "https://rollout.example/",
            "token": {"secret": "reload"},
            "initial": False,
            "readiness": True,
            "recheck": 2,
            "exclude": "",
        },
    },
    "reloader of a ConfigMap": {
        "writer": {"enabled": False},
        "reader": {"enabled": False},
        "volume": {"source": {"configMap": {"name": "app"}}},
        "path": "/shared/",
        "extraContainers": [_OWN],
        "reloader": {"enabled": True, "actions": [{"webhook": "http://localhost:9090/-/reload"}]},
    },
    "reloader as an ordinary container": {
        "reloader": {
            "enabled": True,
            "native": False,
            "actions": [{"webhook": "http://app.example/"}],
        },
    },
    "mirror with all that it knows": {
        "writer": {"enabled": False, "mode": "0644", "keep": 3, "durability": "none"},
        "path": "/shared/site",
        "extraContainers": [_OWN],
        "pod": {"shareProcessNamespace": True, "terminationGracePeriodSeconds": 60},
        "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "mirror": {
            "enabled": True,
            "init": {"enabled": True, "timeout": 30, "orLastGood": True},
            "sources": [
                "kube://.,other/configmaps+secrets?labelSelector=app%3Dshop#into=objects",
                "kube://other/configmaps/one,two",
                "kube://other/secrets/three",
                "git+https://git.example/site.git#user=ada&password_file=/etc/sidecar/secrets/git/token",
            ],
            "secrets": ["git"],
            "maxSize": "2Mi",
            "format": "json",
            "schema": "{}",
            "check": "/checks/site",
            "checkTimeout": 3,
            "shrinkLimit": 0.25,
            "allowShrink": True,
            "allowRewind": True,
            "staleAfter": 90,
            "actions": [{"webhook": "http://localhost:3000/reload"}, {"process": "app"}],
            "signal": "USR1",
            "expectStatus": [200],
            "actionTimeout": 3,
            "caFile": "/etc/sidecar/secrets/git/ca.crt",
            "user": "ada",
            "password": {"secret": "grafana", "key": "admin-password"},
            "initial": False,
            "host": "0.0.0.0",
            "readiness": True,
            "env": [{"name": "NO_PROXY", "value": "git.example"}],
            "extraArgs": ["--no-initial"],
        },
    },
    "mirror as an init container": {
        "writer": {"enabled": False},
        "reader": {"enabled": False},
        "path": "/shared/site",
        "extraContainers": [_OWN],
        "mirror": {
            "enabled": True,
            "follow": False,
            "init": {"enabled": True},
            "sources": ["https://config.example/site.tar.gz"],
        },
    },
    "mirror of all namespaces beside a writer": {
        "path": "/shared/content",
        "mirror": {
            "enabled": True,
            "native": False,
            "path": "/shared/mirrored",
            "sources": ["kube://*/configmaps?labelSelector=app"],
            "rbac": {"clusterWide": True},
        },
    },
    "collector that ends by a file of the application": {
        **_LOGS_ONLY,
        "workload": {"kind": "Pod"},
        "pod": {"restartPolicy": "OnFailure"},
        "collector": {"enabled": True, "native": False, "untilFile": "done", "removeAfter": 60},
    },
    "collector that ends with a process": {
        **_LOGS_ONLY,
        "workload": {"kind": "Pod"},
        "pod": {"restartPolicy": "Never", "shareProcessNamespace": True},
        "collector": {"enabled": True, "native": False, "untilProcess": "app", "removeAfter": 0.5},
    },
    "collector with a claim for its checkpoint": {
        **_LOGS_ONLY,
        "collector": {
            "enabled": True,
            "checkpoint": {"persistentVolumeClaim": {"size": "2Gi", "keep": True}},
        },
    },
    "collector with a claim that is there": {
        **_LOGS_ONLY,
        "collector": {
            "enabled": True,
            "checkpoint": {"persistentVolumeClaim": {"existingClaim": "mine"}},
        },
    },
    "collectors of a stateful set": {
        **_LOGS_ONLY,
        "workload": {"kind": "StatefulSet", "replicas": 2},
        "volume": {"persistentVolumeClaim": {"size": "1Gi"}},
        "collector": {
            "enabled": True,
            "files": ["/shared/*.log*"],
            "checkpoint": {"persistentVolumeClaim": {"size": "2Gi"}},
        },
    },
    "collector with its checkpoint on the shared claim": {
        "volume": {"persistentVolumeClaim": {"existingClaim": "mine"}},
        "collector": {"enabled": True, "service": {"enabled": True}},
    },
    "collector as a library": {
        "enabled": False,
        "collector": {
            "enabled": True,
            "checkpoint": {"persistentVolumeClaim": {"size": "1Gi"}},
        },
    },
}


def rendered(name: str, major: int = 4) -> list[chart.Object]:
    """Return what the chart makes of this set of values; each is rendered once a run."""
    return deepcopy(_rendered(name, major))


@cache
def _rendered(name: str, major: int) -> list[chart.Object]:
    return chart.render(MATRIX[name], major=major)
