"""The gate: what passes, what is refused and why, and that nothing makes it hang or crash."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest

import sidecar
from sidecar import _errors
from sidecar.volume.validation.gate import Gate
from sidecar.volume.validation.syntax import Format
from support import Eventually, StartProcess


async def reasons(gate: Gate, content: bytes, name: str = "config") -> tuple[str, ...]:
    """What the gate has against a content, nothing if it passes."""
    try:
        await gate.examine(name, None, len(content), content)
    except _errors.ContentRefused as refused:
        return refused.reasons
    return ()


async def test_a_gate_without_conditions_lets_everything_pass() -> None:
    """Any bytes."""
    assert await reasons(Gate(), b"\xff\x00") == ()


async def test_a_content_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    """The limit is inclusive, and has an error of its own."""
    gate = Gate(max_size=3)
    assert await reasons(gate, b"123") == ()
    with pytest.raises(_errors.ContentTooLarge, match="4 bytes, and the limit is 3"):
        await gate.examine("config", None, 4, b"1234")


GOOD: dict[Format, list[bytes]] = {
    "text": [b"", "é".encode(), b"a\0b"],
    "json": [b"1", b'{"a": [1, null]}', b' "\xc3\xa9" '],
    "yaml": [
        b"",
        b"a: [1, 2]\nb: &x {c: 1}\nd: *x\n",
        b"a: 1\n---\nb: 2\n",
        b'{"a": 1}',
        b"!!python/object/apply:os.system ['true']",
        b'- "!="\n- =\n',
        b"a: !Ref b\nc: !vault |\n  x\n",
        b"a: 0000-00-00\n",
        b"? [a]\n: b\n",
        b"<<: 5\n",
    ],
    "toml": [b"", b"a = 1\n[b]\nc = 1979-05-27\n"],
}
BAD: dict[Format, list[tuple[bytes, str]]] = {
    "text": [(b"ab\nc\xff", "not UTF-8: byte 0xff at offset 4, line 2")],
    "json": [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b"}', "line 2, column 5"),
        (b"NaN", "line 1"),
        (b"{'a': 1}", "line 1, column 2"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "depth"),
    ],
    "yaml": [
        (b"a: [1,\n", "line 2, column 1"),
        (b"a: 1\nb: c: d\n", "line 2, column 5"),
        (b"[" * 100_000, "nest"),  # the words are ours, or those of a PyYAML that counts
        (b"&a [*a]", "an alias refers to the value that it is a part of"),
        (b"a: \x01", "not valid YAML"),
        (b"\xff", "not UTF-8"),
    ],
    "toml": [
        (b"a = \nb = 1", "line 1, column 5"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
    ],
}


@pytest.mark.parametrize(
    ("syntax", "content"), [(syntax, one) for syntax, all_ in GOOD.items() for one in all_]
)
async def test_good_syntax_passes(syntax: Format, content: bytes) -> None:
    """Each format, edge cases included."""
    assert await reasons(Gate(format=syntax), content) == ()


@pytest.mark.parametrize(
    ("syntax", "content", "said"),
    [(syntax, *one) for syntax, all_ in BAD.items() for one in all_],
)
async def test_bad_syntax_is_refused_with_its_place(
    syntax: Format, content: bytes, said: str
) -> None:
    """Line and column where the parser knows them; nesting and aliases end in a refusal, not a crash."""
    (reason,) = await reasons(Gate(format=syntax), content)
    assert said in reason


SCHEMA = """
{"type": "object", "required": ["port"], "properties":
 {"port": {"type": "integer"}, "a/b": {"type": "array", "items": {"type": "string"}}}}
"""


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(SCHEMA)
    return path


async def test_every_violation_of_a_schema_is_told_with_its_place(schema: Path) -> None:
    """As a JSON Pointer (RFC 6901), escapes included."""
    gate = Gate(schema=schema)
    assert await reasons(gate, b'{"port": 80}') == ()
    assert await reasons(gate, b"[]") == ("at the top: [] is not of type 'object'",)
    found = await reasons(gate, b'{"port": "80", "a/b": ["x", 1]}')
    assert found == (
        "at /a~1b/1: 1 is not of type 'string'",
        "at /port: '80' is not of type 'integer'",
    )


@pytest.mark.parametrize(
    ("name", "content", "ok"),
    [
        ("c.json", b'{"port": 80}', True),
        ("c.yaml", b"port: 80", True),
        ("c.yml", b"port: x", False),
        ("c.yaml", b"", False),
        ("c.yaml", b"port: 80\n---\nport: x\n", False),
        ("c.toml", b"port = 80", True),
        ("c.toml", b"port = 1979-05-27", False),
        ("c", b"port: 80", False),
    ],
)
async def test_the_ending_of_the_name_says_the_syntax(
    schema: Path, name: str, content: bytes, ok: bool
) -> None:
    """Where no format is given; JSON is assumed for all others. Each document of YAML is judged."""
    assert (await reasons(Gate(schema=schema), content, name) == ()) is ok


async def test_the_first_content_does_not_wait_for_what_checks_formats(
    schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever jsonschema's extra `format` has installed: one of these takes seconds, and no format is asked for."""
    extras = [one for one in metadata.requires("jsonschema") or () if "extra == 'format" in one]
    names = {re.split("[^a-z0-9-]", one)[0].replace("-", "_") for one in extras}
    assert {"rfc3987_syntax", "isoduration"} <= names
    gate = Gate(schema=schema)
    for name in names:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert await reasons(gate, b'{"port": 80}') == ()


