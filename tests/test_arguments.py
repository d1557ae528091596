"""The public border: an argument that makes no sense is told at once, before anything happens."""

from __future__ import annotations

import asyncio
import functools
import logging
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sidecar
from sidecar import logs
from sidecar.process import arguments, metrics

# Given what a type checker would refuse.
S: Any = sidecar
L: Any = logs
V, W = S.Volume, S.watch
SINK = logs.StdoutSink()


async def async_schema(snapshot: object) -> object:
    return snapshot


class AsyncSchema:
    async def __call__(self, snapshot: object) -> object:
        return snapshot


#: Any function of the public border, with one argument that cannot work, and what the error has to name.
SENSELESS: dict[str, tuple[Callable[[], object], str]] = {
    "volume-path": (lambda: V(5), "path"),
    "volume-empty-path": (lambda: V(""), "path"),
    "volume-bytes-path": (lambda: V(b"/x"), "path"),
    "volume-keep": (lambda: V("/x", keep=-1), "keep"),
    "volume-keep-fraction": (lambda: V("/x", keep=1.5), "keep"),
    "volume-keep-bool": (lambda: V("/x", keep=True), "keep"),
    "volume-grace": (lambda: V("/x", grace=-1), "grace"),
    "volume-grace-nan": (lambda: V("/x", grace=float("nan")), "grace"),
    "volume-grace-text": (lambda: V("/x", grace="30"), "grace"),
    "volume-size": (lambda: V("/x", max_size=-5), "max_size"),
    "volume-size-text": (lambda: V("/x", max_size="much"), "Ki, Mi or Gi"),
    "volume-size-fraction": (lambda: V("/x", max_size=1e6), "max_size"),
    "volume-mode": (lambda: V("/x", mode="0644"), "0o644"),
    "volume-mode-decimal": (lambda: V("/x", mode=644), "0o1204"),
    "volume-group": (lambda: V("/x", group="adm"), "group"),
    "volume-durability": (lambda: V("/x", durability="some"), "full, none"),
    "volume-gate": (lambda: V("/x", gate=5), "gate"),
    "watch-path": (lambda: W(None), "path"),
    "watch-recheck": (lambda: W("/x", recheck=0), "recheck"),
    "watch-recheck-text": (lambda: W("/x", recheck="1s"), "recheck"),
    "watch-mode": (lambda: W("/x", watch="often"), "inotify"),
    "watch-size": (lambda: W("/x", max_size=-1), "max_size"),
    "watch-schema": (lambda: W("/x", schema=5), "schema"),
    "watch-async-schema": (lambda: W("/x", schema=async_schema), "not awaited"),
    "watch-async-call": (lambda: W("/x", schema=AsyncSchema()), "not awaited"),
    "watch-async-partial": (lambda: W("/x", schema=functools.partial(async_schema)), "not awaited"),
    "volume-watch-event": (lambda: V("/x").watch(stop_event=5), "stop_event"),
    "watch-event": (lambda: W("/x", stop_event=5), "stop_event"),
    "volume-dry-run": (lambda: asyncio.run(V("/x").put("a", "1", dry_run="no")), "dry_run"),
    "volume-set-dry-run": (lambda: asyncio.run(V("/x").publish({}, dry_run=0)), "dry_run"),
    "volume-purge": (lambda: asyncio.run(V("/x").delete("a", purge="no")), "purge"),
    "volume-stage": (
        lambda: asyncio.run(V("/x").stage("a", dry_run="no").__aenter__()),
        "dry_run",
    ),
    "volume-watch": (lambda: V("/x").watch(recheck=-1), "recheck"),
    "follow-recheck": (lambda: S.follow("/x", recheck=0), "recheck"),
    "follow-schema": (lambda: S.follow("/x", schema=async_schema), "not awaited"),
    "follow-key": (lambda: S.follow("/x", key="latest"), "AppKey"),
    "files-size": (lambda: S.files_app("/x", max_size="x"), "max_size"),
    "files-path": (lambda: S.files_app(""), "path"),
    "reader-path": (lambda: S.reader_app(7), "path"),
    "reader-missing": (lambda: S.reader_app("/x", missing=5), "missing"),
    "writer-keep": (lambda: S.writer_app("/x/y", keep=-1), "keep"),
    "writer-confirm": (lambda: S.writer_app("/x/y", confirm="reader:8081"), "confirm"),
    "writer-token": (lambda: S.writer_app("/x/y", token_file=5), "token_file"),
    "tail-start": (lambda: L.tail("/x", start="middle"), "beginning, end"),
    "tail-line": (lambda: L.tail("/x", max_line=0), "max_line"),
    "tail-recheck": (lambda: L.tail("/x", recheck=-1), "recheck"),
    "tail-wait": (lambda: L.tail("/x", rotate_wait=-1), "rotate_wait"),
    "tail-older": (lambda: L.tail("/x", ignore_older="1h"), "ignore_older"),
    "tail-exclude": (lambda: L.tail("/x", exclude="debug.log"), "exclude"),
    "tail-pattern": (lambda: L.tail(5), "pattern"),
    "tail-multiline": (lambda: L.tail("/x", multiline=r"^\d"), "multiline"),
    "multiline-timeout": (lambda: L.Multiline(start="x", timeout=-1), "timeout"),
    "multiline-nothing": (L.Multiline, "start or end"),
    "collector-source": (lambda: L.Collector("/x", [], [SINK]), "logs.tail"),
    "collector-sink": (lambda: L.Collector(L.tail("/x"), [], [print]), "sink"),
    "collector-stage": (lambda: L.Collector(L.tail("/x"), ["json"], [SINK]), "stage"),
    "collector-budget": (lambda: L.Collector(L.tail("/x"), [], [SINK], budget=0), "budget"),
    "file-keep": (lambda: L.FileSink("/x", keep=-1), "keep"),
    "file-mode": (lambda: L.FileSink("/x", mode="644"), "0o644"),
    "file-size": (lambda: L.FileSink("/x", max_bytes="many"), "max_bytes"),
    "http-timeout": (lambda: L.NdjsonSink("http://x", timeout=0), "timeout"),
    "http-url": (lambda: L.NdjsonSink(5), "url"),
    "http-headers": (lambda: L.NdjsonSink("http://x", headers="x"), "headers"),
    "http-batching": (lambda: L.NdjsonSink("http://x", batching="x"), "Batching"),
    "http-token": (lambda: L.NdjsonSink("http://x", token_file=5), "path"),
    "loki-tenant": (lambda: L.LokiSink("http://x", tenant=5), "tenant"),
    "loki-fields": (lambda: L.LokiSink("http://x", label_fields="app"), "label_fields"),
    "elastic-index": (lambda: L.ElasticsearchSink("http://x", index=5), "index"),
    "keep-pattern": (lambda: L.keep(5), "pattern"),
    "redact-pattern": (lambda: L.redact(None), "pattern"),
    "otlp-resource": (lambda: L.OtlpSink("http://x", resource="x"), "resource"),
    "otlp-status": (lambda: L.OtlpSink("http://x", retry_status="429"), "retry_status"),
    "collector-letters": (lambda: L.Collector(logs.tail("/x"), [], [SINK], dead_letters="x"), "DeadLetterFile"),
    "tail-root": (lambda: L.tail("/x", root=5), "root"),
    "tail-encoding": (lambda: L.tail("/x", encoding=5), "encoding"),
    "every": (lambda: S.every("1"), "every"),
    "batching": (lambda: L.Batching(max_lines=0), "max_lines"),
}  # fmt: skip


