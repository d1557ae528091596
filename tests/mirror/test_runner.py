"""What readers see while sources change, fail, lose their data or lie."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from mirror.conftest import StartMirror
from sidecar import _errors, mirror
from sidecar.mirror.states import Alive, Reference, SourceUnavailable, State, Unit
from sidecar.process import metrics
from sidecar.testing import ListSource, state
from sidecar.volume.content import source_state
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support import Eventually
from support.signing import Signer, key_file


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


def units(**contents: tuple[str, dict[str, str], float]) -> State:
    """Return a state of units: version, files, and when each was created."""
    made = {
        name: Unit(version, {file: text.encode() for file, text in given.items()}, created)
        for name, (version, given, created) in contents.items()
    }
    return State(made, token=repr(contents))


def result(name: str) -> float:
    return float(metrics.MIRROR_VERSIONS_TOTAL.labels(name)._value.get())


async def test_each_state_is_published_as_a_whole(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The present state first; what is not in a newer one disappears."""
    source = ListSource([state({"a": "1", "dir/b": "2"})])
    running = start_mirror(source)
    await eventually(lambda: running.version is not None)
    first = running.version
    assert await files(volume) == {"a": "1", "dir/b": "2"}
    source.add(state({"a": "1", "c": "3"}))
    await eventually(lambda: running.version != first)
    assert await files(volume) == {"a": "1", "c": "3"}


@pytest.mark.parametrize(
    ("names", "publisher"), [(("dashboards", "rules"), "dashboards, rules"), (("a\nb",), None)]
)
async def test_a_set_names_the_sources_that_it_is_from(
    start_mirror: StartMirror,
    volume: Volume,
    eventually: Eventually,
    names: tuple[str, ...],
    publisher: str | None,
) -> None:
    """Issue 15, point 4: who published it is a token, a Pod or a source; what is no such name is left out."""
    sources = [ListSource([state({name[0]: "1"})], name=name) for name in names]
    running = start_mirror(*sources)
    await eventually(lambda: running.version is not None)
    snapshot = await volume.snapshot()
    found = snapshot.metadata.published_by if snapshot.metadata is not None else None
    assert found == publisher


async def test_once_ends_when_a_state_of_every_source_is_published(
    start_mirror: StartMirror, volume: Volume
) -> None:
    """For init containers: the set is there when it ends."""
    sources = [
        ListSource([refused_connection(), state({"a": "1"})]),
        ListSource([state({"b": "2"})]),
    ]
    made = mirror.Mirror(volume.path, sources, once=True, pause=lambda attempt, error: 0.0)
    await asyncio.wait_for(made.run(), 10)
    assert await files(volume) == {"a": "1", "b": "2"}


def refused_connection() -> SourceUnavailable:
    return SourceUnavailable("list: connection refused (is it up?)")


