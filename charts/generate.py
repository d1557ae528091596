"""Make the chart's values.schema.json, and the table of values in its README, from the comments in values.yaml.

One source for what a value is called, what it means and what it may be: `make chart` runs this,
and a test says so if somebody forgot. The comments:

    # -- What the value does.             description, as long as it needs
    # @schema {minimum: 1}                adds to the type that the default shows, as JSON Schema in YAML's short form

A mapping with keys is closed: another key is refused, and the message names the keys that there are
(`additionalProperties: false` would not name them; `propertyNames` would, at a place that Helm 4 gets wrong).
An empty mapping is open, since it is passed on to Kubernetes as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "sidecar"
BEGIN, END = "<!-- values: made by charts/generate.py -->", "<!-- end of values -->"

STAGES = (
    *("parse", "level", "time", "keep", "drop", "min_level", "redact", "add", "rename", "remove"),
    *("strip_ansi", "sample", "rate_limit", "deduplicate", "count", "histogram"),
)
"""The stages of `sidecar collect`, docs/logs.md."""

ACTIONS = ("webhook", "exec", "process", "pidFile")
"""The actions of `sidecar reload`, docs/reload.md."""

ELSEWHERE = {
    "replicaCount": "workload.replicas",
    "replicas": "workload.replicas",
    "kind": "workload.kind",
    "updateStrategy": "workload.strategy",
    "strategy": "workload.strategy",
    "imagePullSecrets": "image.pullSecrets",
    "podAnnotations": "pod.annotations",
    "podLabels": "pod.labels",
    "podSecurityContext": "pod.securityContext",
    "securityContext": "containerSecurityContext (pod.securityContext for the Pod)",
    "nodeSelector": "pod.nodeSelector",
    "tolerations": "pod.tolerations",
    "affinity": "pod.affinity",
    "topologySpreadConstraints": "pod.topologySpreadConstraints",
    "priorityClassName": "pod.priorityClassName",
    "runtimeClassName": "pod.runtimeClassName",
    "terminationGracePeriodSeconds": "pod.terminationGracePeriodSeconds",
    "commonLabels": "labels",
    "commonAnnotations": "annotations",
    "persistence": "volume.persistentVolumeClaim",
    "resources": "writer.resources, reader.resources, collector.resources, reloader.resources and mirror.resources",
    "env": "writer.env, reader.env, collector.env, reloader.env and mirror.env",
    "extraEnv": "writer.env, reader.env, collector.env, reloader.env and mirror.env",
    "extraEnvVars": "writer.env, reader.env, collector.env, reloader.env and mirror.env",
    "extraArgs": "writer.extraArgs, reader.extraArgs, collector.extraArgs, reloader.extraArgs and mirror.extraArgs",
    "extraVolumeMounts": "writer.extraVolumeMounts, reader.extraVolumeMounts, collector.extraVolumeMounts, reloader.extraVolumeMounts and mirror.extraVolumeMounts",
    "livenessProbe": "probes.liveness",
    "readinessProbe": "probes.readiness",
    "startupProbe": "probes.startup",
    "serviceMonitor": "metrics.serviceMonitor",
    "podMonitor": "metrics.podMonitor",
    "prometheusRule": "metrics.prometheusRule",
    "hpa": "autoscaling",
    "pdb": "podDisruptionBudget",
    "sidecars": "extraContainers",
    "extraInitContainers": "initContainers",
    "extraDeploy": "extraObjects",
    "extraManifests": "extraObjects",
}
"""Names that other charts have for a value of ours at the top level: refused with the name here.

Two names for one value would need a rule for which one wins, so there is one.
"""

DEFINITIONS: dict[str, Any] = {
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "optionalPort": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
    "nodePort": {"type": ["integer", "null"], "minimum": 30000, "maximum": 32767},
    "portName": {"type": "string", "maxLength": 15, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
    "quantity": {
        "type": ["string", "integer"],
        "pattern": "^([0-9]+([.][0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?)?$",
    },
    "optionalSize": {
        "type": ["string", "integer", "null"],
        "pattern": "^[0-9]+(k|M|G|Ki|Mi|Gi)?$",
        "minimum": 1,
    },
    "optionalSeconds": {"type": ["number", "null"], "minimum": 0.001},
    "duration": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
    "route": {
        "type": "object",
        "required": ["path", "to"],
        "additionalProperties": False,
        "properties": {
            "path": {"type": "string", "pattern": "^/"},
            "pathType": {"enum": ["Prefix", "Exact", "ImplementationSpecific"]},
            "to": {"enum": ["reader", "writer"]},
        },
    },
    "stage": {
        "type": ["string", "object"],
        "minLength": 1,
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": {"const": f"left out: there are only {', '.join(STAGES)}"},
        "properties": {name: {} for name in STAGES},
    },
    "action": {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": {"const": f"left out: there are only {', '.join(ACTIONS)}"},
        "properties": {name: {"type": "string", "minLength": 1} for name in ACTIONS},
    },
}


@dataclass(frozen=True)
class Comment:
    """What stands above a key."""

    text: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A value that a user can set."""

    path: tuple[str, ...]
    default: Any
    comment: Comment