@pytest.mark.parametrize("case", SENSELESS)
def test_an_argument_that_makes_no_sense_is_refused_with_what_is_allowed(case: str) -> None:
    """docs/python.md: "`ConfigError` means an argument that cannot work"; at the call, not at the first use."""
    call, named = SENSELESS[case]
    with pytest.raises(sidecar.ConfigError, match=named):
        call()


async def test_serving_checks_its_arguments_before_it_listens() -> None:
    """As the command does: `--port 70000`, `--drain-delay -1`, and what is no application."""
    app = web.Application()
    for options in (
        {"port": 70_000},
        {"port": "8080"},
        {"drain_delay": -1},
        {"max_connections": 0},
    ):
        with pytest.raises(sidecar.ConfigError, match=next(iter(options))):
            await sidecar.serve(app, **options)
    with pytest.raises(sidecar.ConfigError, match="Application"):
        await sidecar.serve(S.watch)


def test_sizes_are_understood_as_the_command_takes_them(tmp_path: Path) -> None:
    """One word everywhere: `--max-size 64Mi` is `max_size="64Mi"`."""
    for make in (V, W, sidecar.files_app, sidecar.reader_app, sidecar.writer_app):
        make(tmp_path / "x", max_size="64Mi")
    logs.tail("/x", max_line="64Ki", held_limit="1Gi")
    logs.FileSink(tmp_path / "x", max_bytes="10M")
    assert arguments.check_size("max_size", "64Mi") == 64 << 20


