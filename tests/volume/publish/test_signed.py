"""A publisher with keys: only what one of them has signed becomes visible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar import ContentRefused, Metadata, ReadError, UnknownVersion, Volume
from sidecar.process import metrics
from sidecar.volume.validation.gate import Gate
from support.signing import Signer, digest_line, key_file


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def keys(tmp_path: Path, signer: Signer) -> Path:
    return key_file(tmp_path / "keys.pem", signer)


@pytest.fixture
def volume(tmp_path: Path, keys: Path) -> Volume:
    return Volume(tmp_path / "volume", verify_key=keys)


def names(volume: Volume) -> list[str]:
    return sorted(name for name in os.listdir(volume.path) if not name.startswith(".."))


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_set_is_published_only_if_it_is_signed_as_a_whole(
    volume: Volume, signer: Signer, dry_run: bool
) -> None:
    """A dry run says so, too. The old set stays, and nothing is left over."""
    good = signer.signed({"a": "1", "b": b"x" * (2 << 20)})
    await volume.publish(good)
    before = os.listdir(volume.path)
    for files, why in (
        ({"a": "2"}, "it has no SHA256SUMS"),
        ({**good, "c": "extra"}, "c is not in SHA256SUMS"),
        ({**good, "a": "2"}, "a is not what SHA256SUMS says"),
        (
            {"SHA256SUMS": good["SHA256SUMS"], "SHA256SUMS.sig": good["SHA256SUMS.sig"]},
            "is missing",
        ),
        (Signer().signed({"a": "2"}), "no trusted key has signed SHA256SUMS"),
    ):
        with pytest.raises(ContentRefused, match=why) as error:
            await volume.publish(files, dry_run=dry_run)
        assert len(error.value.reasons) == 1
    assert sorted(os.listdir(volume.path)) == sorted(before)
    assert await volume.publish(signer.signed({"a": "2"}), dry_run=dry_run)


async def test_the_signature_is_verified_before_a_parser_sees_the_content(
    tmp_path: Path, keys: Path, signer: Signer
) -> None:
    """Whoever has no key cannot keep the validation busy either."""
    seen: list[str] = []
    gate = Gate(check=lambda content: seen.append(content.name))
    volume = Volume(tmp_path / "volume", verify_key=keys, gate=gate)
    with pytest.raises(ContentRefused, match="no SHA256SUMS"):
        await volume.publish({"a": "1"})
    with pytest.raises(ContentRefused, match="not signed"):
        await volume.put("a", "1")
    assert seen == []
    await volume.publish(signer.signed({"a": "1"}))
    assert "a" in seen


async def test_one_change_of_a_set_must_leave_it_signed(volume: Volume, signer: Signer) -> None:
    """`put`, `update` and `delete` make a new set, which must be signed like each."""
    files = signer.signed({"a": "1", "b": "1"})
    await volume.publish(files)
    large = Path(volume.path).parent / "large"
    large.write_bytes(b"x" * (2 << 20))
    with pytest.raises(ContentRefused, match="a is not what"):
        await volume.put("a", "2")
    with pytest.raises(ContentRefused, match="a is not what"):
        await volume.put("a", large)
    async with volume.stage("a") as upload:
        await upload.write(b"2")
        with pytest.raises(ContentRefused, match="a is not what"):
            await volume.put("a", upload)
    with pytest.raises(ContentRefused, match="b is missing"):
        await volume.delete("b")
    with pytest.raises(ContentRefused, match="a is not what"):
        await volume.update({"a": "2"})
    again = signer.signed({"a": "2", "b": "1"})
    await volume.update({name: again[name] for name in ("a", "SHA256SUMS", "SHA256SUMS.sig")})
    assert (await volume.snapshot()).text("a") == "2"
    # Another signature of the same list: how a key is replaced.
    text = f"{Signer().sign(again['SHA256SUMS'])}\n{signer.sign(again['SHA256SUMS'])}"
    assert (await volume.put("SHA256SUMS.sig", text)).changed


async def test_a_rollback_publishes_only_what_a_present_key_has_signed(
    volume: Volume, keys: Path, signer: Signer
) -> None:
    """A version of a retired key, or one that was planted in the history, stays there."""
    new = Signer()
    first = await volume.publish(signer.signed({"a": "1"}))
    planted = await Volume(volume.path).publish({"a": "planted"})
    key_file(keys, signer, new)
    second = await volume.publish(new.signed({"a": "2"}))
    assert (await volume.rollback(first.version)).version == first.version
    await volume.rollback(second.version)
    key_file(keys, new)
    for version, why in ((first, "no trusted key"), (planted, "it has no SHA256SUMS")):
        for dry_run in (True, False):
            with pytest.raises(ContentRefused, match=why):
                await volume.rollback(version.version, dry_run=dry_run)
        with pytest.raises(UnknownVersion, match=why):
            await volume.read_version(version.version)
    assert (await volume.snapshot()).text("a") == "2"


async def test_nothing_is_read_that_is_not_signed(volume: Volume, signer: Signer) -> None:
    """The writer's own `GET /files/NAME` serves what readers would."""
    await volume.publish(signer.signed({"a": "1", "large": b"x" * (2 << 20)}))
    assert (await volume.read("a")).data == b"1"
    assert (await volume.read("large")).data == b"x" * (2 << 20)
    await Volume(volume.path).put("a", "planted")
    with pytest.raises(ReadError, match="a is not what SHA256SUMS says"):
        await volume.read("a")
    with pytest.raises(ReadError, match="a is not what SHA256SUMS says"):
        await volume.snapshot()
    assert (await volume.unverified_snapshot()).text("a") == "planted"
    assert (await volume.read("large")).size == 2 << 20


