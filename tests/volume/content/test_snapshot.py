"""A snapshot is what it says: immutable, whole, and of the same version wherever its content is the same."""

from __future__ import annotations

import gc
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import Snapshot
from sidecar.volume.content.snapshot import version_of_set


def test_a_snapshot_is_a_mapping_that_nobody_changes() -> None:
    """Of names to bytes; what it was made of may change."""
    files: dict[str, bytes | str] = {"b": b"2", "a": "é"}
    snapshot = Snapshot.of(files)
    files["c"] = b"3"
    assert dict(snapshot) == {"a": "é".encode(), "b": b"2"}
    assert snapshot.text("a") == "é"
    assert snapshot.size == 3
    for attribute in ("version", "value", "etag", "other"):
        with pytest.raises(AttributeError):
            setattr(snapshot, attribute, None)
    with pytest.raises(TypeError):
        snapshot["a"] = b""  # type: ignore[index]


def test_of_a_single_file_no_name_is_needed() -> None:
    """It has one, and that is the default."""
    one = Snapshot.of({"config": '{"a": 1}'}, single=True)
    assert (one.name, one.data, one.json()) == ("config", b'{"a": 1}', {"a": 1})
    assert one.version == hashlib.sha256(one.data).hexdigest()[:32]
    assert repr(one) == f"<Snapshot version={one.version[:8]} name='config'>"
    many = Snapshot.of({"config": "{}"})
    assert many.name is None
    with pytest.raises(TypeError, match="say which file"):
        _ = many.data
    with pytest.raises(KeyError):
        many.text("none")


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
sets = st.dictionaries(names, st.binary(max_size=8), max_size=5)


@given(sets, sets)
def test_the_version_is_the_same_exactly_where_the_content_is(
    one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    """Not where names and contents look alike when they are put in a row; the order does not matter."""
    first, second = Snapshot.of(one), Snapshot.of(other)
    assert (first.version == second.version) == (one == other)
    assert first == Snapshot.of(dict(reversed(one.items())))
    assert hash(first) == hash(Snapshot.of(one))
    assert first.changed(second) == {
        name for name in one | other if one.get(name) != other.get(name)
    }
    assert first.changed(None) == set(one)


def test_a_new_name_among_thousands_sets_off_no_garbage_collection() -> None:
    """A collection of all that a reader holds takes tens of milliseconds, in which no change is seen."""
    names = [f"d{number // 10:03}/f{number % 10}" for number in range(10_000)]
    snapshot = Snapshot.of(dict.fromkeys(names, b"0"))
    changed = {"d500/.new": Snapshot.of({"d500/.new": b"1"}).content("d500/.new")}
    snapshot.replaced(changed, [])
    collections: list[int] = []

    def count(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collections.append(info["generation"])

    gc.collect()
    gc.callbacks.append(count)
    try:
        found = snapshot.replaced(changed, [])
    finally:
        gc.callbacks.remove(count)
    assert list(found) == sorted([*names, "d500/.new"])
    assert found.version == version_of_set({name: found.content(name).version for name in found})
    assert len(collections) <= 1
