"""Write the tables of docs/reference/metrics.md from the code: `python tools/reference.py`; those of log-events.md are made with the site."""  # noqa: INP001 (a tool, not a package)

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from sidecar.process import log_events, metrics

ROOT = Path(__file__).parent.parent
METRICS = ROOT / "docs/reference/metrics.md"
LOG_EVENTS = ROOT / "docs/reference/log-events.md"
MARK = "<!-- From here on written by tools/reference.py: change the code, not this. -->\n"

GROUPS = {
    "build": "Process",
    "publish": "Publishing: writer, and programs with a `Volume`",
    "volume": "Space: writer with `--volume-budget`",
    "content": "Contents in memory: reader, `reload`, programs with a watch",
    "propagation": "Contents in memory: reader, `reload`, programs with a watch",
    "watch": "Contents in memory: reader, `reload`, programs with a watch",
    "poll": "Contents in memory: reader, `reload`, programs with a watch",
    "http": "HTTP: every port",
    "subscribers": "HTTP: every port",
    "worker": "HTTP: every port",
    "spans": "Traces: what the variables `OTEL_*` switch on",
    "reload": "Reactions: `reload`, and `collect` for its configuration",
    "mirror": "Sources: `mirror`",
    "logs": "Log collection: `collect`",
}
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")


def metrics_page(text: str) -> str:
    """Return the page with its tables as the code is now; what stands above the mark stays."""
    rows: dict[str, list[str]] = {}
    for name, kind, labels, documentation in sorted(families()):
        group = GROUPS[name.split("_")[1]]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.setdefault(group, []).append(f"| `{name}` | {kind} | {shown} | {documentation} |")
    tables = [
        "\n".join(
            [
                f"\n## {group}\n",
                "| metric | type | labels | |",
                "|---|---|---|---|",
                *rows[group],
                "",
            ]
        )
        for group in dict.fromkeys(GROUPS.values())
        if group in rows
    ]
    return _above(text, METRICS) + "".join(tables)


def families() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield name, type, labels and meaning of each metric that the code defines."""
    for value in vars(metrics).values():
        if isinstance(value, Counter | Gauge | Histogram):
            (family,) = value.describe()
            name = family.name + ("_total" if isinstance(value, Counter) else "")
            yield name, family.type, tuple(value._labelnames), family.documentation  # noqa: SLF001 (has no public name)
        elif isinstance(value, metrics.FastHistogram):
            (family,) = value.collect()
            yield family.name, "histogram", tuple(value.labels), family.documentation
    yield from _written_families()


def _written_families() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield the metrics that are made at each scrape: `GaugeMetricFamily("name", "meaning", labels=[…])` in the code."""
    for call in _calls(Path(metrics.__file__)):
        if isinstance(call.func, ast.Name) and call.func.id == "GaugeMetricFamily":
            name, documentation = (ast.literal_eval(argument) for argument in call.args[:2])
            labels = {word.arg: word.value for word in call.keywords}.get("labels")
            yield name, "gauge", tuple(ast.literal_eval(labels)) if labels else (), documentation


def log_events_page(text: str) -> str:
    """Return the page with its tables as the code is now; what stands above the mark stays."""
    packages: dict[str, list[tuple[str, str, str, str]]] = {}
    for path in sorted((ROOT / "sidecar").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for level, message, event in events(path):
            package = module.split(".")[1]
            packages.setdefault(package, []).append((message, level, event, module))
    names = [f"| `{name}` | {meaning} |" for name, meaning in sorted(log_events.EVENTS.items())]
    tables = ["\n".join(["\n## Events\n", "| `event` | |", "|---|---|", *names, ""])]
    tables += [
        "\n".join(
            [
                f"\n## `sidecar.{package}`\n",
                "| message | level | event | logger |",
                "|---|---|---|---|",
                *(
                    f"| {_cell(message)} | {level} | {event and f'`{event}`'} | `{module}` |"
                    for message, level, event, module in sorted(set(found))
                ),
                "",
            ]
        )
        for package, found in sorted(packages.items())
    ]
    return _above(text, LOG_EVENTS) + "".join(tables)


def events(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield level, message and event of each call of a logger in a file, with `…` in the place of what is put in."""
    for call in _calls(path):
        if not (isinstance(call.func, ast.Attribute) and call.args):
            continue
        of_logger = "log" in ast.unparse(call.func.value).lower()
        method = call.func.attr
        if not of_logger or method not in (*LEVELS, "log"):
            continue
        message = _text(call.args[1 if method == "log" else 0])
        if message and message != "…":
            level = {"log": "varies", "exception": "ERROR"}.get(method, method.upper())
            yield level, message, _event(call)


def _event(call: ast.Call) -> str:
    """Return the event that a call of a logger names: in `extra={"event": NAME}`."""
    for word in call.keywords:
        if word.arg == "extra" and isinstance(word.value, ast.Dict):
            for key, value in zip(word.value.keys, word.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "event":
                    return str(ast.literal_eval(value))
    return ""


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-+#0]*\d*(?:\.\d+)?[dgfrsx]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        parts: list[Any] = [
            part.value if isinstance(part, ast.Constant) else "…" for part in node.values
        ]
        return "".join(map(str, parts))
    return ""


def _cell(text: str) -> str:
    quoted = text.replace("|", "\\|").replace("\n", " ")
    return f"`` {quoted} ``" if "`" in quoted else f"`{quoted}`"


def _above(text: str, page: Path) -> str:
    head, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"{page} has lost its mark: {MARK}")
    return head + mark


if __name__ == "__main__":
    METRICS.write_text(metrics_page(METRICS.read_text()))
