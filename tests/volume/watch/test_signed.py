"""A watch with keys: only signed content is shown, and the last one that was stays."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from sidecar import ConfigError, Metadata, Volume
from sidecar.process import metrics
from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.validation.signature_filter import SignatureFilter
from sidecar.volume.validation.signatures import Verifier
from sidecar.volume.watch.watch import Watch
from support.signing import Signer, digest_line, key_file
from support.watching import BOUND, RECHECK, Scans, consumer, replace


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def keys(tmp_path: Path, signer: Signer) -> Path:
    return key_file(tmp_path / "keys.pem", signer)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


def refused() -> float:
    return metrics.REGISTRY.get_sample_value("sidecar_content_unsigned_total") or 0.0


async def problem(watch: Watch[None], words: str) -> None:
    await until(lambda: words in (watch.problem or ""), timeout=BOUND)


def write_signed(volume: Path, files: dict[str, str | bytes]) -> None:
    """Write loose files as a program does that knows nothing: list and signature first."""
    for name in sorted(files, key=lambda one: (not one.startswith("SHA256SUMS"), one)):
        data = files[name]
        (volume / name).parent.mkdir(exist_ok=True)
        replace(volume / name, data.decode() if isinstance(data, bytes) else data)


async def test_a_set_is_shown_only_if_it_is_signed_as_a_whole(
    volume: Path, keys: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """Unsigned, an extra file, a changed one, one that is missing, another key: each keeps the last good one."""
    caplog.set_level(logging.INFO, "sidecar")
    publisher = Volume(volume)
    good = signer.signed({"a": "1", "sub/b": "1"})
    await publisher.publish(good)
    async with consumer(volume, verify_key=keys) as seen:
        await seen.converge({n: str(c) for n, c in sorted(good.items())})
        bad: list[tuple[dict[str, str | bytes], str]] = [
            ({"a": "2", "sub/b": "2"}, "it has no SHA256SUMS"),
            ({**good, "c": "planted"}, "c is not in SHA256SUMS"),
            ({**good, "a": "2"}, "a is not what SHA256SUMS says"),
            ({n: c for n, c in good.items() if n != "sub/b"}, "sub/b is missing"),
            (Signer().signed({"a": "2", "sub/b": "2"}), "no trusted key has signed SHA256SUMS"),
        ]
        for number, (files, why) in enumerate(bad, start=1):
            before = refused()
            await publisher.publish(files)
            await problem(seen.watch, why)
            assert seen.watch.stale
            assert len(seen) == 1, number
            assert refused() == before + 1
        assert f"cannot use {volume}: no trusted key" in caplog.text
        await publisher.publish(again := signer.signed({"a": "2"}))
        await seen.converge({n: str(c) for n, c in sorted(again.items())})
        assert seen.watch.stale is None


async def test_a_restart_shows_nothing_that_is_not_signed(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """There is no last good one then, and the reason is told in its place."""
    await Volume(volume).publish({"a": "planted"})
    async with Watch(volume, verify_key=keys, recheck=RECHECK) as watch:
        await watch.looked()
        assert watch.snapshot is None
        assert "not signed" in (watch.problem or "")
        await Volume(volume).publish(signer.signed({"a": "1"}))
        await until(lambda: watch.snapshot is not None, timeout=BOUND)
        assert watch.problem is None


async def test_a_configmap_is_verified_as_kubelet_mounts_it(
    tmp_path: Path, keys: Path, signer: Signer
) -> None:
    """And so is one file of it, by the list beside it."""
    mounted = ConfigMapVolume(tmp_path / "configmap")
    mounted.update({n: str(c) for n, c in signer.signed({"app.yaml": "a: 1", "b": "2"}).items()})
    one = mounted.path / "app.yaml"
    async with (
        consumer(one, verify_key=[keys]) as seen,
        consumer(mounted.path, verify_key=keys) as whole,
    ):
        await seen.converge("a: 1")
        await until(lambda: len(whole) == 1, timeout=BOUND)
        mounted.update({n: str(c) for n, c in signer.signed({"app.yaml": "a: 2"}).items()})
        await seen.converge("a: 2")
        mounted.update({"app.yaml": "a: 3"})
        await problem(seen.watch, "not signed")
        await problem(whole.watch, "not signed")
        assert seen.texts == ["a: 1", "a: 2"]
        assert len(whole) == 2


async def test_a_list_that_comes_after_its_file_is_found(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """A program without our library replaces the file, the list and its signature one after the other."""
    path = volume / "config"
    write_signed(volume, signer.signed({"config": "1"}))
    async with consumer(path, verify_key=keys) as seen:
        await seen.converge("1")
        replace(path, "2")
        await problem(seen.watch, "config is not what SHA256SUMS says")
        replace(volume / "SHA256SUMS", text := digest_line("config", "2"))
        await problem(seen.watch, "no trusted key has signed SHA256SUMS")
        replace(volume / "SHA256SUMS.sig", signer.sign(text))
        await seen.converge("2")
        assert seen.watch.stale is None


async def test_the_signature_of_one_file_does_not_hold_for_another(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """What was signed as `other` is not shown as `config`, with the same list beside it."""
    write_signed(volume, signer.signed({"other": "admin: true", "config": "admin: false"}))
    async with consumer(volume / "config", verify_key=keys) as seen:
        await seen.converge("admin: false")
        shutil.copyfile(volume / "other", volume / "config")
        await problem(seen.watch, "config is not what SHA256SUMS says")
        assert seen.texts == ["admin: false"]


async def test_loose_files_with_a_list_are_a_set(volume: Path, keys: Path, signer: Signer) -> None:
    """A planted file beside them holds up all of them, and not only itself."""
    write_signed(volume, signer.signed({"a": "1", "sub/b": "1"}))
    async with consumer(volume, verify_key=keys) as seen:
        await until(lambda: len(seen) == 1, timeout=BOUND)
        replace(volume / "planted", "x")
        await problem(seen.watch, "planted is not in SHA256SUMS")
        (volume / "planted").unlink()
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
        assert len(seen) == 1


async def test_keys_are_rotated_while_it_watches(volume: Path, keys: Path, signer: Signer) -> None:
    """A new key is trusted within a re-check. The content of a retired one stays, and is told as stale."""
    new = Signer()
    publisher = Volume(volume)
    await publisher.publish(signer.signed({"a": "1"}))
    async with consumer(volume, verify_key=keys) as seen:
        await until(lambda: len(seen) == 1, timeout=BOUND)
        await publisher.publish(new.signed({"a": "2"}))
        await problem(seen.watch, "no trusted key")
        key_file(keys, signer, new)
        await until(lambda: len(seen) == 2 and not seen.watch.stale, timeout=BOUND)
        key_file(keys, signer)
        await problem(seen.watch, "no trusted key")
        assert seen[-1].text("a") == "2"
        key_file(keys, new)
        await until(lambda: seen.watch.stale is None, timeout=BOUND)
        keys.unlink()
        await problem(seen.watch, str(keys))
        assert len(seen) == 2


@pytest.mark.parametrize("where", ["memory", "disk"])
async def test_a_large_file_is_served_from_a_copy_that_nobody_can_change(
    volume: Path, keys: Path, signer: Signer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewriting the file in place, its times restored, changes nothing of what was verified."""
    if where == "disk":
        monkeypatch.setenv("TMPDIR", str(keys.parent))
    data = b"good" * (1 << 19)
    await Volume(volume).publish(signer.signed({"large": data}))
    async with aclosing(aiter(Watch(volume, verify_key=keys, recheck=RECHECK))) as versions:
        snapshot = await anext(versions)
        content, path = snapshot.content("large"), (volume / "large").resolve()
        assert content.is_large
        status = path.stat()
        with path.open("r+b") as file:
            file.write(b"evil" * (1 << 19))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert snapshot["large"] == data
        if where == "memory":
            with pytest.raises(PermissionError):
                os.pwrite(content.held.fd, b"evil", 0)  # type: ignore[union-attr]


