"""Without an event loop: the same things, from any thread, in the background, and after a fork."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sidecar
from sidecar import sync
from sidecar.process import metrics
from support import WaitFor

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_file_is_loaded_as_it_is_now(tmp_path: Path) -> None:
    """A file, a directory as a set, and with a schema its value."""
    sync.publish_file(tmp_path / "config", '{"a": 1}')
    assert sync.load(tmp_path / "config").json() == {"a": 1}
    assert dict(sync.load(tmp_path)) == {"config": b'{"a": 1}'}
    assert sync.load(tmp_path / "config", schema=lambda one: one.json()["a"]).value == 1
    with pytest.raises(KeyError):
        sync.load(tmp_path / "config", schema=lambda one: one.json()["b"])


def test_what_is_not_there_is_told_or_waited_for(tmp_path: Path) -> None:
    """`NothingPublished` at once, or after the timeout; what cannot be read is another error."""
    for timeout in (0.0, 0.05):
        with pytest.raises(sidecar.NothingPublished, match="config"):
            sync.load(tmp_path / "config", timeout=timeout)
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(sidecar.ReadError):
        sync.load(tmp_path / "link")
    late = threading.Timer(0.05, sync.publish_file, (tmp_path / "config", "late"))
    late.start()
    assert sync.load(tmp_path / "config", timeout=20).text() == "late"
    late.join()


def test_a_watch_has_the_newest_content_at_hand(tmp_path: Path, wait_for: WaitFor) -> None:
    """In the background: the first access waits for the first look, later ones wait for nothing."""
    sync.publish_file(tmp_path / "config", "1")
    told: list[str | None] = []
    with sync.watch(tmp_path / "config", schema=lambda one: int(one.text())) as watch:
        assert watch.latest.value == 1
        end = watch.subscribe(lambda: told.append(watch.etag))
        sync.publish_file(tmp_path / "config", "2")
        wait_for(lambda: watch.latest.value == 2)
        end()
        assert watch.changed(sidecar.Snapshot.of({"x": "1"}, single=True).etag, 0.0) is not None
        assert (watch.stale, watch.failure, watch.problem) == (None, None, None)
    assert told == [sidecar.Snapshot.of({"config": "2"}, single=True).etag]
    with pytest.raises(RuntimeError, match="closed"):
        watch.snapshot  # noqa: B018


def test_a_watch_of_nothing_says_so(tmp_path: Path) -> None:
    """None, or an error for who needs it; nothing is raised by the watch itself."""
    with sync.watch(tmp_path / "config") as watch:
        assert watch.snapshot is None
        with pytest.raises(sidecar.NothingPublished, match="config"):
            watch.latest  # noqa: B018


def test_a_loop_over_a_watch_sees_each_version_until_it_is_closed(tmp_path: Path) -> None:
    """As `async for`: the present one first, then the newest."""
    sync.publish_file(tmp_path / "config", "1")
    seen = []
    watch = sync.watch(tmp_path / "config")
    for snapshot in watch:
        seen.append(snapshot.text())
        if len(seen) == 3:
            watch.close()
        else:
            sync.publish_file(tmp_path / "config", str(len(seen) + 1))
    assert seen == ["1", "2", "3"]


def test_several_paths_are_followed_as_one(tmp_path: Path, wait_for: WaitFor) -> None:
    """As by `sidecar.watch`: the present of all first, then all again; what is not there yet is left out."""
    one, two = tmp_path / "one", tmp_path / "two"
    sync.publish_file(one, "1")
    group = sync.watch(one, two, schema=lambda found: int(found.text()))
    seen: list[dict[str, int]] = []
    for snapshots in group:
        seen.append({Path(path).name: found.value for path, found in snapshots.items()})
        if len(seen) == 1:
            sync.publish_file(two, "2")
        elif len(seen) == 2:
            assert list(group.snapshots) == [str(one), str(two)]
            assert group.failure is None
            sync.publish_file(one, "3")
        else:
            group.close()
    assert seen == [{"one": 1}, {"one": 1, "two": 2}, {"one": 3, "two": 2}]
    with pytest.raises(RuntimeError, match="closed"):
        group.snapshots  # noqa: B018
    stop = threading.Event()
    with sync.watch(one, two, stop_event=stop) as both, ThreadPoolExecutor(1) as threads:
        turns = threads.submit(lambda: [list(found) for found in both])
        wait_for(lambda: both.watches[str(one)]._inner()._subscribers)
        stop.set()
        turns.result(20)
    with pytest.raises(TypeError, match="unknown"):
        sync.watch(one, two, unknown=1)  # type: ignore[call-overload]


def test_a_watch_of_a_volume_takes_what_every_watch_takes(tmp_path: Path) -> None:
    """Filters, a schema, and an event of threads that ends the loop over it."""
    for name in ("a.conf", "b.txt"):
        sync.publish_file(tmp_path / name, name)
    stop = threading.Event()
    with sync.Volume(tmp_path).watch(schema=len, include=("*.conf",), stop_event=stop) as watch:
        for snapshot in watch:
            assert (snapshot.value, list(snapshot)) == (1, ["a.conf"])
            stop.set()
    with pytest.raises(sidecar.ConfigError, match="stop_event"):
        sync.watch(tmp_path, stop_event=asyncio.Event())  # type: ignore[call-overload]


def test_an_upload_can_be_a_trial(tmp_path: Path) -> None:
    """As `sidecar.Volume.stage`: nothing is changed, and what fails counts as no publish."""
    volume = sync.Volume(tmp_path)
    with volume.stage("large", dry_run=True) as upload:
        upload.write(b"content")
        done = volume.put("large", upload, dry_run=True)
    assert (done.changed, volume.names()) == (True, {})
    before = metrics.PUBLISH_TOTAL.labels("failed")._value.get()
    with pytest.raises(sidecar.ContentTooLarge), volume.stage(limit=1, dry_run=True) as upload:
        upload.write(b"content")
    assert metrics.PUBLISH_TOTAL.labels("failed")._value.get() == before


def test_a_volume_does_what_the_asynchronous_one_does(tmp_path: Path) -> None:
    """Each method, once."""
    volume = sync.Volume(tmp_path / "v", gate={"type": "object"}, max_size="1Mi")
    volume.prepare(initial={"a": "{}"})
    first = volume.put("a", '{"n": 1}')
    with pytest.raises(sidecar.ContentRefused):
        volume.put("a", "1")
    with pytest.raises(TypeError, match="int"):
        volume.put("a", 1)  # type: ignore[arg-type]
    with volume.stage("a") as upload:
        upload.write(b'{"n": ')
        upload.write(b"2}")
        assert volume.put("a", upload, if_match=first.version).version == upload.version
    assert volume.names() == {"a": upload.size}
    assert [one.name for one in volume.entries()] == ["a"]
    assert len(volume.versions("a")) == 3
    assert volume.rollback(first.version, name="a").version == first.version
    assert volume.read("a").data == b'{"n": 1}'
    volume.check_writable()
    volume.delete("a")
    assert volume.publish({"b": "{}"}).created
    assert dict(volume.snapshot()) == {"b": b"{}"}
    with volume.watch() as watch:
        assert dict(watch.latest) == {"b": b"{}"}
    assert volume.published is not None


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_upload_that_is_given_up_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """The error of the caller comes out, whatever it is, and the background goes on."""
    volume = sync.Volume(tmp_path)

    def give_up() -> None:
        with volume.stage("x") as upload:
            upload.write(b"x" * 100_000)
            raise error

    with pytest.raises(error):
        give_up()
    assert volume.put("y", "1").changed
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("..tmp")] == []
    assert volume.names() == {"y": 1}


def test_many_threads_share_one_volume_and_one_watch(tmp_path: Path, wait_for: WaitFor) -> None:
    """As the workers of a web server do."""
    volume = sync.Volume(tmp_path)
    with sync.watch(tmp_path / "n") as watch, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: volume.put("n", str(n)), range(64)))
        volume.put("n", "last")
        wait_for(lambda: watch.snapshot is not None and watch.latest.text() == "last")


def test_what_was_made_before_a_fork_works_in_the_child(tmp_path: Path) -> None:
    """gunicorn --preload, Celery: the module was imported, and used, by the parent."""
    volume = sync.Volume(tmp_path)
    volume.put("config", "1")
    watch = sync.watch(tmp_path / "config")
    assert watch.latest.text() == "1"
    ours, theirs = FORK.Pipe()

    def child() -> None:
        before = watch.latest.text()
        volume.put("config", "2")
        changed = watch.changed(sidecar.Snapshot.of({"x": "1"}, single=True).etag, 10)
        theirs.send([before, changed and changed.text(), watch.failure])

    process = FORK.Process(target=child)
    process.start()
    assert ours.poll(20)
    assert ours.recv() == ["1", "2", None]
    process.join()
    assert process.exitcode == 0
    found = watch.changed(sidecar.Snapshot.of({"x": "1"}, single=True).etag, 10)
    assert found is not None
    assert found.text() == "2"
    watch.close()


def test_its_own_loop_is_not_blocked_by_a_callback(tmp_path: Path) -> None:
    """A schema or a check runs there: a call from it would wait for itself for ever."""

    async def check(content: sidecar.Content) -> None:
        sync.load(tmp_path / "other")

    with pytest.raises(sidecar.ContentRefused, match="its own event loop"):
        sync.Volume(tmp_path, gate=check).put("x", "1")


def test_an_interrupted_publish_has_ended_when_the_interrupt_arrives(tmp_path: Path) -> None:
    """Ctrl-C: withdrawn or finished, never left to go on in the background."""
    program = f"""
import os, signal, threading, time, sidecar
from sidecar import sync
begun = {str(tmp_path / "begun")!r}
volume = sync.Volume({str(tmp_path / "volume")!r}, gate=sidecar.Gate(check=["sh", "-c", f"echo > {{begun}}; sleep 30"]))
def interrupt():
    while not os.path.exists(begun):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    volume.put("x", "1")
except KeyboardInterrupt:
    print("interrupted", volume.published, os.listdir({str(tmp_path / "volume")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=25
    )
    said, _, names = done.stdout.partition("None ")
    assert (said, done.stderr) == ("interrupted ", "")
    assert "x" not in names


def test_a_script_ends_without_a_word(tmp_path: Path) -> None:
    """Nothing is left to complain at the end of the interpreter: no task, no loop, no thread."""
    program = f"""
from sidecar import sync
watch = sync.watch({str(tmp_path)!r} + "/config")
sync.publish_file({str(tmp_path)!r} + "/config", "1")
print(watch.changed(None, 10).text())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_it_loads_no_web_server() -> None:
    """A script that loads a file has no use for aiohttp."""
    program = "import json, sys; from sidecar import sync; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    assert not {"aiohttp", "click", "jsonschema", "yaml"} & set(json.loads(out))
