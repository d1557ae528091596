"""References are expanded before the application is told, all of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest

import sidecar
from reload.conftest import Receiver
from sidecar import reload
from sidecar._errors import ConfigError
from sidecar.reload.change import ActionFailed, Change
from sidecar.reload.expansion import Expansion, expand
from support import Eventually

pytestmark = pytest.mark.filterwarnings("error")
LONG = 3600.0


def never(attempt: int) -> float:
    return LONG


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        (b"host = ${HOST}", b"host = db"),
        (b"${HOST}${HOST}", b"dbdb"),
        (b"[${EMPTY}]", b"[]"),
        (b"a${file:sub/password}b", b"asecret\nb"),
        (b"$$", b"$"),
        (b"$${HOST}", b"${HOST}"),
        (b"$$${HOST}", b"$db"),
        (b"$host $ $1 5$", b"$host $ $1 5$"),
        (b"\xff${HOST}\x00", b"\xffdb\x00"),
        (b"${REFERENCE}", b"${HOST}"),
        (b"", b""),
    ],
)
def test_references_are_replaced_and_nothing_else(text: bytes, expanded: bytes) -> None:
    """`$host` is nginx's own; values are not expanded again, and bytes that are no text stay as they are."""
    variables = {b"HOST": b"db", b"EMPTY": b"", b"REFERENCE": b"${HOST}"}
    # One newline at the end of a file is that of an editor, and not part of a password.
    assert expand({"x": text}, {"sub/password": b"secret\n\n"}, variables) == {"x": expanded}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a\nb ${NONE}", "x, line 2: ${NONE}: the variable is not set"),
        (b"${file:none}", "x, line 1: ${file:none}: there is no such file"),
        (b"${a-b}", "x, line 1: ${a-b}: this is neither a variable nor file:NAME"),
        (b"${1}", "x, line 1: ${1}: this is neither"),
        (b"${}", "x, line 1: ${}: this is neither"),
        (b"${HOST\n}", "x, line 1: ${HOST: its } is missing"),
        (b"${A} ${B} ${C} ${D} ${E} ${F}", "; and 1 more"),
    ],
)
def test_a_reference_without_a_value_is_refused_by_name(text: bytes, said: str) -> None:
    """With file and line: an empty password is worse than an old one."""
    with pytest.raises(sidecar.ContentRefused) as refused:
        expand({"x": text}, {}, {b"HOST": b"db"})
    assert said in str(refused.value)


