"""Group commit: one publish for all that wait, and an acknowledgement that keeps its meaning."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar import Publication, PublishError, VersionConflict, Volume
from sidecar.process import metrics
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.publish.group_commit import GroupCommit

pytestmark = pytest.mark.filterwarnings("error")


class Disk:
    """Publishes when it is told to, and notes what."""

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self.begun = asyncio.Event()
        self.turn = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def publish(self, name: str, data: bytes, _: object = None) -> Publication:
        self.begun.set()
        await self.turn.acquire()
        if self.error is not None:
            raise self.error
        self.published.append(data)
        return Publication(version_of(data), True, False, 1.0, len(data))


async def test_of_the_contents_that_wait_only_the_last_is_written() -> None:
    """The first is under way, so four wait: two publishes for five acknowledgements."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    puts = [asyncio.create_task(commits.put("config", b"%d" % n)) for n in range(5)]
    await asyncio.sleep(0)
    disk.turn.release()
    disk.turn.release()

    done = await asyncio.gather(*puts)

    assert disk.published in ([b"4"], [b"0", b"4"])
    assert [one.version for one in done] == [version_of(b"%d" % n) for n in range(5)]


async def test_names_do_not_wait_for_each_other() -> None:
    """Each name has its own publish under way."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    puts = [asyncio.create_task(commits.put(name, name.encode())) for name in ("a", "b")]
    disk.turn.release()
    disk.turn.release()

    await asyncio.gather(*puts)

    assert sorted(disk.published) == [b"a", b"b"]


async def test_an_error_reaches_everybody_who_waited_for_that_publish() -> None:
    """Nothing was published for any of them, so none is told that it was; the next one is tried anew."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    disk.error = PublishError("the disk is gone")
    puts = [asyncio.create_task(commits.put("config", b"%d" % n)) for n in range(3)]
    for _ in puts:
        disk.turn.release()

    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert [str(one) for one in outcomes] == ["the disk is gone"] * 3

    disk.error = None
    disk.turn.release()
    assert (await commits.put("config", b"again")).version == version_of(b"again")


async def test_a_content_that_still_waits_is_withdrawn_when_its_caller_is_cancelled() -> None:
    """It is never written, and the one under way is not disturbed."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    first = asyncio.create_task(commits.put("config", b"first"))
    await disk.begun.wait()
    second = asyncio.create_task(commits.put("config", b"second"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    disk.turn.release()
    await first

    assert second.cancelled()
    assert disk.published == [b"first"]


async def test_a_publish_goes_on_for_those_who_still_wait_for_it() -> None:
    """One of two in the same round is cancelled: the other is acknowledged, and learns nothing of it."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    first = asyncio.create_task(commits.put("config", b"first"))
    await disk.begun.wait()
    one, other = (asyncio.create_task(commits.put("config", data)) for data in (b"one", b"other"))
    disk.begun.clear()
    disk.turn.release()
    await first
    await disk.begun.wait()
    other.cancel()
    await asyncio.sleep(0)
    disk.turn.release()

    assert (await one).version == version_of(b"one")
    await asyncio.wait({other})
    assert other.cancelled()
    assert disk.published == [b"first", b"other"]


@pytest.mark.parametrize("turns", range(8))
async def test_who_is_cancelled_when_it_was_told_already_takes_nobody_along(turns: int) -> None:
    """Its publish has ended, and those who came after it are gathering for theirs."""
    disk = Disk()
    commits = GroupCommit(disk.publish)
    first = asyncio.create_task(commits.put("config", b"first"))
    await disk.begun.wait()
    second = asyncio.create_task(commits.put("config", b"second"))
    await asyncio.sleep(0)
    disk.turn.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    disk.turn.release()

    await asyncio.wait({first, second})

    assert not second.cancelled()
    assert second.result().version == version_of(b"second")


async def test_who_waits_is_told_when_the_program_ends_before_anything_was_taken() -> None:
    """The round is between two turns of the loop: it has begun, and has taken no content yet."""
    told: list[object] = []
    commits = GroupCommit(Disk().publish)
    commits.submit("config", b"0", told.append)
    await asyncio.sleep(0)
    (publish,) = asyncio.all_tasks() - {asyncio.current_task()}
    publish.cancel()
    await asyncio.wait({publish})
    await asyncio.sleep(0)

    assert [type(one) for one in told] == [asyncio.CancelledError]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_64_writers_share_the_syncs_of_a_real_volume(tmp_path: Path) -> None:
    """All are acknowledged, the last one is there, and history holds what became visible."""
    volume = Volume(tmp_path, keep=100)
    await volume.put("config", "before")

    done = await asyncio.gather(*(volume.put("config", f"content {n}") for n in range(64)))

    seen = [one.version for one in await volume.versions("config")]
    assert (await volume.read("config")).data == b"content 63"
    assert [one.version for one in done] == [version_of(b"content %d" % n) for n in range(64)]
    assert seen[0] == version_of(b"content 63")
    assert len(seen) < 20


async def test_conditions_are_never_grouped(tmp_path: Path) -> None:
    """Of many who replace the same version one wins, and the others are told who did."""
    volume = Volume(tmp_path)
    first = await volume.put("config", "first")

    outcomes = await asyncio.gather(
        *(volume.put("config", f"{n}", if_match=first.etag) for n in range(10)),
        return_exceptions=True,
    )

    assert sum(isinstance(one, Publication) for one in outcomes) == 1
    assert sum(isinstance(one, VersionConflict) for one in outcomes) == 9


async def test_an_error_counts_for_each_who_waited_for_that_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the error, and each was an attempt (issue 10, point 12)."""
    volume = Volume(tmp_path)
    await volume.prepare()

    def fail(*_: object) -> None:
        raise PublishError("the disk is gone")

    monkeypatch.setattr(volume._store, "put", fail)
    failed = metrics.PUBLISH_TOTAL.labels("failed")._value.get
    before = failed()
    puts = [volume.put("config", str(number)) for number in range(5)]
    await asyncio.gather(*puts, return_exceptions=True)
    assert failed() - before == 5


async def test_only_who_comes_alone_is_served_by_the_event_loop_itself() -> None:
    """With many the loop reads on while a thread publishes: half of 64 clients' rate was lost without."""
    done, served = Publication("1", True, False, 0.0, 1), []

    async def publish(_: str, data: bytes, metadata: object) -> Publication:
        served.append(("thread", data))
        return done

    def at_once(_: str, data: bytes, metadata: object) -> Publication:
        served.append(("loop", data))
        return done

    commits = GroupCommit(publish, at_once)
    await commits.put("config", b"1")
    await asyncio.gather(*(commits.put("config", data) for data in (b"2", b"3")))
    assert served == [("loop", b"1"), ("thread", b"3")]