async def test_what_is_refused_is_not_read_again_while_it_stays(
    volume: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who plants a large file must not keep the reader busy with it."""
    scans, digests = Scans(monkeypatch), []
    from sidecar.fs import open_file

    copy = open_file.copy
    monkeypatch.setattr(open_file, "copy", lambda *given: digests.append(given) or copy(*given))
    await Volume(volume).publish({"large": b"x" * (2 << 20)})
    async with Watch(volume, verify_key=keys, recheck=0.02) as watch:
        await problem(watch, "not signed")
        await scans.more()
        await scans.more()
        assert len(digests) == 1


async def test_without_keys_a_watch_has_none_to_start_with(volume: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Watch(volume, verify_key=tmp_path / "missing.pem")


# One file with its own signature


async def test_a_file_is_shown_with_its_signature(volume: Path, keys: Path, signer: Signer) -> None:
    """Published by `put`; what another program writes in its place is not shown."""
    publisher = Volume(volume)

    def signed(text: str) -> Metadata:
        return Metadata(signature=signer.sign_file("config", text))

    await publisher.put("config", "1", metadata=signed("1"))
    async with consumer(volume / "config", verify_key=keys) as seen:
        await seen.converge("1")
        replace(volume / "config", "planted")
        await problem(seen.watch, "it is not signed")
        await publisher.put("config", "2", metadata=signed("1"))
        await problem(seen.watch, "no trusted key")
        await publisher.put("config", "2", metadata=signed("2"))
        await seen.converge("2")
        assert seen.texts == ["1", "2"]
        assert seen.watch.stale is None


async def test_a_signed_file_under_another_name_is_refused(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """By rename or as a hard link, with its attribute."""
    publisher = Volume(volume)
    for name in ("admin.yaml", "user.yaml"):
        signature = signer.sign_file(name, name)
        await publisher.put(name, name, metadata=Metadata(signature=signature))
    async with consumer(volume, verify_key=keys) as seen:
        await until(lambda: len(seen) == 1 and len(seen[-1]) == 2, timeout=BOUND)
        os.link(volume / "admin.yaml", volume / "x")
        (volume / "x").rename(volume / "user.yaml")
        await problem(seen.watch, "user.yaml: no trusted key has signed this content")
        assert seen.watch.snapshot is not None
        assert seen.watch.snapshot.text("user.yaml") == "user.yaml"


async def test_loose_files_are_verified_one_by_one(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """One that is planted does not keep the others from changing, and is not shown."""
    publisher = Volume(volume)

    def signed(name: str, text: str) -> Metadata:
        return Metadata(signature=signer.sign_file(name, text))

    await publisher.put("a", "1", metadata=signed("a", "1"))
    replace(volume / "planted", "x")
    async with consumer(volume, verify_key=keys) as seen:
        await seen.converge({"a": "1"})
        await problem(seen.watch, "planted: it is not signed")
        await publisher.put("a", "2", metadata=signed("a", "2"))
        await publisher.put("b", "1", metadata=signed("b", "1"))
        await seen.converge({"a": "2", "b": "1"})
        (volume / "planted").unlink()
        await until(lambda: seen.watch.stale is None, timeout=BOUND)


async def test_a_planted_file_alone_takes_nothing_away(
    volume: Path, keys: Path, signer: Signer
) -> None:
    """As if nothing were there, when the signed files are deleted: the last content stays."""
    publisher = Volume(volume)
    await publisher.put("a", "1", metadata=Metadata(signature=signer.sign_file("a", "1")))
    signed = SignatureFilter(str(volume), Verifier([str(keys)]))
    good = await publisher.snapshot()
    assert signed.verify(good).snapshot == good
    (volume / "a").unlink()
    (volume / "planted").write_text("x")
    found = signed.verify(await publisher.snapshot())
    assert found.snapshot == good
    assert "planted: it is not signed" in (found.problem or "")


async def test_a_signature_is_found_where_the_volume_has_no_attributes(
    volume: Path, keys: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a hidden file then, which anybody may write, and which proves what it proves."""
    monkeypatch.setattr(os, "setxattr", denied)
    publisher = Volume(volume)
    metadata = Metadata(signature=signer.sign_file("config", "1"))
    await publisher.put("config", "1", metadata=metadata)
    assert (volume / "..metadata" / "config.json").exists()
    async with consumer(volume / "config", verify_key=keys) as seen:
        await seen.converge("1")
        replace(volume / "config", "planted")
        await problem(seen.watch, "it is not signed")


def denied(*_: object) -> None:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