NO_CONTENTS = [5, {}, None, True, 1.5, ["a"], bytearray(b"x"), memoryview(b"x"), object()]


@pytest.mark.parametrize("content", NO_CONTENTS, ids=lambda one: type(one).__name__)
async def test_what_is_no_content_is_refused_before_anything_happens(
    tmp_path: Path, content: Any
) -> None:
    """`put("x", 5)` wrote five NUL bytes, `{}` an empty file; what can still be changed is none either."""
    volume = V(tmp_path / "shared")
    for attempt in (
        volume.put("x", content),
        volume.publish({"a": "good", "x": content}),
        volume.prepare(initial={"x": content}),
        sidecar.publish_file(tmp_path / "shared" / "x", content),
    ):
        with pytest.raises(TypeError, match=type(content).__name__):
            await attempt
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("name", [5, b"x", None, Path("x")], ids=lambda one: type(one).__name__)
async def test_a_name_is_a_text(tmp_path: Path, name: Any) -> None:
    """Anything else is a `TypeError`; it was an `AttributeError` from deep inside."""
    volume = V(tmp_path / "shared")
    for attempt in (volume.put(name, "x"), volume.delete(name), volume.publish({name: "x"})):
        with pytest.raises(TypeError, match="name of a file"):
            await attempt
    with pytest.raises(TypeError, match="mapping"):
        await volume.prepare(initial="text")
    with pytest.raises(TypeError, match="mapping"):
        await volume.publish("text")