async def test_an_old_version_is_read_as_it_was_verified(volume: Volume, signer: Signer) -> None:
    """What is written into it afterwards, its times restored, is not in it."""
    data = b"good" * (1 << 19)
    first = await volume.publish(signer.signed({"large": data}))
    await volume.publish(signer.signed({"a": "2"}))
    files, is_set = await volume.read_version(first.version)
    assert is_set
    (kept,) = Path(volume.path).glob("..gen-*/large")
    status = kept.stat()
    with kept.open("r+b") as file:
        file.write(b"evil" * (1 << 19))
    os.utime(kept, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files["large"].data == data


@pytest.mark.parametrize("exists", [False, True])
async def test_a_dry_run_of_an_update_says_what_is_not_signed(volume: Volume, exists: bool) -> None:
    """Also where the directory is missing, which it does not create."""
    if exists:
        await volume.prepare()
    with pytest.raises(ContentRefused, match="it has no SHA256SUMS"):
        await volume.update({"a": "1"}, dry_run=True)
    assert os.path.exists(volume.path) == exists


async def test_a_writer_publishes_no_empty_file_at_its_start(volume: Volume) -> None:
    """Nobody has signed it."""
    await volume.prepare(initial={"config": b""})
    assert names(volume) == []


async def test_refusals_are_counted(volume: Volume) -> None:
    def count(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, labels) or 0.0

    before = (
        count("sidecar_content_unsigned_total"),
        count("sidecar_publish_total", result="refused"),
    )
    with pytest.raises(ContentRefused):
        await volume.publish({"a": "1"})
    assert before[0] + 1 == count("sidecar_content_unsigned_total")
    assert before[1] + 1 == count("sidecar_publish_total", result="refused")


async def test_without_keys_no_signature_is_asked_for(tmp_path: Path) -> None:
    """And a wrong list is content like any other."""
    volume = Volume(tmp_path / "volume")
    await volume.publish({"a": "1", "SHA256SUMS": digest_line("a", "2")})
    assert (await volume.snapshot()).text("a") == "1"


# One file


async def test_a_file_is_published_with_its_signature(volume: Volume, signer: Signer) -> None:
    """Without one, with that of another content or another name, or by another key it is not."""
    good = Metadata(signature=signer.sign_file("config", "1"))
    for metadata, why in (
        (None, "it is not signed"),
        (Metadata(signature="x"), "not base64 of 64 bytes"),
        (Metadata(signature=signer.sign_file("config", "2")), "no trusted key"),
        (Metadata(signature=signer.sign_file("other", "1")), "no trusted key"),
        (Metadata(signature=Signer().sign_file("config", "1")), "no trusted key"),
    ):
        for dry_run in (True, False):
            with pytest.raises(ContentRefused, match=why):
                await volume.put("config", "1", metadata=metadata, dry_run=dry_run)
    assert names(volume) == []
    assert (await volume.put("config", "1", metadata=good)).created
    async with volume.stage("config") as upload:
        await upload.write(b"2")
        signed = Metadata(signature=signer.sign_file("config", "2"))
        assert (await volume.put("config", upload, metadata=signed)).changed
    assert (await volume.read("config")).data == b"2"
    assert not (await volume.put("config", "2", metadata=signed)).changed


async def test_the_signature_of_a_file_stays_with_it_in_the_history(
    volume: Volume, keys: Path, signer: Signer
) -> None:
    """A rollback publishes both again; one of a retired key is refused, and so is what was planted."""
    new = Signer()

    def signed(by: Signer, text: str) -> Metadata:
        return Metadata(signature=by.sign_file("config", text))

    first = await volume.put("config", "1", metadata=signed(signer, "1"))
    planted = await Volume(volume.path).put("config", "planted")
    key_file(keys, signer, new)
    second = await volume.put("config", "2", metadata=signed(new, "2"))
    await volume.rollback(first.version, name="config")
    assert (await volume.read("config")).data == b"1"
    await volume.rollback(second.version, name="config")
    key_file(keys, new)
    for version, why in ((first, "no trusted key"), (planted, "it is not signed")):
        with pytest.raises(ContentRefused, match=why):
            await volume.rollback(version.version, name="config")
        with pytest.raises(UnknownVersion, match=why):
            await volume.read_version(version.version, name="config")
    assert (await volume.read("config")).data == b"2"


async def test_the_same_file_is_published_again_with_the_signature_of_a_new_key(
    volume: Volume, keys: Path, signer: Signer
) -> None:
    """So that the old key can be retired without a change of the content."""
    new = Signer()
    key_file(keys, signer, new)
    await volume.put("config", "1", metadata=Metadata(signature=signer.sign_file("config", "1")))
    await volume.put("config", "1", metadata=Metadata(signature=new.sign_file("config", "1")))
    key_file(keys, new)
    assert (await volume.read("config")).data == b"1"


async def test_a_file_that_moved_into_a_set_needs_the_signature_of_the_set(
    volume: Volume, signer: Signer
) -> None:
    """Its own is that of a single file."""
    await volume.publish(signer.signed({"a": "1"}))
    with pytest.raises(ContentRefused, match="b is not in SHA256SUMS"):
        await volume.put("b", "1", metadata=Metadata(signature=signer.sign_file("b", "1")))
