"""`sidecar doctor` on a volume of several users: what a publish would meet, it finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.cli.doctor import runner
from sidecar.cli.doctor.report import Finding
from sidecar.volume.volume import Volume
from support import as_user


def found(path: Path, subject: str) -> list[Finding]:
    """What is found of one subject that is not in order."""
    return [f for f in runner.examine(str(path)) if f.subject == subject and f.state != "ok"]


@pytest.fixture
def sticky(open_path: Path) -> Path:
    open_path.chmod(0o1777)
    return open_path


@pytest.mark.root
def test_a_file_that_the_sticky_bit_protects_is_found(sticky: Path) -> None:
    """What makes a publish fail makes the examination fail, with the owner and not with `fsGroup`."""
    (sticky / "config").write_text("theirs")
    with as_user(65532):
        (finding,) = found(sticky / "config", "publish")
    assert (finding.state, finding.roles) == ("wrong", ("write",))
    assert "belongs to user 0" in finding.text
    assert "sticky bit" in finding.text
    assert found(sticky / "config", "publish") == []  # its owner may


@pytest.mark.root
@pytest.mark.usefixtures("protected_symlinks")
def test_links_that_nobody_else_can_follow_are_found(sticky: Path) -> None:
    """proc_sys_fs(5), `protected_symlinks`: not if the directory is the publisher's own."""
    with as_user(65532):
        (finding,) = found(sticky, "links")
    assert finding.state == "note"
    assert "sticky bit" in finding.text
    os.chown(sticky, 65532, 65532)
    with as_user(65532):
        assert found(sticky, "links") == []


@pytest.mark.root
@pytest.mark.root
def test_a_set_of_another_user_under_the_sticky_bit_is_found(sticky: Path) -> None:
    """Each publish has to replace its link, also that of one file: doctor looks at what a publish does (issue 10, 11)."""
    (sticky / "..gen-1").mkdir()
    (sticky / "..data").symlink_to("..gen-1")
    with as_user(65532):
        wrong = [one.text for one in found(sticky, "publish") if one.state == "wrong"]
    assert [
        "the active set cannot be replaced: it belongs to user 0" in text for text in wrong
    ] == [True]


@pytest.mark.root
def test_a_set_is_tried_with_the_mode_and_group_of_the_writer(open_path: Path) -> None:
    """What this user may not give, a publish would be refused for."""
    with as_user(65532):
        tried = {
            one.text.split(":")[0]: one.state
            for group in (65532, 1)
            for one in runner.examine(str(open_path), mode=0o640, group=group)
            if one.subject == "set"
        }
    assert tried == {
        "a set of files, nested ones too, can be written": "ok",
        "a set cannot be published": "wrong",
    }


async def test_a_history_of_another_user_is_found(open_path: Path) -> None:
    """A user whose contents cannot be kept is told."""
    await Volume(open_path).put("config", "1")
    (open_path / "..versions").chmod(0o755)
    with as_user(65532):
        (finding,) = found(open_path, "history")
    assert "is not recorded: the directory belongs to user 0" in finding.text


async def test_a_damaged_link_and_what_lies_beside_a_set_are_found(tmp_path: Path) -> None:
    """The one is wrong, the other worth knowing; a set that is whole and alone is neither."""
    await Volume(tmp_path).publish({"a": "1"})
    assert found(tmp_path, "set") == []
    (tmp_path / "lonely").touch()
    (finding,) = found(tmp_path, "set")
    assert (finding.state, finding.text) == ("note", "readers ignore the files beside it: lonely")
    (tmp_path / "..data").unlink()
    (finding,) = found(tmp_path, "set")
    assert (finding.state, finding.text) == (
        "wrong",
        "the link ..data to the active set is missing",
    )
