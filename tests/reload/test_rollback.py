"""A version that the application does not take is replaced by the last one that it has taken."""

from __future__ import annotations

import errno
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import sidecar
from reload.conftest import Receiver
from sidecar import _errors, reload
from sidecar.reload.rollback import Rollback
from sidecar.volume.content.snapshot import Content, Snapshot
from support import Eventually

pytestmark = pytest.mark.filterwarnings("error")
LONG = 3600.0


def never(attempt: int) -> float:
    return LONG


def at_once(attempt: int) -> float:
    return 0.0


class Target:
    """A file or a set on a volume, and how its writer publishes it."""

    def __init__(self, directory: Path, *, single: bool) -> None:
        self.volume = sidecar.Volume(directory)
        self.single = single
        self.path = f"{directory}/config" if single else f"{directory}/"
        self.state = directory / ("..reload-config.json" if single else "..reload.json")

    async def publish(self, text: str) -> str:
        if self.single:
            return (await self.volume.put("config", text)).version
        return (await self.volume.publish({"config": text, "other": "same"})).version

    def text(self) -> str:
        return Path(self.volume.path, "config").read_text()

    def reloader(self, receiver: Receiver, **options: Any) -> reload.Reloader:
        options.setdefault("backoff", never)
        options.setdefault("rollback_on_failure", True)
        return reload.Reloader(self.path, [reload.Webhook(receiver.url)], **options)


