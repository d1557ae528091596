"""Which names count: never what is no content, and of loose files those that were asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.testing import ConfigMapVolume, until
from sidecar.volume.content import listing
from sidecar.volume.content.filters import Filter
from support.watching import consumer, replace


def listed(path: Path) -> set[str]:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = listing.list_visible(fd, 1000)
        return {*found.files, *found.problems}
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "name",
    [
        ".nfs000000000002c5e900000001",  # linux/fs/nfs/unlink.c: SILLYNAME_PREFIX, file id, counter
        ".fuse_hidden0000000200000001",  # libfuse, lib/fuse.c: hidden_name
        "a\nb",
        "a\x7f",
        "\x01\u00e9",
        "lost+found",
        "..hidden",
    ],
)
def test_names_that_are_no_content_are_not_listed(tmp_path: Path, name: str) -> None:
    """Others beside them are, also those that begin alike."""
    for one in (name, ".nfs", ".nfsrc", ".fuse_hidden", "\u00e9"):
        (tmp_path / one).write_text("x")
    assert listed(tmp_path) == {".nfs", ".nfsrc", ".fuse_hidden", "\u00e9"}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.conf", True), ("a.txt", False), ("sites/b.conf", True), (".git/c.conf", False),
        ("sites/off/d.conf", False), ("a.conf~", False), ("A.CONF", False),
    ],
)  # fmt: skip
def test_patterns_say_which_loose_files_count(tmp_path: Path, name: str, counts: bool) -> None:
    """As shells have them: with a `/` for the whole name, without for its last part."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    wanted = Filter(include=("*.conf",), exclude=(".git", "sites/off"))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert (name in listing.list_visible(fd, 99, listing.Scope(wanted)).files) == counts
    finally:
        os.close(fd)


async def test_what_editors_leave_is_no_version_unless_it_is_asked_for(tmp_path: Path) -> None:
    """Vim's swap file, backup and probe, the locks and backups of Emacs: none of them is content."""
    replace(tmp_path / "a", "0")
    litter = (".a.swp", "a~", "4913", "#a#", ".#a")
    async with consumer(f"{tmp_path}/") as seen, consumer(f"{tmp_path}/", exclude=()) as everything:
        await seen.converge({"a": "0"})
        for name in litter:
            replace(tmp_path / name, "x")
        await until(lambda: everything and set(everything[-1]) == {"a", *litter})
        replace(tmp_path / "a", "1")
        await seen.converge({"a": "1"})
        assert len(seen) == 2


async def test_a_set_of_generations_is_shown_whole_whatever_its_names(tmp_path: Path) -> None:
    """Somebody has published it so."""
    ConfigMapVolume(tmp_path).update({"a~": "0", "b.swp": "0"})
    async with consumer(tmp_path, include=("nothing",)) as seen:
        await seen.converge({"a~": "0", "b.swp": "0"})