async def test_a_source_that_is_away_keeps_its_files_and_is_followed_from_where_it_was(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """consul-template #727: an engine that is down must not take files away."""
    source = ListSource([state({"a": "1"}, token="7"), refused_connection()])
    with caplog.at_level(logging.INFO):
        running = start_mirror(source)
        await eventually(lambda: source.since == [None, "7"] and running.is_complete)
        assert await files(volume) == {"a": "1"}
        assert running.problem == "list: connection refused (is it up?)"
        source.add(Alive("7"))
        await eventually(lambda: running.problem is None)
    said = [one.getMessage() for one in caplog.records if one.name == "sidecar.mirror.runner"]
    assert said == [
        "list: connection refused (is it up?); trying again, and the files stay",
        "list answers again",
    ]


@pytest.mark.parametrize("left", [{}, {"a": "1"}], ids=["empty", "fewer than half"])
async def test_a_source_that_lost_its_files_is_held(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, left: dict[str, str]
) -> None:
    """FLUSHALL, a restart without persistence: the last good files stay, and it is said."""
    source = ListSource([state({"a": "1", "b": "2", "c": "3"}), *[state(left)] * 3])
    before = result("held")
    running = start_mirror(source)
    await eventually(lambda: len(source.since) == 4 and running.is_complete)
    assert sorted(await files(volume)) == ["a", "b", "c"]
    assert running.problem == (
        f"list: it has {len(left)} files, and 3 are published (was it emptied?); --allow-shrink publishes it"
    )
    assert result("held") == before + 1
    source.add(state({"a": "1", "b": "2"}))
    await eventually(lambda: running.problem is None and running.is_complete)
    assert sorted(await files(volume)) == ["a", "b"]


async def test_a_state_that_lost_its_files_is_published_when_allowed_and_read_twice(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """One answer may be wrong; two that agree, and a flag, are believed."""
    source = ListSource(
        [state({"a": "1", "b": "2", "c": "3"}), state({"a": "1"}), state({"a": "1"})]
    )
    running = start_mirror(source, allow_shrink=True)
    await eventually(lambda: len(source.since) == 2 and running.problem is None)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_a_restart_before_an_empty_source_removes_nothing(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The files on the volume count, although this process has not published them."""
    await volume.publish({"a": "1", "b": "2"})
    running = start_mirror(ListSource([state({})]))
    await eventually(lambda: running.problem is not None)
    assert await files(volume) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("allowed", [False, True])
async def test_an_order_that_goes_back_is_held(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, *, allowed: bool
) -> None:
    """A restored backup, or another server behind the same name."""
    old = state({"a": "old"}, order=3)
    source = ListSource([state({"a": "new"}, order=5), old, old])
    running = start_mirror(source, allow_rewind=allowed)
    await eventually(lambda: len(source.since) == 3 - allowed)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "old" if allowed else "new"}
    assert (running.problem is None) == allowed


async def test_deletions_while_nobody_looked_are_noticed(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """k8s-sidecar keeps a file for ever whose object was deleted while its container restarted."""
    await volume.publish({"a": "1", "b": "2", "gone": "3"})
    running = start_mirror(ListSource([state({"a": "1", "b": "2"})]))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "b": "2"}


async def test_files_stay_until_every_source_has_answered(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """After a restart, those of a source that is away are not removed because another one does not have them."""
    await volume.publish({"one/a": "1", "two/b": "2"})
    one, two = ListSource([state({"a": "new"})]), ListSource([refused_connection()])
    running = start_mirror(one, two, into=["one", "two"])
    await eventually(lambda: running.version is not None and len(two.since) == 2)
    await eventually(lambda: (Path(volume.path) / "one/a").read_text() == "new")
    assert await files(volume) == {"one/a": "new", "two/b": "2"}
    two.add(state({"c": "3"}))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"one/a": "new", "two/c": "3"}


async def test_a_refused_unit_keeps_its_last_good_files_and_the_others_go_on(
    volume: Volume, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """One broken dashboard must not stop a hundred; nor is a unit published in part."""
    gated = Volume(volume.path, gate=Gate(format="json"))
    first = units(good=("1", {"good": "1"}, 1), bad=("1", {"bad": "1", "extra": "1"}, 2))
    second = units(good=("2", {"good": "2"}, 1), bad=("2", {"bad": "{", "extra": "2"}, 2))
    third = units(good=("2", {"good": "2"}, 1), bad=("3", {"bad": "3"}, 2))
    source = ListSource([first])
    running = start_mirror(source, volume=gated)
    await eventually(lambda: running.is_complete)
    source.add(second)
    await eventually(lambda: bool(running.refused))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"good": "2", "bad": "1", "extra": "1"}
    assert list(running.refused) == ["bad"]
    source.add(third)
    await eventually(lambda: not running.refused)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"good": "2", "bad": "3"}


async def test_a_unit_that_is_refused_at_the_start_keeps_the_files_of_before(
    volume: Volume, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """They were published by the process before this one."""
    await volume.publish({"bad": "1", "good": "1"})
    gated = Volume(volume.path, gate=Gate(format="json"))
    running = start_mirror(
        ListSource([units(good=("2", {"good": "2"}, 1), bad=("2", {"bad": "{"}, 2))]), volume=gated
    )
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"good": "2", "bad": "1"}


@pytest.mark.parametrize("reverse", [False, True])
async def test_of_two_units_with_one_name_the_older_is_published_whatever_comes_first(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, *, reverse: bool
) -> None:
    """And when it goes, the other takes its place (k8s-sidecar: the file is gone)."""
    older = ("older", ("1", {"name": "older", "a": "1"}, 1.0))
    newer = ("newer", ("1", {"name/below": "newer", "b": "2"}, 2.0))
    both = [newer, older] if reverse else [older, newer]
    first, second = units(**dict(both[:1])), units(**dict(both))
    source = ListSource([first, second])
    running = start_mirror(source)
    await eventually(lambda: list(running.refused) == ["newer"] and running.is_complete)
    assert await files(volume) == {"name": "older", "a": "1"}
    last = units(newer=newer[1])
    source.add(State({"newer": Unit("1", None, 2.0)}, "last"))
    await eventually(lambda: source.since == [None, None])  # its content was not kept
    source.add(last)
    await eventually(lambda: not running.refused and running.is_complete)
    assert await files(volume) == {"name/below": "newer", "b": "2"}


@pytest.mark.parametrize("name", ["../up", "/absolute", "a//b", "..data", "a\0b", "é" * 200])
async def test_a_unit_with_a_name_that_leaves_the_volume_is_refused(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, name: str
) -> None:
    """The folder annotation of k8s-sidecar writes outside of the folder."""
    source = ListSource([units(bad=("1", {name: "1"}, 1), good=("1", {"good": "1"}, 2))])
    running = start_mirror(source)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"good": "1"}
    assert list(running.refused) == ["bad"]


async def test_of_two_sources_with_one_name_the_first_is_published(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Units without a name of their own (a file, a prefix, a commit) clash as others do, and messages name their source."""
    one = ListSource([state({"name": "one", "a": "1"})], name="one")
    two = ListSource([state({"name": "two", "b": "2"})], name="two")
    running = start_mirror(one, two)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"name": "one", "a": "1"}
    assert running.refused == {"two": "cannot publish name: an older unit has that name (one)"}


async def test_a_small_source_beside_a_large_one_is_not_held_at_a_restart(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """What is published in a directory that they share is not known to be the one's or the other's."""
    await volume.publish({str(number): "1" for number in range(10)})
    large = ListSource([state({str(number): "1" for number in range(9)})])
    running = start_mirror(large, ListSource([state({"9": "1"})]))
    await eventually(lambda: running.is_complete)
    assert len(await files(volume)) == 10
    assert running.problem is None


async def test_a_refused_unit_keeps_its_files_although_somebody_else_has_published(
    volume: Volume, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """Digests of a source are not versions of the volume: what is read anew there is still the unit's."""

    async def fetch() -> bytes:
        return b"1"

    gated = Volume(volume.path, gate=Gate(format="json"))
    good = Unit("1", {"bad": Reference("oid-1", fetch)})
    source = ListSource([State({"unit": good}, "1")])
    running = start_mirror(source, volume=gated)
    await eventually(lambda: running.is_complete)
    source.add(State({"unit": Unit("2", {"bad": b"{"}), "other": Unit("1", {"x": b"1"})}, "2"))
    await eventually(lambda: "unit" in running.refused and running.is_complete)
    await Volume(volume.path).update({"y": "foreign"})
    source.add(State({"unit": Unit("2", None), "other": Unit("2", {"x": b"2"})}, "3"))
    await eventually(lambda: (Path(volume.path) / "x").read_text() == "2")
    assert await files(volume) == {"bad": "1", "x": "2"}


async def test_only_what_has_changed_is_fetched(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A reference is fetched once for each digest; a source need not keep contents."""
    fetched: list[str] = []

    def reference(name: str, digest: str) -> Reference:
        async def fetch() -> bytes:
            fetched.append(name)
            return digest.encode()

        return Reference(digest, fetch)

    def make(version: str, **digests: str) -> State:
        files = {name: reference(name, digest) for name, digest in digests.items()}
        return State({"": Unit(version, files)}, token=version)

    source = ListSource([make("1", a="1", b="1"), make("2", a="1", b="2")])
    running = start_mirror(source)
    await eventually(lambda: running.is_complete and fetched == ["a", "b", "b"])
    assert await files(volume) == {"a": "1", "b": "2"}


async def test_a_content_that_cannot_be_fetched_is_fetched_again(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Nothing is published of a state whose contents cannot be had."""
    answers: list[bytes | Exception] = [refused_connection(), b"1"]

    async def fetch() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await volume.publish({"a": "0", "b": "0"})
    source = ListSource([State({"": Unit("1", {"a": Reference("1", fetch), "b": b"1"})}, "1")])
    running = start_mirror(source)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "b": "1"}
    assert not answers


async def test_a_mistake_in_a_source_ends_neither_it_nor_the_others(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """An answer that nobody foresaw; it is said, and the source is followed anew."""
    broken, well = (
        ListSource([KeyError("revision"), state({"a": "1"})]),
        ListSource([state({"b": "2"})]),
    )
    running = start_mirror(broken, well)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "b": "2"}
    broken.add(ValueError("what is that?"))
    await eventually(lambda: len(broken.since) == 3)
    assert running.problem == "list: unexpected ValueError: what is that?"


async def test_a_source_in_silence_is_followed_anew(
    start_mirror: StartMirror, eventually: Eventually
) -> None:
    """Watches die in silence on every engine: twice the interval without a sign of life is too long."""
    source = ListSource([state({"a": "1"}, token="1")], interval=0.01)
    before = metrics.MIRROR_RECONNECTS_TOTAL.labels("silent")._value.get()
    start_mirror(source)
    await eventually(lambda: source.since[:2] == [None, "1"])
    assert metrics.MIRROR_RECONNECTS_TOTAL.labels("silent")._value.get() > before


async def test_readers_are_told_when_a_source_is_stale_and_when_it_is_not(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A hidden file beside the content, written when that changes."""
    told = Path(volume.path) / "..source.json"
    source = ListSource([state({"a": "1"})])
    running = start_mirror(source, stale_after=0.02)
    await eventually(told.exists)
    said = source_state.parse(told.read_bytes())
    assert said.stale == "the source list is stale: no sign of life"
    assert await files(volume) == {"a": "1"}
    inode = told.stat().st_ino
    source.add(Alive("1"))
    await eventually(lambda: source_state.parse(told.read_bytes()).stale is None)
    assert told.stat().st_ino != inode
    assert running.version is not None


async def test_staleness_of_the_process_before_ends_when_the_sources_answer(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A container that was restarted while its source was away must not leave its readers stale for ever."""
    await volume.publish({"a": "1"})
    await volume.mark_source({"list": "away"})
    told = Path(volume.path) / "..source.json"
    source = ListSource([])
    start_mirror(source)
    await eventually(lambda: source.since == [None])
    assert source_state.parse(told.read_bytes()).stale is not None
    source.add(state({"a": "1"}))
    await eventually(lambda: source_state.parse(told.read_bytes()).stale is None)


async def test_staleness_that_could_not_be_written_is_written_later(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """On a full volume."""
    real, fail = volume.mark_source, [True]

    async def mark(reasons: dict[str, str]) -> None:
        if reasons and fail:
            fail.pop()
            raise _errors.VolumeFull(28, "no space left")
        await real(reasons)

    monkeypatch.setattr(volume, "mark_source", mark)
    start_mirror(ListSource([state({"a": "1"})]), stale_after=0.02)
    await eventually((Path(volume.path) / "..source.json").exists)
    assert not fail


async def test_a_volume_that_refuses_is_tried_again_with_the_newest_state(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A full volume is no reason to read the source again, nor to forget what it had."""
    real, fail = volume.update, True

    async def update(*arguments: object, **options: object) -> object:
        if fail:
            raise _errors.VolumeFull(28, "cannot publish: no space left")
        return await real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(volume, "update", update)
    source = ListSource([state({"a": "1"}), state({"a": "2"})])
    running = start_mirror(source)
    await eventually(lambda: running.problem == "cannot publish: no space left")
    fail = False
    source.add(state({"a": "3"}))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "3"}
    assert source.since == [None]


async def test_what_another_publisher_did_is_put_right(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The set is that of the sources; whoever changes it is outvoted at the next version."""
    source = ListSource([state({"a": "1"})])
    running = start_mirror(source)
    await eventually(lambda: running.is_complete)
    await Volume(volume.path).publish({"a": "foreign", "b": "foreign"})
    source.add(state({"a": "1", "c": "3"}))
    await eventually((Path(volume.path) / "c").exists)
    assert await files(volume) == {"a": "1", "c": "3"}


async def test_a_volume_that_was_removed_is_filled_again(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """With all files of the next version, also those that have not changed."""
    source = ListSource([state({"a": "1"})])
    running = start_mirror(source)
    await eventually(lambda: running.is_complete)
    shutil.rmtree(volume.path)
    source.add(state({"a": "1", "b": "2"}), state({"a": "1", "b": "2"}))
    await eventually((Path(volume.path) / "a").exists)
    assert await files(volume) == {"a": "1", "b": "2"}


async def test_gauges_are_those_of_the_mirrors_that_run(
    start_mirror: StartMirror, volume: Volume, eventually: Eventually, tmp_path: Path
) -> None:
    """One process may hold many; one that has ended is not counted any more."""
    await mirror.Mirror(tmp_path / "ended", [ListSource([state({"a": "1"})])], once=True).run()
    running = start_mirror(ListSource([units(one=("1", {"a": "1"}, 1), two=("1", {"b": "1"}, 2))]))
    await eventually(lambda: running.is_complete)
    assert b"sidecar_mirror_units 2.0\n" in metrics.exposition()[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, "there is nothing to mirror"),
        ({"shrink_limit": 1.5}, "shrink_limit"),
        ({"stale_after": 0}, "stale_after"),
    ],
)
def test_wrong_arguments_are_named(volume: Volume, settings: dict[str, Any], message: str) -> None:
    given = {"sources": [ListSource([])], **settings}
    with pytest.raises(_errors.ConfigError, match=message):
        mirror.Mirror(volume.path, **given)


async def test_a_state_that_is_not_signed_is_not_published(
    start_mirror: StartMirror, volume: Volume, tmp_path: Path, eventually: Eventually
) -> None:
    """The files stay, until a signed state comes; what was planted on the volume before the start goes."""
    signer = Signer()
    verifying = Volume(volume.path, verify_key=key_file(tmp_path / "keys.pem", signer))
    await volume.publish({"planted": "x"})
    before = result("refused")
    source = ListSource([state(signer.signed({"a": "1"}))])
    running = start_mirror(source, volume=verifying, allow_shrink=True)
    await eventually(lambda: running.is_complete)
    assert sorted(await verifying.snapshot()) == ["SHA256SUMS", "SHA256SUMS.sig", "a"]
    source.add(state({**signer.signed({"a": "1"}), "a": "2"}))
    await eventually(lambda: "a is not what SHA256SUMS says" in (running.problem or ""))
    assert (await verifying.snapshot()).text("a") == "1"
    assert result("refused") == before + 1
    source.add(state(signer.signed({"a": "2"})))
    await eventually(lambda: running.problem is None and running.is_complete)
    assert (await verifying.snapshot()).text("a") == "2"