@pytest.fixture(params=["file", "set"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """Both kinds of contents."""
    return Target(tmp_path / "shared", single=request.param == "file")


@pytest.fixture
def one(tmp_path: Path) -> Target:
    """A set alone, where the kind makes no difference."""
    return Target(tmp_path / "shared", single=False)


async def test_a_refused_version_is_replaced_by_the_confirmed_one(
    receiver: Receiver, target: Target, background, eventually: Eventually, count,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The application is told of the confirmed one again: what it has by then is unknown."""
    good = await target.publish("good")
    reloader = target.reloader(receiver)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    receiver.statuses.append(500)
    bad = await target.publish("bad")
    await eventually(lambda: reloader.refused == bad and reloader.version == good)
    assert receiver.versions == [good, bad, good]
    assert target.text() == "good"
    assert reloader.problem is None
    assert (count("rollback", "ok"), count("rollback", "failed")) == (1, 0)
    marked = json.loads(target.state.read_text())
    assert marked["confirmed"] == good
    assert marked["refused"]["version"] == bad
    assert "answered with 500" in marked["refused"]["reason"]
    assert f"version {bad} of {target.path} was rolled back to {good}" in caplog.messages


async def test_a_refused_version_is_not_tried_again_until_another_one_comes(
    receiver: Receiver, target: Target, background, eventually: Eventually, count
) -> None:
    """A writer that publishes it again and again makes no reload; after another version it is tried anew."""
    good = await target.publish("good")
    reloader = target.reloader(receiver)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    receiver.statuses.append(500)
    bad = await target.publish("bad")
    await eventually(lambda: reloader.refused == bad and reloader.version == good)
    await target.publish("bad")
    await eventually(lambda: count("rollback", "ok") == 2 and reloader.version == good)
    assert receiver.versions == [good, bad, good, good]
    other = await target.publish("other")
    await eventually(lambda: reloader.version == other)
    assert reloader.refused is None
    assert await target.publish("bad") == bad
    await eventually(lambda: reloader.version == bad)
    assert receiver.versions == [good, bad, good, good, other, bad]


async def test_an_exit_status_is_a_refusal_too(
    one: Target, background, eventually: Eventually
) -> None:
    """As of `nginx -t`."""
    good = await one.publish("good")
    check = reload.Command(["grep", "-q", "good", f"{one.volume.path}/config"])
    reloader = reload.Reloader(one.path, [check], rollback_on_failure=True, backoff=never)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    bad = await one.publish("bad")
    await eventually(lambda: reloader.refused == bad and reloader.version == good)


async def test_a_version_that_is_not_confirmed_in_time_is_rolled_back(
    receiver: Receiver, one: Target, background, eventually: Eventually, count
) -> None:
    """The application has answered the reload with 200, and goes on with the old version."""
    good = receiver.active = await one.publish("good")
    reloader = one.reloader(
        receiver, confirm_url=receiver.active_url, confirm_timeout=0.3, backoff=at_once
    )
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    bad = await one.publish("bad")
    await eventually(lambda: reloader.refused == bad and reloader.version == good)
    # On a busy machine the good one may need several attempts.
    assert [version for version, _ in itertools.groupby(receiver.versions)] == [good, bad, good]
    assert count("confirm", "failed") >= 1
    assert count("confirm", "ok") == 2


async def test_an_application_that_is_away_has_refused_nothing_before_the_time_is_over(
    receiver: Receiver, one: Target, background, eventually: Eventually
) -> None:
    """503 is "not now" (RFC 9110, 15.6.4): it is tried again, and that may be enough."""
    good = await one.publish("good")
    reloader = one.reloader(receiver, backoff=at_once, confirm_timeout=LONG)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    receiver.statuses.extend([503] * 5)
    newer = await one.publish("newer")
    await eventually(lambda: reloader.version == newer)
    assert reloader.refused is None
    assert receiver.versions == [good] + [newer] * 6


async def test_an_application_that_stays_away_gets_the_confirmed_version_back(
    receiver: Receiver, one: Target, background, eventually: Eventually
) -> None:
    """The new version may be what has ended it: at its next start it finds one that it has taken before."""
    good = await one.publish("good")
    reloader = one.reloader(receiver, confirm_timeout=0.2)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    bad = sidecar.Snapshot.of({"config": "bad", "other": "same"}).version
    receiver.status_of[bad] = 503
    assert await one.publish("bad") == bad
    # The pause of an hour ends at the deadline, and one more try is made then.
    await eventually(lambda: reloader.refused == bad and reloader.version == good)
    assert receiver.versions in ([good, bad, bad, good], [good, bad, good])


async def test_the_first_version_has_nothing_to_go_back_to(
    receiver: Receiver, one: Target, background, eventually: Eventually
) -> None:
    """Then it is tried again, as without a rollback."""
    receiver.statuses.extend([500, 500])
    only = await one.publish("only")
    reloader = one.reloader(receiver, backoff=at_once)
    background(reloader.run())
    await eventually(lambda: reloader.version == only)
    assert receiver.versions == [only] * 3
    assert reloader.refused is None


async def test_a_restart_remembers_what_was_confirmed(
    receiver: Receiver, target: Target, background, eventually: Eventually
) -> None:
    """The bad version came while nobody looked; the confirmed one is in the history of the volume."""
    good = await target.publish("good")
    await target.reloader(receiver, once=True).run()
    receiver.statuses.append(500)
    bad = await target.publish("bad")
    reloader = target.reloader(receiver)
    background(reloader.run())
    await eventually(lambda: reloader.refused == bad and reloader.version == good)
    assert receiver.versions == [good, bad, good]
    assert target.text() == "good"


async def test_a_restart_remembers_what_was_refused(
    receiver: Receiver, target: Target, background, eventually: Eventually
) -> None:
    """A kill between the refusal and the rollback, or a writer that comes back with it: it is not tried again."""
    good = await target.publish("good")
    await target.reloader(receiver, once=True).run()
    bad = await target.publish("bad")
    memory = Rollback(target.path)
    await memory.load()
    await memory.refuse(bad, "because")
    reloader = target.reloader(receiver)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    assert reloader.refused == bad
    assert receiver.versions == [good, good]
    assert target.text() == "good"


async def test_without_the_initial_run_a_refused_version_is_not_taken_for_confirmed(
    receiver: Receiver, one: Target, background, eventually: Eventually
) -> None:
    """`--no-initial` trusts what is there, but not what was refused before."""
    good = await one.publish("good")
    await one.reloader(receiver, once=True).run()
    bad = await one.publish("bad")
    memory = Rollback(one.path)
    await memory.load()
    await memory.refuse(bad, "because")
    reloader = one.reloader(receiver, initial=False)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    assert one.text() == "good"
    assert receiver.versions == [good, good]


async def test_a_confirmed_version_that_is_gone_from_the_history_gives_none_up(
    receiver: Receiver, target: Target, background, eventually: Eventually, count
) -> None:
    """Nothing to go back to: the new one is tried until the application takes it."""
    await target.publish("good")
    await target.reloader(receiver, once=True).run()
    await target.volume.publish({}) if not target.single else await target.volume.delete(
        "config", purge=True
    )
    target.volume = sidecar.Volume(target.volume.path, keep=0, grace=0)
    await target.publish("between")
    newer = await target.publish("newer")
    receiver.statuses.extend([500, 500])
    reloader = target.reloader(receiver, backoff=at_once)
    background(reloader.run())
    await eventually(lambda: reloader.version == newer)
    assert count("rollback", "failed") == 1
    assert target.text() == "newer"


@pytest.mark.parametrize("damage", ["{", "[]", '{"confirmed": 1, "refused": null}'])
async def test_a_damaged_memory_is_none(
    receiver: Receiver, one: Target, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any container of the Pod can write there: it is said, and nothing else is lost."""
    good = await one.publish("good")
    one.state.write_text(damage)
    await one.reloader(receiver, once=True).run()
    assert receiver.versions == [good]
    assert any("what was confirmed before is not known" in said for said in caplog.messages)
    assert json.loads(one.state.read_text())["confirmed"] == good


async def test_what_somebody_else_publishes_meanwhile_is_never_rolled_back(one: Target) -> None:
    """The rollback is bound to the refused version (`if_match`)."""
    good = await one.publish("good")
    memory = Rollback(one.path)
    await memory.confirm(await one.volume.snapshot())
    await one.publish("bad")
    refused = await one.volume.snapshot()
    await one.publish("newest")
    with pytest.raises(sidecar.VersionConflict):
        await memory.publish(refused)
    assert (memory.confirmed, one.text()) == (good, "newest")


async def test_a_rollback_that_has_no_room_is_said_and_tried_again(
    receiver: Receiver, one: Target, background, eventually: Eventually, count
) -> None:
    """The budget of the volume holds for it as for any writer; a newer version ends it."""
    good = await one.publish("good")
    # Not even the current set fits beside a new one.
    reloader = one.reloader(receiver, storage={"volume_budget": 4096})
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    receiver.statuses.append(500)
    bad = await one.publish("bad")
    await eventually(lambda: count("rollback", "failed") == 1)
    assert one.text() == "bad"
    assert "budget" in [*reloader._failures.values()][-1]
    newer = await one.publish("newer")
    await eventually(lambda: reloader.version == newer)
    assert reloader.problem is None
    assert receiver.versions == [good, bad, newer]


async def test_loose_files_of_a_directory_are_not_rolled_back(
    receiver: Receiver, tmp_path: Path, background, eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """They have no version that could be published as one: they are tried again, and it is said why."""
    Path(tmp_path, "a").write_text("good")
    reloader = reload.Reloader(
        f"{tmp_path}/", [reload.Webhook(receiver.url)],
        rollback_on_failure=True, backoff=at_once, quiet=0.01,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: reloader.version is not None)
    good = reloader.version
    receiver.statuses.append(500)
    Path(tmp_path, "a").write_text("newer")
    await eventually(lambda: reloader.version not in (None, good))
    assert any("directory of loose files" in said for said in caplog.messages)
    assert Path(tmp_path, "a").read_text() == "newer"


async def test_a_volume_of_somebody_else_is_not_rolled_back(
    receiver: Receiver, one: Target, background, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """That of a ConfigMap is read-only: the version is tried again, as without a rollback."""
    good = await one.publish("good")
    reloader = one.reloader(receiver, backoff=at_once)
    background(reloader.run())
    await eventually(lambda: reloader.version == good)

    async def read_only(*_: object) -> bool:
        raise _errors.VolumeUnavailable(errno.EROFS, "read-only")

    monkeypatch.setattr(Rollback, "_publish_kept", read_only)
    receiver.statuses.append(500)
    newer = await one.publish("newer")
    with caplog.at_level(logging.ERROR):
        await eventually(lambda: reloader.version == newer)
    assert any("was not rolled back: read-only" in said for said in caplog.messages)


async def test_in_parallel_a_refusal_ends_the_pauses_of_the_others(
    receiver: Receiver, one: Target, background, eventually: Eventually, tmp_path: Path
) -> None:
    """One action has refused it, another one waits for its next attempt: the rollback does not."""
    good = await one.publish("good")
    gate = tmp_path / "gate"
    gate.touch()
    actions: list[reload.Action] = [
        reload.Webhook(receiver.url),
        reload.Command(
            [
                "sh",
                "-c",
                f"test -e {gate} || while test ! -e {gate}2; do sleep 0.01; done; test -e {gate}",
            ]
        ),
    ]
    reloader = reload.Reloader(
        one.path, actions, parallel=True, rollback_on_failure=True, backoff=never,
        confirm_timeout=LONG,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: reloader.version == good)
    gate.unlink()
    receiver.statuses.append(503)
    bad = await one.publish("bad")
    # The webhook waits for an hour now.
    await eventually(lambda: "answered with 503" in (reloader.problem or ""))
    gate.with_name("gate2").touch()
    await eventually(lambda: reloader.refused == bad)
    gate.touch()
    await eventually(lambda: reloader.version == good)


async def test_the_memory_lies_where_it_is_told_to(
    receiver: Receiver, one: Target, tmp_path: Path
) -> None:
    """For a content on a volume that is not to have it."""
    good = await one.publish("good")
    elsewhere = tmp_path / "state.json"
    await one.reloader(receiver, once=True, state_file=elsewhere).run()
    assert json.loads(elsewhere.read_text()) == {"confirmed": good, "refused": None}
    assert not one.state.exists()


async def test_memory_that_cannot_be_saved_stops_nothing(
    receiver: Receiver, one: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The application has its version, whatever the disk says."""
    await one.publish("good")
    await one.reloader(receiver, once=True, state_file=tmp_path / "none" / "state.json").run()
    assert any("a restart forgets it" in said for said in caplog.messages)


def test_a_refusal_is_about_one_version() -> None:
    """The mark names it."""
    memory = Rollback("/x/")
    memory.confirmed = "good"
    memory.refusal = reload_refusal("bad")
    assert memory.must_leave("bad")
    assert not memory.must_leave("other")
    memory.is_possible = False
    assert not memory.must_leave("bad")


def reload_refusal(version: str) -> Any:
    from sidecar.reload.rollback import Refusal

    return Refusal(version, "because", 1.0)


async def test_a_large_content_that_was_rewritten_comes_from_the_history(
    one: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content of more than 1 MiB is held on the disk, where a naive writer may have changed it."""
    good = await one.publish("good")
    memory = Rollback(one.path)
    kept: Snapshot[None] = await one.volume.snapshot()
    await memory.confirm(kept)
    await one.publish("bad")

    contents = type(kept).contents

    def altered(self: Snapshot[None]) -> dict[str, Content]:
        if self is kept:
            raise _errors.ContentAltered(errno.ESTALE, "altered")
        return contents(self)

    refused = await one.volume.snapshot()
    monkeypatch.setattr(type(kept), "contents", altered)
    assert await memory.publish(refused) == good
    assert one.text() == "good"


def test_a_state_file_that_is_followed_is_refused(tmp_path: Path) -> None:
    """Each save would be a new version, which is confirmed, which is saved."""
    (tmp_path / "set").mkdir()
    for path, state in ((f"{tmp_path}/set/", "set/state.json"), (f"{tmp_path}/set", "set/sub/state.json"), (f"{tmp_path}/file", "file")):  # fmt: skip
        with pytest.raises(_errors.ConfigError, match="each save would be a new version"):
            Rollback(path, tmp_path / state)
    Rollback(f"{tmp_path}/set/", tmp_path / "set" / "..state.json")
    Rollback(f"{tmp_path}/file", tmp_path / "state.json")
