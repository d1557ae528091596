"""What a look is worth: decided from evidence, without a disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.fs import openat
from sidecar.fs.notify.base import EventBatch
from sidecar.fs.notify.inotify import Inotify
from sidecar.volume.content.scan_result import FileStates, ScanResult
from sidecar.volume.content.snapshot import Content, Snapshot, version_of
from sidecar.volume.watch import event_log, stability
from sidecar.volume.watch.stability import CLOSE_CONFIRM, MAX_WAIT, QUIET_PERIOD, StabilityFilter

NOW = 1_000_000_000.0
OLD = NOW - 1000
MADE, WRITTEN, CLOSED, CAME = (
    Inotify.CREATE,
    Inotify.MODIFY,
    Inotify.CLOSE_WRITE,
    Inotify.MOVED_TO,
)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock stands still."""
    monkeypatch.setattr(stability, "_now", lambda: NOW)


def file(
    text: str = "old", *, inode: int = 1, age: float | None = None, linked: bool = False
) -> Any:
    """One file of a look: its content and its signature."""
    changed = int((OLD if age is None else NOW - age) * 1e9)
    return text, openat.StatSignature(1, inode, len(text), changed, changed + linked)


def look(
    *files: Any, single: bool = True, generation: str | None = None, directory: int = 1, **more: Any
) -> ScanResult:
    names = {f"{chr(ord('a') + n)}": one for n, one in enumerate(files) if one is not None}
    contents = {
        n: Content(n, text.encode(), version_of(text.encode()), 0.0)
        for n, (text, _) in names.items()
    }
    states = FileStates((1, directory), generation, {n: s for n, (_, s) in names.items()}, {}, {})
    return ScanResult(
        Snapshot(contents, single=single, value=None),
        states,
        more.get("changed_while_read", frozenset()),
        more.get("linked", frozenset()),
        {},
        more.get("incomplete", frozenset()),
    )


def tell(one: StabilityFilter, *kinds: int, name: str = "a", late: int = 0) -> None:
    """Let events come before the look, and `late` ones during it."""
    for kind in kinds:
        one.events.add(
            EventBatch(count=1, last={name.encode(): kind}, kinds={name.encode(): kind}), {}
        )
    one.events.scan_started()
    if late:
        one.events.add(
            EventBatch(count=1, last={name.encode(): late}, kinds={name.encode(): late}), {}
        )


NEW = file("new", inode=2)
PLACE = file("new", age=0)
HERE = look(file())

