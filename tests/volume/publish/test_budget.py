"""`volume_budget`: all that lies in the directory stays below it, and a refusal is always true (issue 13, point 3)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import dirs
from sidecar.process import metrics
from sidecar.volume.volume import Volume

MIB = 1 << 20
BUDGET = 4 * MIB


def usage(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return dirs.disk_usage(fd)
    finally:
        os.close(fd)


def content(number: int, size: int = MIB // 2) -> bytes:
    return bytes([number]) * size


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path, volume_budget=BUDGET, durability="none")


async def test_a_refusal_is_counted_once_wherever_it_is_met(volume: Volume) -> None:
    """An upload meets the end of the room before it is published, and is a failed publish as any other."""

    def failed() -> float:
        return metrics.REGISTRY.get_sample_value("sidecar_publish_total", {"result": "failed"}) or 0

    before = failed()
    with pytest.raises(_errors.VolumeFull):
        await volume.put("a", bytes(BUDGET + MIB))
    assert failed() == before + 1
    with pytest.raises(_errors.VolumeFull):
        async with volume.stage("a") as upload:
            await upload.write(bytes(BUDGET + MIB))
    assert failed() == before + 2


async def test_new_names_are_refused_before_the_budget_is_used_up(
    volume: Volume, tmp_path: Path
) -> None:
    """As a full volume, and a deleted file makes room again."""
    with pytest.raises(_errors.VolumeFull, match="budget of 4Mi"):  # noqa: PT012
        for number in range(20):
            await volume.put(str(number), content(number))
    assert BUDGET - MIB < usage(tmp_path) <= BUDGET
    await volume.delete("0", purge=True)
    await volume.put("another", content(99, 400_000))
    assert usage(tmp_path) <= BUDGET


async def test_the_history_gives_way_first(volume: Volume, tmp_path: Path) -> None:
    """The oldest, and not more than is needed."""
    for number in range(30):
        await volume.put("config", content(number))
        assert usage(tmp_path) <= BUDGET
    assert 4 <= len(await volume.versions("config")) < 8
    assert (await volume.read("config")).data == content(29)


async def test_nothing_of_the_history_is_lost_for_what_cannot_fit(
    volume: Volume, tmp_path: Path
) -> None:
    """A giant is refused, and what was there before can still be rolled back to."""
    for number in range(3):
        await volume.put("config", content(number))
    with pytest.raises(_errors.VolumeFull):
        await volume.put("giant", bytes(BUDGET))
    assert len(await volume.versions("config")) == 3


async def test_another_publisher_on_the_volume_is_counted(volume: Volume, tmp_path: Path) -> None:
    """Nobody tells of it: the directory has changed since."""
    other = Volume(tmp_path, volume_budget=BUDGET, durability="none")
    with pytest.raises(_errors.VolumeFull):  # noqa: PT012
        for number in range(20):
            await (volume, other)[number % 2].put(str(number), content(number))
            assert usage(tmp_path) <= BUDGET


async def test_a_set_stays_within_the_budget(volume: Volume, tmp_path: Path) -> None:
    """Generations that are retired give way, too; a set that cannot fit leaves the one in force."""
    for number in range(12):
        await volume.publish({"a": content(number), "b": b"the same"})
        assert usage(tmp_path) <= BUDGET
    with pytest.raises(_errors.VolumeFull, match="budget"):
        await volume.publish({str(n): content(n) for n in range(9)})
    assert (await volume.snapshot())["a"] == content(11)
    await volume.delete("b")


async def test_uploads_under_way_are_counted(volume: Volume, tmp_path: Path) -> None:
    """Their temporary files lie on the volume: of many at a time some are refused, and all that end give way."""

    async def upload(number: int) -> bool:
        try:
            async with volume.stage() as one:
                for _ in range(16):
                    await one.write(content(number, 128 << 10))
                    assert usage(tmp_path) <= BUDGET
                await volume.put(str(number), one)
        except _errors.VolumeFull:
            return False
        return True

    done = await asyncio.gather(*map(upload, range(4)))
    assert not all(done)
    assert usage(tmp_path) <= BUDGET
    await volume.delete(str(done.index(True))) if any(done) else None
    assert await upload(9)


async def test_a_start_counts_what_is_there(tmp_path: Path) -> None:
    """Whoever has put it there."""
    (tmp_path / "large").write_bytes(content(1, BUDGET - MIB // 2))
    volume = Volume(tmp_path, volume_budget=BUDGET)
    with pytest.raises(_errors.VolumeFull):
        await volume.put("config", content(2))
    await volume.put("config", content(2, 1000))


async def test_a_hard_link_counts_once(volume: Volume, tmp_path: Path) -> None:
    """As `du` and kubelet count it."""
    await volume.put("config", content(1, MIB))
    for number in range(6):
        os.link(tmp_path / "config", tmp_path / f"link-{number}")
    await volume.put("another", content(2, MIB))


async def test_a_publish_does_not_list_the_directory(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process does is added up: thousands of files cost nothing while nobody else is there."""
    for number in range(20):
        await volume.put(str(number), "x")
    counted: list[int] = []
    monkeypatch.setattr(dirs, "disk_usage", lambda fd, **_: counted.append(fd) or 0)
    for number in range(20):
        await volume.put("config", str(number))
    assert len(counted) <= 3


async def test_a_trial_is_told_of_the_budget_and_of_what_would_give_way(
    volume: Volume, tmp_path: Path
) -> None:
    """It answers as the publish would, and nothing is forgotten for it."""
    for number in range(7):
        await volume.put("config", content(number))
    await volume.put("config", content(9, MIB), dry_run=True)
    assert len(await volume.versions("config")) == 7
    with pytest.raises(_errors.VolumeFull):
        await volume.put("config", bytes(BUDGET), dry_run=True)