async def test_dates_are_strings_to_a_schema(tmp_path: Path) -> None:
    """JSON Schema knows no dates, YAML and TOML do: they count as what JSON would hold."""
    (tmp_path / "s.yaml").write_text("properties: {at: {type: string}}")
    gate = Gate(schema=tmp_path / "s.yaml")
    assert await reasons(gate, b"at: 2026-01-01\n1: x\n", "c.yaml") == ()
    assert await reasons(gate, b"at = 2026-01-01T00:00:00Z", "c.toml") == ()


async def test_long_values_do_not_flood_the_answer(tmp_path: Path) -> None:
    """Twenty reasons at most, each of bounded length."""
    (tmp_path / "s.json").write_text('{"items": {"type": "integer"}}')
    content = b"[" + b",".join([b'"' + b"x" * 5000 + b'"'] * 100) + b"]"
    found = await reasons(Gate(schema=tmp_path / "s.json"), content)
    assert len(found) == 20
    assert max(map(len, found)) < 400


async def test_a_schema_is_not_fetched_from_anywhere(tmp_path: Path) -> None:
    """A reference to another place is an error of the gate, not a request to that place."""
    asked = []
    server = await asyncio.start_server(lambda *_: asked.append(1), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "s.json").write_text(f'{{"$ref": "http://127.0.0.1:{port}/other.json"}}')
    async with server, asyncio.timeout(5):
        with pytest.raises(_errors.PublishError, match="not followed"):
            await Gate(schema=tmp_path / "s.json").examine("c", None, 2, b"{}")
    assert asked == []


@pytest.mark.parametrize("text", ["{", '{"type": "nonsense"}', "[1]", "1"])
def test_what_is_no_schema_is_told_at_the_start(tmp_path: Path, text: str) -> None:
    """Before anything is published, and not for each content."""
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(_errors.ConfigError, match=r"s\.json"):
        Gate(schema=tmp_path / "s.json")


def test_a_missing_schema_is_told_at_the_start(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(_errors.ConfigError, match=r"cannot read the schema .*nothing\.json"):
        Gate(schema=tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("module", "options"),
    [("jsonschema", {"schema": "s.json"}), ("yaml", {"format": "yaml"}), ("yaml", {"schema": "s.yaml"})],
)  # fmt: skip
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: dict[str, str]
) -> None:
    """What to install, when the gate is made."""
    for name in ("s.json", "s.yaml"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(_errors.ConfigError, match=r"podsidecar\[schema\]"):
        Gate(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"format": "xml"}, {"check_timeout": 0.0}, {"max_size": -1}, {"schema": 5}, {"schema": {"a": {1}}},
     {"check": "true"}, {"check": [5]}, {"schema": {"type": "nonsense"}}],
)  # fmt: skip
def test_a_wrong_option_is_told(options: dict[str, object]) -> None:
    """With what would be right."""
    with pytest.raises(_errors.ConfigError):
        Gate(**options)  # type: ignore[arg-type]


