"""OTLP into a real collector: `rotel` (Rust, inside a wheel of PyPI), which hands on what it has understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from logs.sinks.helpers import batch, deliver, numbered, opened, records
from sidecar.logs.records import Record
from sidecar.logs.sinks.otlp import OtlpSink
from support import Eventually, FreePorts, StartProcess
from support.collector import running_rotel


@pytest.fixture
async def rotel(free_ports: FreePorts, start_process: StartProcess, tmp_path: Path) -> Any:
    """Address of a running collector, and what stands behind it."""
    async with running_rotel(free_ports, start_process, tmp_path) as (port, behind):
        yield f"otlp+http://127.0.0.1:{port}", behind


@pytest.mark.parametrize("compressed", [True, False])
async def test_a_real_collector_understands_every_line(
    rotel: Any, eventually: Eventually, compressed: bool
) -> None:
    """500 lines in, the same 500 lines out of the collector, as protobuf."""
    address, behind = rotel
    async with opened(OtlpSink(address, gzip=compressed)) as sink:
        receipt = await deliver(sink, batch(*numbered(500)))
        await eventually(lambda: len(behind.records) >= 500, timeout=20)

    assert not receipt.rejected
    assert sorted(behind.texts) == sorted(numbered(500))


async def test_a_real_collector_understands_levels_labels_ids_and_nested_fields(
    rotel: Any, eventually: Eventually
) -> None:
    """Each kind of value arrives as the kind it was."""
    address, behind = rotel
    trace, span = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"
    record = Record(b"raw", file="/log/app.log", time=1_700_000_000_000_000_007, level="warn")
    record.labels = {"pod": "web-0", "app": "shop"}
    fields = {
        "msg": "hello",
        "n": 7,
        "x": 1.5,
        "ok": True,
        "deep": {"a": [1, "b", None]},
        "none": None,
    }
    record.parsed({**fields, "trace_id": trace, "span_id": span}, lambda _raw: {})
    async with opened(OtlpSink(address)) as sink:
        await deliver(sink, records(record))
        await eventually(lambda: behind.records, timeout=20)

    [got] = behind.records
    attributes = {one.key: one.value for one in got.attributes}
    resource = {one.key: one.value.string_value for one in behind.resources[0].attributes}
    assert (got.body.string_value, got.time_unix_nano) == ("hello", 1_700_000_000_000_000_007)
    assert (got.severity_number, got.severity_text) == (13, "WARN")
    assert (got.trace_id.hex(), got.span_id.hex()) == (trace, span)
    assert "none" not in attributes
    assert attributes["n"].int_value == 7
    assert attributes["x"].double_value == 1.5
    assert attributes["ok"].bool_value is True
    assert attributes["deep"].kvlist_value.values[0].value.array_value.values[1].string_value == "b"
    assert resource["k8s.pod.name"] == "web-0"
    assert resource["service.name"] == "shop"