async def test_a_path_as_content_publishes_the_bytes_of_that_file(tmp_path: Path) -> None:
    """`put("model", Path("/m.bin"))` published the text `/m.bin`."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"\x00few")
    large.write_bytes(b"many" * (1 << 19))
    volume = V(tmp_path / "shared")
    await volume.put("small", small)
    assert (await volume.put("large", large)).size == 2 << 20
    await sidecar.publish_file(tmp_path / "shared" / "copy", large)
    assert (tmp_path / "shared" / "small").read_bytes() == b"\x00few"
    assert (tmp_path / "shared" / "copy").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "too-large"])
async def test_a_path_that_is_no_file_to_publish_leaves_the_old_content(
    tmp_path: Path, kind: str
) -> None:
    """Missing, a directory, a FIFO nobody writes to, too large: an error with its path, at once."""
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        subprocess.run(["mkfifo", path], check=True)
    elif kind == "too-large":
        path.write_bytes(b"12345")
    volume = V(tmp_path / "shared", max_size=4)
    await volume.put("x", "old")
    async with asyncio.timeout(5):
        with pytest.raises(sidecar.SidecarError, match=rf"{tmp_path}/(shared|{kind})"):
            await volume.put("x", path)
    assert (await volume.read("x")).data == b"old"


async def test_a_set_may_hold_files_and_uploads(tmp_path: Path) -> None:
    """Each kind of content that `put` takes, small and large, in one publish."""
    large = tmp_path / "large"
    large.write_bytes(b"x" * (3 << 20))
    volume = V(tmp_path / "shared")
    async with volume.stage("streamed") as upload:
        await upload.write(b"piece by piece")
        await volume.publish({"text": "a", "file": large, "streamed": upload})
    snapshot = await volume.snapshot()
    assert {name: len(snapshot[name]) for name in snapshot} == {
        "text": 1, "file": 3 << 20, "streamed": 14,
    }  # fmt: skip


async def test_an_upload_takes_bytes_and_nothing_else(tmp_path: Path) -> None:
    """A text is refused before it counts, and elements of several bytes are counted as bytes."""
    volume = V(tmp_path)
    async with volume.stage("x") as upload:
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                await upload.write(wrong)
        await upload.write(memoryview(array("H", [1, 2])))
        await upload.write(bytearray(b"z"))
        assert upload.size == 5
        assert (await volume.put("x", upload)).size == 5


async def test_an_upload_that_a_set_has_taken_is_counted_with_that(tmp_path: Path) -> None:
    """Each attempt is one: what fails after the publish is no publish that has failed."""
    volume = V(tmp_path)

    async def publish_and_fail() -> None:
        async with volume.stage("streamed") as upload:
            await upload.write(b"x")
            await volume.publish({"streamed": upload})
            raise LookupError

    counts = [metrics.PUBLISH_TOTAL.labels(one) for one in metrics.PUBLISH_RESULTS]
    before = sum(one._value.get() for one in counts)
    with pytest.raises(LookupError):
        await publish_and_fail()
    assert sum(one._value.get() for one in counts) - before == 1


async def test_a_version_is_understood_where_an_entity_tag_is_wanted(tmp_path: Path) -> None:
    """`done.version` and `done.etag` are one content; without quotes it never matched."""
    volume = V(tmp_path)
    done = await volume.put("x", "1")
    done = await volume.put("x", "2", if_match=done.version)
    done = await volume.put("x", "3", if_match=[done.etag])
    with pytest.raises(sidecar.VersionConflict):
        await volume.put("x", "4", if_none_match=done.version)
    for wrong in (5, b"tag", [5]):
        with pytest.raises(sidecar.ConfigError, match="if_match"):
            await volume.put("x", "5", if_match=wrong)


async def test_what_a_schema_returns_to_be_awaited_is_refused(tmp_path: Path) -> None:
    """A plain function around a coroutine function: its check would never run, and its value be a coroutine."""
    (tmp_path / "x").write_text("1")
    async with W(tmp_path / "x", schema=lambda one: [async_schema(one)][0]) as watch:
        await watch.looked()
        assert watch.snapshot is None
        assert "to await" in (watch.problem or "")


async def test_a_bug_in_a_schema_shows_where_it_is_at_level_debug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A `KeyError` of a typing slip says only `'colour'`; the traceback names the line."""
    (tmp_path / "x").write_text("1")
    with caplog.at_level(logging.DEBUG, "sidecar"):
        async with W(tmp_path / "x", schema=lambda _: dict[str, str]()["colour"]) as watch:
            await watch.looked()
    assert (
        'schema=lambda _: dict[str, str]()["colour"]' in caplog.text
        or "test_arguments.py" in caplog.text
    )
    assert "Traceback" in caplog.text


def test_the_border_is_checked_without_a_web_server() -> None:
    """The checks must not make a program that only publishes load aiohttp."""
    program = "import sys, sidecar; sidecar.Volume('/x'); sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