#: What keeps an examination busy for minutes, or for ever, although it is small.
ENDLESS: dict[str, tuple[dict[str, object], str, bytes]] = {
    "pattern": ({"schema": {"pattern": "^([a-z0-9]+-?)+$"}}, "c.json", b'"' + b"a" * 40 + b'!"'),
    "unique": (
        {"schema": {"uniqueItems": True}}, "c.json",
        b"[" + b",".join(b'{"a":[%d]}' % n for n in range(20_000)) + b"]",
    ),
    "references": (
        {"schema": {"$ref": "#/$defs/a", "$defs": {
            "a": {"items": {"anyOf": [{"$ref": "#/$defs/a"}] * 10}, "type": "array"}}}},
        "c.json", b"[" * 30 + b'"x"' + b"]" * 30,
    ),
    "dotted-keys": ({"format": "toml"}, "c.toml", b"a" + b".a" * 30_000 + b" = 1\n" + b"a" + b".a" * 29_999 + b".b = 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
async def test_an_examination_without_end_is_ended_and_keeps_nobody(kind: str) -> None:
    """Within `check_timeout`: the content is refused, and the event loop, and other contents, go on meanwhile."""
    options, name, content = ENDLESS[kind]
    gate = Gate(**options, check_timeout=1.0)  # type: ignore[arg-type]
    other = b"[]" if name == "c.json" else b"a = 1\n" * 1 + b"#" * 5000
    await reasons(gate, other, name)  # a helper is there
    endless = asyncio.create_task(reasons(gate, content, name))
    turns = 0
    passed = asyncio.create_task(reasons(gate, other, name))
    while not endless.done():
        await asyncio.sleep(0.005)
        turns += 1
    (reason,) = endless.result()
    assert reason.endswith("(simplify the schema, or raise check_timeout)") or "nested" in reason
    assert await passed in ((), ("at the top: 'x' is not of type 'array'",))
    assert turns > 5  # where the interpreter was held, the loop had none


async def test_a_schema_that_refers_to_itself_is_a_reason_and_no_crash() -> None:
    """`{"$ref": "#"}` recurses without end, whatever the content."""
    (reason,) = await reasons(Gate(schema={"$ref": "#"}), b"{}")
    assert "refers to itself without end" in reason


async def test_a_cancelled_examination_ends_at_once() -> None:
    """As at SIGTERM: nobody waits for the time limit of a content."""
    options, name, content = ENDLESS["pattern"]
    gate = Gate(**options, check_timeout=60.0)  # type: ignore[arg-type]
    await reasons(gate, b"[]", name)
    endless = asyncio.create_task(reasons(gate, content, name))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        endless.cancel()
        await asyncio.wait({endless})
        assert endless.cancelled()
        assert await reasons(gate, b"[]", name) == ()


async def test_a_helper_that_is_killed_publishes_nothing_and_the_next_one_works(
    eventually: Eventually,
) -> None:
    """By the kernel for want of memory, say: that is no refusal, and no pass either."""
    options, name, content = ENDLESS["pattern"]
    gate = Gate(**options, check_timeout=60.0)  # type: ignore[arg-type]
    await reasons(gate, b"[]", name)
    (helper,) = gate._validation._helpers._idle  # type: ignore[union-attr]
    endless = asyncio.create_task(reasons(gate, content, name))
    await eventually(lambda: not gate._validation._helpers._idle)  # type: ignore[union-attr]
    os.kill(helper._process.pid, signal.SIGKILL)
    with pytest.raises(_errors.PublishError, match="without an answer") as failed:
        await endless
    assert not isinstance(failed.value, _errors.ContentRefused)
    assert await reasons(gate, b"[]", name) == ()


def test_a_writer_whose_schema_is_attacked_answers_and_ends(
    tmp_path: Path, sidecar_process: StartProcess, free_port: int
) -> None:
    """40 bytes froze probes, all other writes, and SIGTERM: `re` holds the interpreter's lock."""
    (tmp_path / "s.json").write_text('{"pattern": "^([a-z0-9]+-?)+$"}')
    url = f"http://127.0.0.1:{free_port}"
    writer = sidecar_process(
        "write", "--path", tmp_path / "v" / "config", "--host", "127.0.0.1", "--port", free_port,
        "--schema", tmp_path / "s.json", "--check-timeout", "60", "--drain-delay", "0", "--drain-timeout", "0.2",
        until=f"{url}/readyz",
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", free_port)) as attack:
        evil = b'"' + b"a" * 40 + b'!"'
        attack.sendall(
            b"PUT /files/config HTTP/1.1\r\nHost: x\r\nContent-Length: 43\r\n\r\n" + evil
        )
        for path in ("/livez", "/?content=%22abc%22", "/livez"):
            with urllib.request.urlopen(url + path, timeout=20) as answer:
                assert answer.status == 200
        assert writer.stop() == 0


async def test_a_mapping_is_a_schema_and_a_function_is_a_check(tmp_path: Path) -> None:
    """As a gate of a volume, as they stand; functions refuse by raising or by returning False."""

    async def refuse_b(content: sidecar.Content) -> None:
        if b"b" in content.data:
            raise ValueError(f"{content.name} has a b")

    async def refused(gate: object, content: str | Path) -> tuple[str, ...]:
        volume = sidecar.Volume(tmp_path / "v", gate=gate)  # type: ignore[arg-type]
        try:
            await volume.put("x", content)
        except sidecar.ContentRefused as error:
            return error.reasons
        return ()

    large = tmp_path / "large"
    large.write_bytes(b"b" * (2 << 20))
    assert await refused({"type": "integer"}, "1") == ()
    assert await refused({"type": "integer"}, "true") == (
        "at the top: True is not of type 'integer'",
    )
    assert await refused(lambda content: content.data.isdigit(), "1") == ()
    assert await refused(lambda content: content.data.isdigit(), "a") == ("the check refuses it",)
    assert await refused(refuse_b, "a") == ()
    assert await refused(refuse_b, large) == ("the check refuses it: x has a b",)
    with pytest.raises(sidecar.ConfigError, match="gate"):
        await refused(5, "x")


async def test_a_bug_in_a_check_shows_where_it_is_at_level_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The refusal says what was raised; the traceback is for who has written the function."""
    with caplog.at_level(logging.DEBUG, "sidecar"):
        (reason,) = await reasons(Gate(check=lambda content: content.nothing), b"x")
    assert "has no attribute 'nothing'" in reason
    assert "Traceback" in caplog.text
