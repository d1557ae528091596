"""Modes, groups, and other users of the same directory: what is published has what was asked for, and is what we say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import atomic, oserrors
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.volume import Volume
from support import as_user

LARGE = 2 << 20


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Somebody who replaces a file at once after our rename; return what is put there."""
    content, real = b"B" * LARGE, atomic.TempFile.rename_into

    def replace(staged: atomic.TempFile, target: str, dir_fd: int) -> None:
        real(staged, target, dir_fd)
        monkeypatch.undo()
        (tmp_path / "..theirs").write_bytes(content)
        os.rename(tmp_path / "..theirs", tmp_path / target)

    monkeypatch.setattr(atomic.TempFile, "rename_into", replace)
    return content


async def test_what_a_neighbour_puts_in_the_place_of_ours_is_not_taken_for_ours(
    tmp_path: Path, neighbour: bytes
) -> None:
    """An entity tag names the bytes that are served (RFC 9110 section 8.8.3): they are theirs by then."""
    volume, ours, later = Volume(tmp_path), b"A" * LARGE, b"C" * LARGE
    done = await volume.put("config", ours)
    assert done.version == version_of(ours)
    assert (await volume.read("config")).version == version_of(neighbour)
    with pytest.raises(_errors.VersionConflict):
        await volume.put("config", later, if_match=done.etag)
    await volume.put("config", later)
    kept = [one.version for one in await volume.versions("config")]
    assert kept[:2] == [version_of(later), version_of(neighbour)]


@pytest.mark.parametrize("name", ["config", "nested/config"])
async def test_the_same_content_takes_another_mode(tmp_path: Path, name: str) -> None:
    """A secret that was published for all to read must not stay so; what is kept of it neither."""
    await Volume(tmp_path).put(name, "secret")
    before = (tmp_path / name).stat().st_ino
    strict = Volume(tmp_path, mode=0o600)
    assert (await strict.put(name, "secret")).changed
    assert mode_of(tmp_path / name) == 0o600
    assert (
        tmp_path / name
    ).stat().st_ino != before  # it was never readable for all under that name
    assert not (await strict.put(name, "secret")).changed
    kept = [path for path in (tmp_path / "..versions").rglob("*") if path.is_file()]
    assert [mode_of(path) for path in kept] == [0o600]


async def test_a_stricter_mode_holds_for_older_contents_too(tmp_path: Path) -> None:
    """And for what is rolled back to."""
    volume = Volume(tmp_path)
    first = await volume.put("config", "1")
    await volume.put("config", "2")
    strict = Volume(tmp_path, mode=0o640)
    await strict.rollback(first.version, name="config")
    kept = list((tmp_path / "..versions" / "file-config").iterdir())
    assert [mode_of(path) for path in (tmp_path / "config", *kept)] == [0o640] * 4


@pytest.mark.root
async def test_the_same_content_takes_another_group(tmp_path: Path) -> None:
    """As with `fsGroup`: who may read it is part of what is asked for."""
    await Volume(tmp_path).put("config", "1")
    assert (await Volume(tmp_path, group=12).put("config", "1")).changed
    assert (tmp_path / "config").stat().st_gid == 12
    assert not (await Volume(tmp_path, group=12).put("config", "1")).changed


async def test_where_modes_cannot_be_changed_nothing_is_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On vfat and CIFS the mount fixes modes: the same content stays a no-op there."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    volume = Volume(tmp_path, mode=0o200)
    assert (await volume.put("config", "1")).changed
    assert mode_of(tmp_path / "config") == 0o600
    assert not (await volume.put("config", "1")).changed


@pytest.mark.parametrize("silent", [False, True])
async def test_a_mode_that_the_mount_does_not_give_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """Not as a permission of the directory, which would change nothing; some mounts do nothing, and say nothing."""

    def refuse(*_: object) -> None:
        if not silent:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(_errors.VolumeUnavailable, match=r"mode 0644 cannot be set.*--mode 0600"):
        await Volume(tmp_path).put("config", "1")


