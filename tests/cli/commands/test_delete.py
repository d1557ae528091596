"""`sidecar delete`: what shell scripts take back."""

from __future__ import annotations

from pathlib import Path

from support.commands import Command


def test_a_file_is_deleted_and_its_history_stays(command: Command, tmp_path: Path) -> None:
    """As `DELETE` by HTTP; a file that is not there is an error."""
    (tmp_path / "source").write_text("1")
    command("publish", "source", "--path", "v/config")
    assert command("delete", "--path", "v/config") == (0, "", "")
    assert [f.name for f in (tmp_path / "v").iterdir() if not f.name.startswith("..")] == []
    assert list((tmp_path / "v" / "..versions").rglob("0*"))
    missing = command("delete", "--path", "v/config")
    assert missing.code == 1
    assert "there is no such file" in missing.err


def test_a_purged_file_leaves_nothing(command: Command, tmp_path: Path) -> None:
    """Also one that was deleted before; a trial and a wrong condition change nothing."""
    (tmp_path / "source").write_text("secret")
    command("publish", "source", "--path", "v/config")
    assert command("delete", "--path", "v/config", "--purge", "--if-match", "0" * 32).code == 1
    assert command("delete", "--path", "v/config", "--purge", "--dry-run").code == 0
    assert (tmp_path / "v" / "config").exists()
    command("delete", "--path", "v/config")
    assert command("delete", "--path", "v/config", "--purge").code == 0
    assert not list((tmp_path / "v" / "..versions").rglob("0*"))


def test_a_directory_that_is_not_there_is_not_made(command: Command, tmp_path: Path) -> None:
    """A mistyped path leaves no trace."""
    assert command("delete", "--path", "nowhere/config").code == 1
    assert not (tmp_path / "nowhere").exists()
