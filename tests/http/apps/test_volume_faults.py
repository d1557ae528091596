"""Volumes that are full, read-only or closed: the documented status, and the old content stays."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.http.apps import write_health
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from support.httpkit import MakeClient, problem

MakeTmpfs = Callable[..., Path]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[MakeTmpfs]:
    """`tmpfs("size=200k")`: a volume of its own in memory."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "volume"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "sidecar-test", path],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


@pytest.mark.root
async def test_a_full_disk_is_507(client: MakeClient, tmpfs: MakeTmpfs) -> None:
    """Streamed or not; the old content is served on, nothing is left over, and no probe cuts anybody off for it."""
    config = tmpfs("size=200k") / "config"
    writer, reader = await client(writer_app(config)), await client(reader_app(config))
    assert (await writer.get("/?content=old")).status == 200
    filler = config.parent / "filler"
    filler.write_bytes(bytes(120 << 10))

    await problem(await writer.put("/files/config", data=bytes(100 << 10)), 507, "volume-full")
    await problem(await writer.put("/files/new", data=bytes(100 << 10)), 507, "volume-full")
    fill(filler)
    found = await problem(await writer.get(f"/?content={'x' * 7000}"), 507, "volume-full")
    assert "space" in found["detail"]
    for path in ("/startupz", "/livez", "/readyz"):
        assert (await writer.get(path)).status == 200
    (told,) = (await (await writer.get("/readyz")).json())["details"].values()
    assert "space" in told["problem"]
    assert await (await reader.get("/")).json() == "old"
    assert [name for name in os.listdir(config.parent) if name.startswith("..tmp")] == []

    filler.unlink()
    assert (await writer.put("/files/config", data=bytes(50 << 10))).status == 204
    (told,) = (await (await writer.get("/readyz")).json())["details"].values()
    assert told == {"problem": None}


@pytest.mark.root
async def test_one_content_that_is_too_large_for_the_volume_turns_nobody_else_away(
    client: MakeClient, tmpfs: MakeTmpfs
) -> None:
    """507 for its sender; the writer stays ready, and takes what fits."""
    config = tmpfs("size=1m") / "config"
    writer = await client(writer_app(config))
    await writer.get("/?content=old")
    for name in ("config", "giant"):
        await problem(
            await writer.put(f"/files/{name}", data=io.BytesIO(bytes(2 << 20))), 507, "volume-full"
        )
        assert (await writer.get("/readyz")).status == 200
    assert (await writer.put("/files/config", data=b"new")).status == 204


@pytest.mark.root
async def test_a_file_can_be_deleted_on_a_full_volume(client: MakeClient, tmpfs: MakeTmpfs) -> None:
    """What heals it comes in by the same port, so it must not be turned away."""
    config = tmpfs("size=200k") / "config"
    writer = await client(writer_app(config, keep=0))
    assert (await writer.put("/files/large", data=bytes(100 << 10))).status == 201
    fill(config.parent / "filler")
    await problem(await writer.put("/files/new", data=bytes(50 << 10)), 507, "volume-full")
    assert (await writer.delete("/files/large")).status == 204
    assert (await writer.put("/files/new", data=bytes(50 << 10))).status == 201


@pytest.mark.root
async def test_a_disk_without_inodes_is_507(client: MakeClient, tmpfs: MakeTmpfs) -> None:
    """Room for bytes, none for another file, and no older versions that could give way."""
    config = tmpfs("size=1m,nr_inodes=8") / "config"
    writer = await client(writer_app(config, keep=0))
    await writer.get("/?content=old")
    for number in range(20):
        try:
            (config.parent / f"filler{number}").touch()
        except OSError:
            break
    await problem(await writer.get("/?content=new"), 507, "volume-full")
    assert config.read_text() == "old"


@pytest.mark.root
async def test_a_read_only_volume_is_503(client: MakeClient, tmpfs: MakeTmpfs) -> None:
    """It says what to look at; the content is still served, and all stay ready; it heals when the volume does."""
    config = tmpfs("size=1m") / "config"
    writer, reader = await client(writer_app(config)), await client(reader_app(config))
    await writer.get("/?content=old")
    remount(config.parent, "ro")
    for answer in (
        await writer.get("/?content=new"),
        await writer.put("/files/config", data=b"new"),
        await writer.delete("/files/config"),
        await writer.get("/?content=new&dry_run=1"),
    ):
        found = await problem(answer, 503, "volume-unavailable")
        assert "readOnly" in found["detail"]
        assert answer.headers["Retry-After"] == "1"
    assert (await writer.get("/readyz")).status == 200
    assert await (await reader.get("/")).json() == "old"
    remount(config.parent, "rw")
    assert (await writer.get("/?content=new")).status == 200


@pytest.mark.root
async def test_a_volume_that_cannot_be_written_at_the_start_heals_later(
    client: MakeClient, tmpfs: MakeTmpfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started, ready and answering; the empty file comes once it can."""
    monkeypatch.setattr(write_health, "PREPARE_INTERVAL", 0.05)
    config = tmpfs("size=1m") / "config"
    remount(config.parent, "ro")
    writer = await client(writer_app(config))
    assert (await writer.get("/startupz")).status == 200
    await problem(await writer.get("/?content=new"), 503, "volume-unavailable")
    remount(config.parent, "rw")
    async with asyncio.timeout(10):
        while not config.exists():
            await asyncio.sleep(0.01)
    assert ((await writer.get("/readyz")).status, config.read_text()) == (200, "")


@pytest.mark.root
async def test_a_file_that_is_a_mount_of_its_own_is_refused_at_the_start(
    client: MakeClient, tmp_path: Path
) -> None:
    """`subPath`: it can neither be replaced nor see updates, and no time will mend that."""
    from sidecar import VolumeUnavailable

    source, target = tmp_path / "source", tmp_path / "volume" / "config"
    source.write_text("old")
    target.parent.mkdir()
    target.touch()
    done = subprocess.run(["mount", "--bind", source, target], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(VolumeUnavailable, match="subPath"):
            await client(writer_app(target))
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can reach, as those of pytest are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def without_permission(directory: Path) -> Iterator[None]:
    """Be somebody who may not write there; root becomes somebody else for that."""
    root = os.geteuid() == 0
    directory.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)


async def test_a_directory_without_permission_is_503(client: MakeClient, directory: Path) -> None:
    """With what to change, and the old content stays."""
    config = directory / "config"
    writer = await client(writer_app(config))
    await writer.get("/?content=old")
    with without_permission(directory):
        found = await problem(await writer.get("/?content=new"), 503, "volume-unavailable")
        await problem(await writer.put("/files/new", data=b"1"), 503, "volume-unavailable")
        await problem(await writer.delete("/files/config"), 503, "volume-unavailable")
    assert "permission" in found["detail"]
    assert config.read_text() == "old"
