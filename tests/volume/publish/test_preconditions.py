"""Several writers: what a condition forbids does not happen, and no update is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import openat
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.volume import Volume
from support import as_user

WRITERS = 4
INCREMENTS = 25

#: Adds one to a counter, as often as it is told to; whoever comes second reads again.
COUNTING = """
import asyncio, sys
from sidecar import VersionConflict, Volume

async def main(path, layout, times):
    volume = Volume(path, keep=2, grace=0.0)
    for _ in range(times):
        while True:
            if layout == "set":
                snapshot = await volume.snapshot()
                found, etag = int(snapshot.text("count")), snapshot.etag
            else:
                content = await volume.read("count")
                found, etag = int(content.data), content.etag
            try:
                if layout == "set":
                    files = {"count": str(found + 1), "double": str(2 * found + 2)}
                    await volume.publish(files, if_match=etag)
                else:
                    await volume.put("count", str(found + 1), if_match=etag)
                break
            except VersionConflict:
                continue

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture(params=["loose", "set"])
async def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Volume:
    """A volume with `config`, as a loose file or in a set."""
    volume = Volume(tmp_path)
    if request.param == "loose":
        await volume.put("config", "present")
    else:
        await volume.publish({"config": "present", "other": "x"})
    return volume


async def test_a_content_that_is_still_there_may_be_replaced(volume: Volume) -> None:
    """By one of the tags, or by any."""
    etag = (await volume.read("config")).etag
    await volume.put("config", "1", if_match=['"other"', etag])
    await volume.put("config", "2", if_match="*")
    await volume.put("config", "3", if_none_match=etag)
    await volume.put("new", "4", if_none_match="*")
    assert (await volume.read("config")).data == b"3"


async def test_a_content_that_has_moved_on_may_not(volume: Volume) -> None:
    """The error says what is there now, and nothing has changed."""
    present = (await volume.read("config")).etag
    conflicts = (
        volume.put("config", "lost", if_match='"other"'),
        volume.put("config", "lost", if_match=[]),
        volume.put("config", "lost", if_none_match="*"),
        volume.put("config", "lost", if_none_match=['"other"', present]),
        volume.delete("config", if_match='"other"'),
    )
    for conflict in conflicts:
        with pytest.raises(_errors.VersionConflict, match=present) as caught:
            await conflict
        assert caught.value.current == present
    assert (await volume.read("config")).data == b"present"


async def test_what_is_missing_matches_no_tag(volume: Volume) -> None:
    """Not even any."""
    for condition in ("*", '"other"'):
        for conflict in (
            volume.put("new", "x", if_match=condition),
            volume.delete("new", if_match=condition),
        ):
            with pytest.raises(_errors.VersionConflict, match="missing") as caught:
                await conflict
            assert caught.value.current is None
    assert "new" not in await volume.names()


async def test_a_condition_is_checked_before_an_equal_content_counts_as_published(
    volume: Volume,
) -> None:
    """Create-only must fail, also if the very content is there."""
    with pytest.raises(_errors.VersionConflict):
        await volume.put("config", "present", if_none_match="*")


async def test_a_set_is_compared_as_a_whole(tmp_path: Path) -> None:
    """Its tag changes with any of its files."""
    volume = Volume(tmp_path)
    first = await volume.publish({"a": "1", "b": "1"}, if_none_match="*")
    await volume.put("b", "2")
    with pytest.raises(_errors.VersionConflict):
        await volume.publish({"a": "2", "b": "1"}, if_match=first.etag)
    await volume.publish({"a": "2", "b": "2"}, if_match=(await volume.snapshot()).etag)


async def test_a_change_within_one_tick_of_the_clock_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems' clocks are coarse: two contents of one moment can have one signature."""
    now = time.time_ns()
    same = openat.StatSignature(1, 1, 3, now, now)
    monkeypatch.setattr(openat.StatSignature, "of", lambda _: same)
    volume = Volume(tmp_path)
    for content in ("old", "new"):
        (tmp_path / "config").write_text(content)
        with pytest.raises(_errors.VersionConflict) as caught:
            await volume.put("config", "lost", if_match='"other"')
        assert caught.value.current == f'"{version_of(content.encode())}"'


@pytest.mark.root
async def test_what_cannot_be_read_cannot_be_compared(open_path: Path) -> None:
    """Neither replaced nor called missing; without a condition it is replaced, as the directory permits."""
    (open_path / "config").write_text("private")
    (open_path / "config").chmod(0o600)
    volume = Volume(open_path)
    with as_user(65532):
        with pytest.raises(_errors.VolumeUnavailable, match="cannot be compared"):
            await volume.put("config", "x", if_match='"x"')
        with pytest.raises(_errors.VolumeUnavailable, match="cannot be compared"):
            await volume.put("config", "x", if_none_match="*")
        assert (await volume.put("config", "x")).changed


@pytest.mark.parametrize("layout", ["loose", "set"])
async def test_of_many_writers_in_one_process_each_adds_one(tmp_path: Path, layout: str) -> None:
    """Tasks of one program, with one `Volume` and with several."""
    volumes = [Volume(tmp_path, keep=2, grace=0.0) for _ in range(2)] * 2
    start = {"count": "0"}
    await (volumes[0].publish(start) if layout == "set" else volumes[0].put("count", "0"))

    async def count(volume: Volume) -> None:
        added = 0
        while added < INCREMENTS:
            content = await volume.read("count")
            try:
                await volume.put("count", str(int(content.data) + 1), if_match=content.etag)
                added += 1
            except _errors.VersionConflict:
                continue

    await asyncio.gather(*map(count, volumes))
    assert (await volumes[0].read("count")).data == b"%d" % (len(volumes) * INCREMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["loose", "set"])
async def test_of_many_writers_in_many_processes_each_adds_one(tmp_path: Path, layout: str) -> None:
    """Containers of one Pod that share a volume: 0 lost updates."""
    volume = Volume(tmp_path)
    await (
        volume.publish({"count": "0", "double": "0"})
        if layout == "set"
        else volume.put("count", "0")
    )
    command = [sys.executable, "-c", COUNTING, str(tmp_path), layout, str(INCREMENTS)]
    writers = [subprocess.Popen(command) for _ in range(WRITERS)]
    assert [writer.wait(50) for writer in writers] == [0] * WRITERS
    total = WRITERS * INCREMENTS
    expected = {"count": total, "double": 2 * total} if layout == "set" else {"count": total}
    assert {n: int(data) for n, data in (await volume.snapshot()).items()} == expected