CASES = {
    # what the events were, those during the look, what was found -> how long it must be still
    "renamed over": ([CAME], 0, NEW, None),
    "renamed over, empty": ([CAME], 0, file("", inode=2), None),
    "renamed over twice, once during the look": ([CAME], CAME, NEW, None),
    "renamed over during the look only": ([], CAME, NEW, 0.0),
    "renamed over, and being rewritten": ([CAME], WRITTEN, NEW, MAX_WAIT),
    "rewritten and closed": ([WRITTEN, CLOSED], 0, PLACE, CLOSE_CONFIRM),
    "rewritten and closed, empty": ([WRITTEN, CLOSED], 0, file("", age=0), QUIET_PERIOD),
    "closed during the look": ([WRITTEN], CLOSED, PLACE, 0.0),
    "closed, and begun again during the look": ([WRITTEN, CLOSED], WRITTEN, PLACE, MAX_WAIT),
    "still open": ([WRITTEN], 0, PLACE, MAX_WAIT),
    "made, nothing in it yet": ([MADE], 0, file("", inode=2, age=0), QUIET_PERIOD),
    "made, and its first write under way": ([MADE], 0, file("ne", inode=2, age=0), QUIET_PERIOD),
    "made by a link to a complete file": (
        [MADE],
        0,
        file("new", inode=2, age=0, linked=True),
        None,
    ),
    "made by a link to an old file": ([MADE], 0, NEW, None),
    "made by a link to an old file, empty": ([MADE], 0, file("", inode=2), QUIET_PERIOD),
    "no event, rewritten in place": ([], 0, PLACE, QUIET_PERIOD),
    "no event, another file, fresh": ([], 0, file("new", inode=2, age=0), QUIET_PERIOD),
    "no event, another file, old": ([], 0, NEW, None),
    "no event, another link or mode": ([], 0, ("old", file()[1]._replace(ctime_ns=5)), None),
    "open, and its bytes are the old ones": ([WRITTEN], 0, file("old", age=0), None),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_change_is_waited_for_as_long_as_it_needs(case: str) -> None:
    """Renamed is whole; closed is nearly so; everything else must have been still."""
    kinds, late, found, wait = CASES[case]
    one = StabilityFilter("/shared/a")
    tell(one, *kinds, late=late)
    verdict = one.decide(look(found), HERE, 100.0)
    assert verdict.retry_after == (pytest.approx(wait) if wait else wait)
    assert (verdict.show is None) == (wait is not None)


@pytest.mark.parametrize(
    "case", [name for name, row in CASES.items() if row[3] and "fresh" not in name]
)
def test_what_was_still_for_long_enough_is_believed(case: str) -> None:
    """And the time begins anew with each change."""
    kinds, late, found, wait = CASES[case]
    one = StabilityFilter("/shared/a")
    tell(one, *kinds, late=late)
    assert wait is not None
    assert one.decide(look(found), HERE, 100.0).show is None
    one.events.scan_started()
    text, signature = found
    again = signature._replace(mtime_ns=signature.mtime_ns + 1, ctime_ns=signature.ctime_ns + 1)
    other = (text, again)
    assert one.decide(look(other), HERE, 100.0 + wait * 0.9).show is None
    assert one.decide(look(other), HERE, 100.0 + wait * 1.8).show is None
    assert one.decide(look(other), HERE, 100.0 + wait * 2).show is not None


def test_a_file_that_changed_while_it_was_read_is_read_again() -> None:
    """At once if its writer has closed it, else when it is still."""
    one = StabilityFilter("/shared/a")
    tell(one, WRITTEN, CLOSED)
    torn = look(PLACE, changed_while_read=frozenset({"a"}))
    assert one.decide(torn, HERE, 100.0).retry_after == 0.0
    one = StabilityFilter("/shared/a")
    tell(one)
    assert one.decide(torn, HERE, 100.0).retry_after == pytest.approx(QUIET_PERIOD)


@pytest.mark.parametrize("known", [CLOSED, CAME])
def test_a_whole_rewrite_during_the_look_is_read_again(known: int) -> None:
    """It was closed before and is closed now, and what was read lies between: only the next look can tell."""
    one = StabilityFilter("/shared/a")
    tell(one, known)
    one.events.add(EventBatch(last={b"a": CLOSED}, kinds={b"a": WRITTEN | CLOSED}), {})
    assert one.decide(look(NEW), HERE, 100.0).retry_after == 0.0


def test_bytes_count_and_not_signatures() -> None:
    """Old bytes with a new signature are nothing new, unless they were read while they changed; new bytes are always doubted."""
    one = StabilityFilter("/shared/a")
    tell(one)
    again = look(file("old", age=0), changed_while_read=frozenset({"a"}))
    assert one.decide(again, HERE, 100.0).show is None
    tell(one)
    signature = file("old")[1]
    assert one.decide(look(("odd", signature)), HERE, 100.0).retry_after == pytest.approx(
        QUIET_PERIOD
    )


def test_a_first_look_trusts_what_is_not_fresh() -> None:
    """Of what happened before there is no event."""
    for age, wait in ((None, None), (0.0, QUIET_PERIOD), (0.4, 0.6)):
        one = StabilityFilter("/shared/a")
        tell(one)
        verdict = one.decide(look(file(age=age)), None, 100.0)
        assert verdict.retry_after == (wait and pytest.approx(wait))


def test_a_generation_is_whole_whatever_its_files_look_like() -> None:
    """`..data` points at it: nobody is still writing. Within one generation that does not hold."""
    one = StabilityFilter("/shared")
    tell(one, MADE)
    before = look(file(), single=False, generation="..1")
    new = look(file("", inode=2, age=0), file("b", age=0), single=False, generation="..2")
    assert one.decide(new, before, 100.0).show is new
    same = look(file("new", age=0), single=False, generation="..1")
    assert one.decide(same, before, 100.0).show is None or "a" in one.pending.observed


def test_names_of_a_loose_set_are_held_back_one_by_one() -> None:
    """The others are shown with the old content of the name that is being written."""
    one = StabilityFilter("/shared")
    tell(one, WRITTEN)
    before = look(file("a0"), file("b0"), single=False)
    one.events.add(EventBatch(last={b"b": CAME}, kinds={b"b": CAME}), {})
    one.events.scan_started()
    found = look(file("a1", age=0), file("b1", inode=2), single=False)
    shown = one.decide(found, before, 100.0).show
    assert shown is not None
    assert dict(shown.snapshot) == {"a": b"a0", "b": b"b1"}
    assert shown.states.signatures["a"] == before.states.signatures["a"]


def test_names_that_vanish_are_waited_for() -> None:
    """Until no further one does, but not for ever."""
    one = StabilityFilter("/shared")
    before = look(file("a"), file("b"), file("c"), single=False)
    tell(one)
    two_left = look(file("a"), file("b"), single=False)
    one_left = look(file("a"), single=False)
    assert one.decide(two_left, before, 100.0).show is None
    assert one.decide(one_left, before, 100.0 + stability.DELETION_QUIET * 0.9).show is None
    assert one.decide(one_left, before, 100.0 + stability.DELETION_QUIET * 1.8).show is None
    assert one.decide(one_left, before, 100.0 + stability.DELETION_QUIET * 2).show is one_left
    one = StabilityFilter("/shared")
    tell(one)
    assert one.decide(two_left, before, 100.0).show is None
    assert one.decide(one_left, before, 102.0).show is one_left


def test_what_was_not_read_to_its_end_is_never_shown() -> None:
    """A large file that changed meanwhile has no version: not even a directory that came whole can vouch for it."""
    before = look(file("old"), single=False)
    new = look(
        file("x", inode=5), single=False, directory=2,
        changed_while_read=frozenset("a"), incomplete=frozenset("a"),
    )  # fmt: skip
    one = StabilityFilter("/shared")
    one.events.add(EventBatch(count=1, moved=True, renamed_in=True), {})
    one.events.scan_started()
    verdict = one.decide(new, before, 100.0)
    assert verdict.show is None or "a" not in verdict.show.snapshot
    assert verdict.retry_after is not None


def test_another_directory_is_a_first_look() -> None:
    """What came by rename was made before; else it may be in the hands of its maker."""
    before = look(file("old"), single=False)
    new = look(file("x", inode=5, age=0), file("", inode=6, age=0), single=False, directory=2)
    one = StabilityFilter("/shared")
    tell(one)
    assert one.decide(new, before, 100.0).show is None
    one = StabilityFilter("/shared")
    one.events.add(EventBatch(count=1, moved=True, renamed_in=True), {})
    one.events.scan_started()
    assert one.decide(new, before, 100.0).show is new


def test_what_happens_in_the_middle_of_a_look_is_not_forgotten_for_what_comes_after() -> None:
    """Begun anew and closed again while it was read: the bytes may be half of each."""
    one = StabilityFilter("/shared/a")
    tell(one, WRITTEN, CLOSED)
    for kind in (WRITTEN, CLOSED):
        one.events.add(EventBatch(count=1, last={b"a": kind}, kinds={b"a": kind}), {})
    verdict = one.decide(look(PLACE), HERE, 100.0)
    assert (verdict.show, verdict.retry_after) == (None, 0.0)


def test_a_rename_during_a_look_is_evidence_for_the_next_one() -> None:
    """The content before it is shown, and the one after it needs no wait."""
    one = StabilityFilter("/shared/a")
    tell(one, CAME, late=CAME)
    first = look(NEW)
    assert one.decide(first, HERE, 100.0).show is first
    one.events.scan_started()
    second = look(file("newer", inode=3, age=0))
    assert one.decide(second, first, 100.0).show is second


def test_what_changed_while_it_was_read_is_never_shown() -> None:
    """However long it has been still: the bytes at hand are not those of now."""
    one = StabilityFilter("/shared/a")
    torn = look(PLACE, changed_while_read=frozenset("a"))
    for now in (100.0, 100.0 + 2 * QUIET_PERIOD):
        tell(one)
        assert one.decide(torn, HERE, now).show is None


def test_a_name_that_is_made_as_one_more_link_is_complete() -> None:
    """A file with two names was written before it got the second one."""
    one = StabilityFilter("/shared/a")
    tell(one, MADE)
    linked = look(file("new", inode=2, age=0), linked=frozenset("a"))
    assert one.decide(linked, HERE, 100.0).show is linked


def test_names_that_a_new_generation_does_not_have_are_gone_at_once() -> None:
    """The set was switched as a whole: nobody is in the middle of removing files."""
    one = StabilityFilter("/shared/")
    tell(one)
    before = look(file(), file(), single=False, generation="..gen-1")
    after = look(file(inode=2), single=False, generation="..gen-2")
    assert one.decide(after, before, 100.0).show is after


def test_waiting_without_an_end_is_told_as_a_problem() -> None:
    """The reader of a log file must not believe that all is well."""
    one = StabilityFilter("/shared/a")
    said = None
    for second in range(int(MAX_WAIT) + 2):
        tell(one, WRITTEN)
        found = look(file("x" * (second + 4), age=0))
        said = one.decide(found, HERE, 100.0 + second).problem
        assert (said is not None) == (second >= MAX_WAIT)
    assert said is not None
    assert said.startswith("cannot read /shared/a: a has been rewritten in place")


def test_lost_events_leave_no_evidence() -> None:
    """After an overflow nothing is known of who writes what."""
    one = StabilityFilter("/shared/a")
    tell(one, CAME)
    one.events.add(EventBatch(lost=True), {})
    one.events.scan_started()
    assert one.decide(look(PLACE), HERE, 100.0).retry_after == pytest.approx(QUIET_PERIOD)


def test_what_has_been_accepted_needs_new_evidence() -> None:
    """The rename of yesterday says nothing about the rewrite of today."""
    one = StabilityFilter("/shared/a")
    tell(one, CAME)
    accepted = one.decide(look(NEW), HERE, 100.0).show
    assert accepted is not None
    one.events.scan_started()
    rewritten = look(file("newer", inode=2, age=0))
    assert one.decide(rewritten, accepted, 101.0).retry_after == pytest.approx(QUIET_PERIOD)


def test_names_of_neighbours_do_not_fill_the_memory() -> None:
    """They are forgotten with each look that is accepted, and when they are too many."""
    one = StabilityFilter("/shared")
    for number in range(event_log._MAX_NAMES + 10):
        raw = b"%d" % number
        one.events.add(EventBatch(last={raw: MADE}, kinds={raw: MADE}), {})
    assert len(one.events.last) < 20
    tell(one)
    one.decide(look(file(), single=False), None, 100.0)
    assert not one.events.last


def test_events_of_another_name_may_tell_of_a_file() -> None:
    """`..data` is the way to the file, and a link's target is the file."""
    one = StabilityFilter("/shared/a")
    one.events.add(EventBatch(last={b"..data": CAME}, kinds={b"..data": CAME}), {"..data": "a"})
    one.events.scan_started()
    assert one.decide(look(NEW), HERE, 100.0).show is not None


def test_the_bits_are_those_of_the_kernel() -> None:
    """inotify(7)."""
    import asyncinotify

    for name in ("CREATE", "MODIFY", "CLOSE_WRITE", "MOVED_TO", "MOVED_FROM", "DELETE"):
        assert getattr(Inotify, name) == int(getattr(asyncinotify.Mask, name))
    for ours, theirs in (("OVERFLOW", "Q_OVERFLOW"), ("MASK_ADD", "MASK_ADD")):
        assert getattr(Inotify, ours) == int(getattr(asyncinotify.Mask, theirs, 0x20000000))


class Disk:
    """What the disk says of every file."""

    def __init__(self, *, writing: bool | None = None, published: bool = False) -> None:
        self.writing = writing
        self.published = published

    def is_open_for_writing(self, *_: object) -> bool | None:
        return self.writing

    def is_archived(self, *_: object) -> bool:
        return self.published


YOUNG = file("new", age=0.4, inode=2)


@pytest.mark.parametrize(
    ("disk", "before", "wait"),
    [
        (Disk(), None, 0.6),  # nobody can tell: until nothing has touched it for a second
        (Disk(writing=False), None, None),
        (Disk(writing=True), None, MAX_WAIT - 0.4),
        (Disk(writing=True), HERE, MAX_WAIT - 0.4),
        (Disk(published=True), None, None),
        (Disk(writing=True, published=True), None, None),
    ],
)
def test_a_young_file_without_events_is_believed_if_the_disk_proves_it(
    disk: Disk, before: ScanResult | None, wait: float | None
) -> None:
    """A lease (fcntl(2)) says whether it is open for writing; our history holds what was whole when it was published."""
    one = StabilityFilter("/shared/a", disk)
    tell(one)
    found = look(YOUNG, linked=frozenset("a") if disk.published else frozenset())
    assert one.decide(found, before, 100.0).retry_after == (wait and pytest.approx(wait))


def test_a_file_that_was_cut_by_its_path_is_waited_for_a_second() -> None:
    """truncate(2) opens nothing: one IN_MODIFY, and no close will come."""
    one = StabilityFilter("/shared/a", Disk(writing=False))
    tell(one, WRITTEN)
    assert one.decide(look(file("ol", age=0.4)), HERE, 100.0).retry_after == pytest.approx(0.6)


def test_files_that_lay_in_a_directory_when_it_came_by_rename_are_whole() -> None:
    """Renaming sets its time of change; what has been touched since was not made before."""
    one = StabilityFilter("/shared")
    tell(one, CAME, name="sub")
    old = look(file(), single=False)
    for changed, accepted in ((NOW - 0.5, True), (NOW - 0.2, False)):
        found = look(
            file(), ("x", openat.StatSignature(1, 7, 1, 0, int(changed * 1e9))), single=False
        )
        names = {"a": found.states.signatures["a"], "sub/b": found.states.signatures["b"]}
        contents = {"a": old.snapshot.content("a"), "sub/b": found.snapshot.content("b")}
        folder = openat.StatSignature(1, 8, 1, 0, int((NOW - 0.4) * 1e9))
        states = found.states._replace(signatures=names, folders={"sub": folder})
        nested = replace(
            found, snapshot=Snapshot(contents, single=False, value=None), states=states
        )
        assert (one.decide(nested, old, 100.0).retry_after is None) == accepted


def test_a_tree_that_is_copied_is_shown_once_it_is_quiet() -> None:
    """Each file is closed after the other; what is there already is not kept waiting by new ones for ever."""
    one = StabilityFilter("/shared")
    before, files = look(file(), single=False), [file()]
    for number in range(30):
        files.append(file("x", inode=9 + number, age=0))
        tell(one, WRITTEN, CLOSED, name=chr(ord("b") + number))
        verdict = one.decide(look(*files, single=False), before, 100.0 + number / 20)
        assert verdict.show is not None
        assert verdict.show.snapshot == before.snapshot
    one.events.scan_started()
    found = look(*files, single=False)
    shown = one.decide(found, before, 100.0 + 29 / 20 + stability.DIRECTORY_QUIET).show
    assert shown is found


def test_a_quiet_period_that_is_asked_for_holds_for_every_change() -> None:
    """And not for ever: a directory that never comes to rest is shown all the same."""
    one = StabilityFilter("/shared", quiet=0.5)
    before = look(file(), single=False)
    for number in range(60):
        tell(one, CAME)
        found = look(file(str(number), inode=number), single=False)
        verdict = one.decide(found, before, 100.0 + number / 10)
        assert (verdict.show is None) == (number < 50)


def test_a_new_file_of_a_tree_waits_for_its_siblings_although_no_close_was_seen() -> None:
    """Nobody has it open and it is old, but more files of the tree may follow: it is not shown alone."""
    one = StabilityFilter("/volume", Disk(writing=False))
    before = look(file(), single=False)
    found = look(file(), NEW, single=False)
    tell(one, WRITTEN, name="b")
    decision = one.decide(found, before, 100.0)
    assert decision.show is not None
    assert list(decision.show.snapshot) == ["a"]
    assert decision.retry_after == pytest.approx(stability.DIRECTORY_QUIET)
    decision = one.decide(found, before, 100.0 + stability.DIRECTORY_QUIET)
    assert decision.show is not None
    assert list(decision.show.snapshot) == ["a", "b"]