async def test_a_set_is_expanded_into_a_set_before_the_actions(
    receiver: Receiver, volume: sidecar.Volume, tmp_path: Path, background, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch, count,
) -> None:  # fmt: skip
    """The application sees the output whole, and the version that it is told is that of the source."""
    monkeypatch.setenv("LISTEN", "8080")
    output = tmp_path / "output"
    first = await volume.publish(
        {"app.conf": "port=${LISTEN} key=${file:key} ${SIDECAR_VERSION}\n", "key": "k\n"}
    )
    seen = reload.Command(["sh", "-c", f"cat {output}/app.conf >> {tmp_path}/seen"])
    reloader = reload.Reloader(
        f"{volume.path}/", [seen, reload.Webhook(receiver.url)], expand_to=output,
        storage={"mode": 0o640},
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    second = await volume.publish({"app.conf": "key=${file:key}\n", "key": "l\n"})
    await eventually(lambda: reloader.version == second.version)
    assert (tmp_path / "seen").read_text() == f"port=8080 key=k {first.version}\nkey=l\n"
    assert receiver.versions == [first.version, second.version]
    assert {name: (output / name).read_text() for name in ("app.conf", "key")} == {
        "app.conf": "key=l\n", "key": "l\n",
    }  # fmt: skip
    assert (output / "key").stat().st_mode & 0o777 == 0o640
    assert count("expand", "ok") == 2


async def test_a_file_is_expanded_with_what_lies_beside_it(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Into a file, or under its own name into a directory."""
    shared = sidecar.Volume(tmp_path / "shared")
    await shared.put("app.conf", "key=${file:key}")
    await shared.put("key", "k\n")
    for output, made in (("out.conf", "out.conf"), ("out/", "out/app.conf")):
        await reload.run(
            f"{shared.path}/app.conf", [reload.Webhook(receiver.url)], once=True,
            expand_to=f"{tmp_path}/{output}",
        )  # fmt: skip
        assert (tmp_path / made).read_text() == "key=k"


async def test_an_unknown_reference_leaves_output_and_application_alone(
    receiver: Receiver, volume: sidecar.Volume, tmp_path: Path, background, eventually: Eventually,
    count,
) -> None:  # fmt: skip
    """It is what readiness says, until a version without it comes."""
    output = tmp_path / "output"
    good = await volume.publish({"a": "1"})
    reloader = reload.Reloader(
        f"{volume.path}/", [reload.Webhook(receiver.url)], expand_to=output, backoff=never
    )
    background(reloader.run())
    await eventually(lambda: reloader.version == good.version)
    await volume.publish({"a": "${SIDECAR_TEST_NONE}"})
    await eventually(lambda: count("expand", "failed") == 1)
    assert "a, line 1: ${SIDECAR_TEST_NONE}: the variable is not set" in (reloader.problem or "")
    assert (output / "a").read_text() == "1"
    mended = await volume.publish({"a": "2"})
    await eventually(lambda: reloader.version == mended.version)
    assert receiver.versions == [good.version, mended.version]
    assert reloader.problem is None


async def test_an_unknown_reference_is_rolled_back(
    receiver: Receiver, volume: sidecar.Volume, tmp_path: Path, background, eventually: Eventually
) -> None:
    """Source and output are the confirmed version again; the application was never told of the other."""
    output = tmp_path / "output"
    good = await volume.publish({"a": "1"})
    reloader = reload.Reloader(
        f"{volume.path}/", [reload.Webhook(receiver.url)], expand_to=output, backoff=never,
        rollback_on_failure=True,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: reloader.version == good.version)
    bad = await volume.publish({"a": "${SIDECAR_TEST_NONE}"})
    await eventually(lambda: reloader.refused == bad.version and reloader.version == good.version)
    assert Path(volume.path, "a").read_text() == (output / "a").read_text() == "1"
    assert receiver.versions == [good.version] * 2


async def test_the_application_may_report_the_version_of_the_output(
    receiver: Receiver, tmp_path: Path, background, eventually: Eventually
) -> None:
    """It has never seen the source."""
    source = sidecar.Volume(tmp_path / "source")
    published = await source.put("a", "$$1")
    reloader = reload.Reloader(
        f"{source.path}/a", [reload.Webhook(receiver.url)], expand_to=tmp_path / "a",
        confirm_url=receiver.active_url, confirm_timeout=LONG,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: receiver.versions == [published.version])
    assert reloader.version is None
    receiver.active = sidecar.Snapshot.of({"a": "$1"}, single=True).version
    await eventually(lambda: reloader.version == published.version)


@pytest.mark.parametrize("output", ["/x/y", "/x/y/z", "/x/../x/y"])
def test_an_output_in_the_source_is_refused(output: str) -> None:
    """Each version would make another one, for ever."""
    actions = [reload.Signal("HUP", process="x")]
    with pytest.raises(ConfigError, match="lies in what is followed"):
        reload.Reloader("/x/y/", actions, expand_to=output)


def test_an_output_that_is_the_source_is_refused(tmp_path: Path) -> None:
    """Under any name: the template would be overwritten, and its references lost."""
    source = tmp_path / "d" / "app.conf"
    source.parent.mkdir()
    source.write_text("v=${HOME}")
    (tmp_path / "link").symlink_to("d")
    for path, output in (
        (source, source), (source, f"{source.parent}/"), (source, source.parent),
        (f"{source.parent}/", tmp_path / "link"), (source, f"{tmp_path}/link/"),
    ):  # fmt: skip
        with pytest.raises(sidecar.ConfigError, match="lies in what is followed"):
            Expansion(str(path), str(output))
    Expansion(str(source), str(tmp_path / "d" / "expanded.conf"))


async def test_variables_of_our_own_options_are_not_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may hold credentials, and whoever publishes a template could read them."""
    monkeypatch.setenv("SIDECAR_RELOAD_WEBHOOK", "http://ada:secret@host/")
    volume = sidecar.Volume(tmp_path / "in")
    await volume.publish({"a": "${SIDECAR_RELOAD_WEBHOOK}"})
    snapshot = await volume.snapshot()
    change = Change(volume.path, snapshot.version, ("a",), snapshot=snapshot)
    with pytest.raises(ActionFailed, match="not set") as caught:
        await Expansion(volume.path, str(tmp_path / "out")).run(change)
    assert "secret" not in str(caught.value)