@pytest.mark.root
async def test_two_users_of_one_group_publish_side_by_side(open_path: Path) -> None:
    """In a volume of a group (fsGroup, mode 2775) each replaces, nests and keeps what the other has published."""
    os.chown(open_path, 0, 2000)
    open_path.chmod(0o2775)
    for round_, user in enumerate((65531, 65532, 65531)):
        with as_user(user, 2000):
            volume = Volume(open_path, keep=5)
            for name in ("config", "a/b/nested"):
                await volume.put(name, f"{name} {round_}")
    for name in ("config", "a/b/nested"):
        found = await Volume(open_path).versions(name)
        assert [one.version for one in found] == [
            version_of(f"{name} {round_}".encode()) for round_ in (2, 1, 0)
        ]
    assert mode_of(open_path / "a" / "b") == 0o2775


@pytest.mark.root
async def test_two_users_of_one_group_publish_sets_in_turn(open_path: Path) -> None:
    """The one before goes into the history, whoever has made it."""
    os.chown(open_path, 0, 2000)
    open_path.chmod(0o2775)
    for user, content in ((65531, "1"), (65532, "2"), (65531, "3")):
        with as_user(user, 2000):
            await Volume(open_path, grace=0.0).publish({"a": content, "sub/b": content})
    assert len(await Volume(open_path).versions()) == 3
    assert len([name for name in os.listdir(open_path) if name.startswith("..gen-")]) == 1


@pytest.mark.root
@pytest.mark.parametrize("in_pod", [True, False])
async def test_a_nested_directory_of_another_user_is_named_with_its_remedy(
    open_path: Path, in_pod: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fsGroup` may be set already: what stands in the way is that one directory."""
    monkeypatch.setattr(oserrors, "_POD_SECRETS", str(open_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (open_path / "theirs").mkdir(mode=0o755)
    for name in ("theirs/config", "theirs/deeper/config"):
        for dry_run in (True, False):
            with as_user(65532), pytest.raises(_errors.VolumeUnavailable) as caught:
                await Volume(open_path).put(name, "1", dry_run=dry_run)
            assert "belongs to user 0 and group 0, mode 0755" in str(caught.value)
            assert "chmod g+w" in str(caught.value)
            assert ("fsGroup" in str(caught.value)) == in_pod


@pytest.mark.root
@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_name_that_the_sticky_bit_protects_is_refused_with_its_owner(
    open_path: Path, dry_run: bool
) -> None:
    """unlink(2), EPERM: only the owner of the file, or of the directory, may replace it; `fsGroup` helps nobody."""
    open_path.chmod(0o1777)
    (open_path / "config").write_text("theirs")
    with as_user(65532):
        volume = Volume(open_path)
        for work in (
            volume.put("config", "x", dry_run=dry_run),
            volume.delete("config", dry_run=dry_run),
        ):
            with pytest.raises(_errors.VolumeUnavailable, match=r"user 0.* sticky bit") as caught:
                await work
            assert "fsGroup" not in str(caught.value)
        await volume.put("other", "mine")
    assert (open_path / "config").read_text() == "theirs"


@pytest.mark.root
async def test_what_another_user_has_put_there_is_kept_where_it_may_not_be_linked(
    open_path: Path,
) -> None:
    """`fs.protected_hardlinks` permits links to files of one's own alone (proc_sys_fs(5)): then it is copied."""
    (open_path / "config").write_text("theirs")
    with as_user(65532):
        await Volume(open_path).put("config", "ours")
        found = await Volume(open_path).versions("config")
    assert [one.version for one in found] == [version_of(b"ours"), version_of(b"theirs")]


@pytest.mark.root
async def test_a_user_who_may_not_keep_versions_is_told_so(
    open_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: what is published is in force all the same, but there will be nothing to roll back to."""
    await Volume(open_path).put("theirs", "1")
    (open_path / "..versions").chmod(0o755)
    with as_user(65532):
        for content in ("1", "2", "3"):
            await Volume(open_path).put("untold", content)
    told = [r.getMessage() for r in caplog.records if "cannot keep versions of untold" in r.message]
    assert len(told) == 1
    assert "belongs to user 0" in told[0]