def values(chart: Path = CHART) -> list[Value]:
    """Return all values that have a description, in the order of the file."""
    text = (chart / "values.yaml").read_text()
    lines = text.splitlines()
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    return [] if top is None else list(_walk(top, lines, ()))


def schema(chart: Path = CHART) -> dict[str, Any]:
    """Return the JSON Schema of the values."""
    described = {value.path: value for value in values(chart)}
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    root = _schema((), defaults, described)
    # Helm hands the globals of all charts to each of them.
    del root["properties"]["global"]["additionalProperties"]
    root["properties"] |= {
        name: {"const": f"left out: its name here is {ours}"} for name, ours in ELSEWHERE.items()
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart sidecar",
        **root,
        # Those that items of lists refer to; all others are written out.
        "definitions": {name: DEFINITIONS[name] for name in ("action", "route", "stage")},
    }


def table(chart: Path = CHART) -> str:
    """Return the values as Markdown, a table for each part."""
    parts: dict[str, list[Value]] = {}
    for value in values(chart):
        parts.setdefault(value.path[0] if len(value.path) > 1 else "", []).append(value)
    return "\n".join(_part(name, members) for name, members in parts.items())


def readme(chart: Path = CHART) -> str:
    """Return the README with the tables of today."""
    text = (chart / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(chart)}\n{END}{after}"


def _walk(node: yaml.Node, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        here = (*path, key.value)
        comment = _comment(lines, key.start_mark.line)
        if comment is not None:
            yield Value(here, yaml.safe_load(yaml.serialize(child)), comment)
        elif isinstance(child, yaml.MappingNode) and child.value:
            yield from _walk(child, lines, here)
        else:
            raise SystemExit(f"values.yaml: {'.'.join(here)} has no description (# -- …)")


def _comment(lines: list[str], line: int) -> Comment | None:
    above: list[str] = []
    while line > 0 and (found := re.match(r" *# ?(.*)", lines[line - 1])):
        above.insert(0, found[1])
        line -= 1
    starts = [number for number, text in enumerate(above) if text.startswith("-- ")]
    if not starts:
        return None
    said = [text for text in above[starts[-1] :] if not text.startswith("@schema ")]
    added = [text.removeprefix("@schema ") for text in above if text.startswith("@schema ")]
    extra: dict[str, Any] = yaml.safe_load(added[-1]) if added else {}
    return Comment(" ".join(said).removeprefix("-- "), extra)


def _schema(
    path: tuple[str, ...], default: Any, described: dict[tuple[str, ...], Value]
) -> dict[str, Any]:
    if path in described:
        comment = described[path].comment
        shown = {} if {"$ref", "enum", "type"} & comment.schema.keys() else _type(default)
        # Written out, since beside a $ref nothing else counts (draft 7), and an allOf makes longer messages.
        reference = comment.schema.get("$ref", "").rpartition("/")[2]
        own = DEFINITIONS[reference] if reference else comment.schema
        return {"description": comment.text, **shown, **own}
    return {
        "type": "object",
        "additionalProperties": {"const": f"left out: there are only {', '.join(default)}"},
        "properties": {
            key: _schema((*path, key), child, described) for key, child in default.items()
        },
    }


def _type(default: Any) -> dict[str, Any]:
    names = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return {"type": names[type(default)]}


def _part(name: str, members: list[Value]) -> str:
    rows = [
        f"### `{name}`" if name else "### General",
        "",
        "| value | default | |",
        "|---|---|---|",
    ]
    for value in members:
        default = json.dumps(value.default, ensure_ascii=False)
        text = value.comment.text.replace("|", "\\|")
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {text}{_choice(value)} |")
    return "\n".join([*rows, ""])


def _choice(value: Value) -> str:
    allowed = value.comment.schema.get("enum")
    if not allowed:
        return ""
    return " One of " + ", ".join(f"`{json.dumps(one)}`" for one in allowed) + "."


def main() -> int:
    """Write both files; with --check only say whether they are of today."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if something would change"
    )
    arguments = parser.parse_args()
    made = {
        CHART / "values.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        CHART / "README.md": readme(),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path} is not what values.yaml says: run `make chart`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
