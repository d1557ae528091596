"""`sidecar publish`: what shell scripts and init containers rely on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.fs import openat
from sidecar.volume.content.snapshot import version_of
from support import StartProcess
from support.commands import Command


def visible(directory: Path) -> dict[str, str]:
    """What a consumer sees: names without two dots, links followed."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not any(p.startswith("..") for p in path.relative_to(directory).parts)
    } | {
        f"{link.name}/{path.relative_to(link)}": path.read_text()
        for link in directory.iterdir()
        if link.is_symlink() and link.is_dir() and not link.name.startswith("..")
        for path in link.rglob("*")
        if path.is_file()
    }


def test_a_file_is_published_and_its_version_printed(command: Command, tmp_path: Path) -> None:
    """stdout holds the version and nothing else, so a script can keep it: the digest of the bytes."""
    (tmp_path / "source").write_bytes(b"hello\n")
    done = command("publish", "source", "--path", "shared/deep/config")
    assert done == (0, hashlib.sha256(b"hello\n").hexdigest()[:32] + "\n", "")
    target = tmp_path / "shared" / "deep" / "config"
    assert target.read_bytes() == b"hello\n"
    assert target.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path / "shared") == ["deep"]


def test_publishing_it_again_is_a_success_that_changes_nothing(
    command: Command, tmp_path: Path
) -> None:
    """An init container that runs twice must not fail, nor wake any consumer."""
    (tmp_path / "source").write_text("hello")
    first = command("publish", "source", "--path", "config")
    before = openat.StatSignature.of((tmp_path / "config").stat())
    assert command("publish", "source", "--path", "config") == first
    assert openat.StatSignature.of((tmp_path / "config").stat()) == before


def test_standard_input_is_published_bytes_and_all(command: Command, tmp_path: Path) -> None:
    """`-` is standard input, of any size, and not only text."""
    content = os.urandom(3 << 20)
    assert command("publish", "-", "--path", "config", stdin=content).code == 0
    assert (tmp_path / "config").read_bytes() == content


def test_a_fifo_is_published_once_its_writer_has_ended(
    sidecar_process: StartProcess, tmp_path: Path
) -> None:
    """Whoever writes to it may come late, and may be slow: nothing is published before it has ended."""
    fifo, config = tmp_path / "fifo", tmp_path / "config"
    os.mkfifo(fifo)
    process = sidecar_process("publish", fifo, "--path", config)
    with fifo.open("wb") as writer:
        for piece in (b"a", b"b", b"c"):
            writer.write(piece)
            writer.flush()
        assert not config.exists()
    assert process.wait(20) == 0
    assert config.read_bytes() == b"abc"


@pytest.mark.parametrize("source", ["fifo", "-"])
def test_the_first_signal_ends_the_wait_for_a_source(
    source: str, sidecar_process: StartProcess, tmp_path: Path
) -> None:
    """Nobody has written, and perhaps nobody ever will: one signal is enough, and says that nothing was published."""
    os.mkfifo(tmp_path / "fifo")
    silent, writer = os.pipe()
    process = sidecar_process(
        "publish", source, "--path", "config", cwd=tmp_path, stdin=silent,
        until=lambda: any(name.startswith("..tmp-") for name in os.listdir(tmp_path)),
    )  # fmt: skip
    assert process.stop() == 1
    assert f"stopped by a signal; {source} was not published" in process.output
    assert os.listdir(tmp_path) == ["fifo"]
    os.close(silent)
    os.close(writer)


@pytest.mark.parametrize("path", ["shared", "shared/"])
def test_a_file_goes_into_a_directory_under_its_own_name(
    path: str, command: Command, tmp_path: Path
) -> None:
    """As cp(1) does: the other files stay."""
    (tmp_path / "source.txt").write_text("new")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "other.txt").write_text("old")
    assert command("publish", "source.txt", "--path", path).code == 0
    assert visible(tmp_path / "shared") == {"other.txt": "old", "source.txt": "new"}


def test_a_path_with_a_slash_is_a_directory_that_is_made(command: Command, tmp_path: Path) -> None:
    """A volume that is still empty has no directory to tell by."""
    (tmp_path / "source.txt").write_text("new")
    assert command("publish", "source.txt", "--path", "shared/").code == 0
    assert visible(tmp_path / "shared") == {"source.txt": "new"}


def test_a_directory_is_published_as_a_set_with_nested_names(
    command: Command, tmp_path: Path
) -> None:
    """Whole: what the source does not have any more is gone from the set."""
    source = tmp_path / "source"
    (source / "templates").mkdir(parents=True)
    (source / "index.html").write_text("1")
    (source / "templates" / "page.html").write_text("2")
    first = command("publish", "source", "--path", "shared")
    assert first.code == 0
    assert visible(tmp_path / "shared") == {"index.html": "1", "templates/page.html": "2"}
    (source / "index.html").unlink()
    second = command("publish", "source", "--path", "shared")
    assert second.code == 0
    assert second.out != first.out
    assert visible(tmp_path / "shared") == {"templates/page.html": "2"}


def test_a_configmap_volume_can_be_the_source(command: Command, tmp_path: Path) -> None:
    """Its links stay inside, its `..data` is how it is made and no content."""
    source = tmp_path / "source"
    (source / "..2025_01_01").mkdir(parents=True)
    (source / "..2025_01_01" / "key").write_text("value")
    (source / "..data").symlink_to("..2025_01_01")
    (source / "key").symlink_to("..data/key")
    assert command("publish", "source", "--path", "shared").code == 0
    assert visible(tmp_path / "shared") == {"key": "value"}


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd"])
def test_a_link_that_leaves_the_source_is_refused(
    target: str, command: Command, tmp_path: Path
) -> None:
    """Nothing from outside is published, and nothing at all: half a set would be worse than none."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "good").write_text("good")
    (tmp_path / "source" / "bad").symlink_to(target)
    done = command("publish", "source", "--path", "shared")
    assert done.code == 1
    assert "source/bad" in done.err
    assert not (tmp_path / "shared").exists()


def test_an_empty_directory_is_refused(command: Command, tmp_path: Path) -> None:
    """It would take away every file that is there, and is far more often a mistake."""
    (tmp_path / "source").mkdir()
    done = command("publish", "source", "--path", "shared")
    assert done.code == 1
    assert "it holds no file" in done.err


def test_a_directory_does_not_replace_a_file(command: Command, tmp_path: Path) -> None:
    """What is meant is not clear, so nothing happens."""
    (tmp_path / "source").mkdir()
    (tmp_path / "config").write_text("old")
    done = command("publish", "source", "--path", "config")
    assert done.code == 2
    assert "config is a file" in done.err
    assert (tmp_path / "config").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "content", "said"),
    [
        (["--format", "json"], "{", "not valid JSON"),
        (["--format", "text"], b"\xff", "not UTF-8"),
        (["--max-size", "1k"], "x" * 1001, "1000"),
        (["--check", "grep -q debug"], "nothing of it", "grep"),
        (["--schema", "schema.json"], '{"port": "http"}', "/port"),
    ],
)
def test_refused_content_leaves_the_old_one(
    options: list[str], content: str | bytes, said: str, command: Command, tmp_path: Path
) -> None:
    """Exit code 1, one line with the reason, and the file as it was."""
    (tmp_path / "schema.json").write_text(json.dumps({"properties": {"port": {"type": "integer"}}}))
    (tmp_path / "config").write_text("old")
    raw = content.encode() if isinstance(content, str) else content
    done = command("publish", "-", "--path", "config", *options, stdin=raw)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert (tmp_path / "config").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["config", "schema.json"]


@pytest.mark.parametrize("what", ["publish", "delete"])
def test_a_failure_is_told_once(command: Command, tmp_path: Path, what: str) -> None:
    """By the error that the command ends with: the same line in the log would be a second one on the same terminal."""
    (tmp_path / "new").write_text("new")
    made = ("publish", "new") if what == "publish" else ("delete",)
    code, _, error = command(*made, "--path", "/proc/config")
    assert (code, error.count("\n"), error[:16]) == (1, 1, "sidecar: cannot ")


def test_a_condition_that_does_not_hold_is_a_failure(command: Command, tmp_path: Path) -> None:
    """With the version in force, so that a script can look again; quotes are not needed."""
    (tmp_path / "config").write_text("old")
    old, wrong = version_of(b"old"), version_of(b"older")
    done = command("publish", "-", "--path", "config", "--if-match", wrong, stdin=b"new")
    assert done.code == 1
    assert old in done.err
    assert (tmp_path / "config").read_text() == "old"
    assert command("publish", "-", "--path", "config", "--if-match", old, stdin=b"new").code == 0
    assert command("publish", "-", "--path", "other", "--if-match", "*", stdin=b"new").code == 1
    assert (tmp_path / "config").read_text() == "new"


def test_if_missing_publishes_once_and_leaves_what_is_there(
    command: Command, tmp_path: Path
) -> None:
    """An init container runs at each start of its Pod, and must not take back what was written since."""
    (tmp_path / "source").mkdir()
    for text in ("first", "second"):
        (tmp_path / "source" / "a").write_text(text)
        for source, path in (("source/a", "file"), ("source", "set/")):
            done = command("publish", source, "--path", path, "--if-missing")
            assert done == (0, version_of(b"first") + "\n" if path == "file" else done[1], "")
    assert (tmp_path / "file").read_text() == "first"
    assert visible(tmp_path / "set") == {"a": "first"}


def test_a_dry_run_validates_and_changes_nothing(command: Command, tmp_path: Path) -> None:
    """The version that it would have, or the refusal that it would get."""
    (tmp_path / "config").write_text("old")
    dry = ("publish", "-", "--path", "config", "--dry-run", "--format", "json")
    done = command(*dry, stdin=b"[]")
    assert done[:2] == (0, version_of(b"[]") + "\n")
    assert "checked size, format, names, paths, free space and permissions" in done.err
    assert "it would replace config with 2 bytes of standard input" in done.err
    assert command(*dry, stdin=b"[").code == 1
    assert (tmp_path / "config").read_text() == "old"
    missing = ("publish", "-", "--path", "not/yet/config", "--dry-run")
    done = command(*missing, stdin=b"[]")
    assert done[:2] == (0, version_of(b"[]") + "\n")
    assert "it would create not/yet/config with 2 bytes" in done.err
    assert os.listdir(tmp_path) == ["config"]


def test_mode_and_history_follow_the_options(command: Command, tmp_path: Path) -> None:
    """Whatever the umask; and `--keep 0` keeps nothing."""
    command("publish", "-", "--path", "a/config", "--mode", "600", "--keep", "0", stdin=b"1")
    command("publish", "-", "--path", "a/config", "--mode", "600", "--keep", "0", stdin=b"2")
    command("publish", "-", "--path", "b/config", stdin=b"1")
    assert (tmp_path / "a" / "config").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path / "a")) == ["..lock", "config"]
    assert sorted(os.listdir(tmp_path / "b")) == ["..lock", "..versions", "config"]


def test_options_come_from_variables(command: Command, tmp_path: Path) -> None:
    """An init container is configured by `env` as well as by `args`."""
    done = command(
        "publish", "-", env={"SIDECAR_PUBLISH_PATH": "config", "SIDECAR_PUBLISH_FORMAT": "json"}
    )
    assert done.code == 1
    assert "not valid JSON" in done.err
    assert not (tmp_path / "config").exists()


# Sources


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda s: os.symlink("sub", s / "current"), "current (a link to a directory)"),
        (lambda s: os.symlink("gone", s / "lost"), "lost (a link that leads nowhere)"),
        (lambda s: os.symlink("gone", s / "sub" / "lost"), "sub/lost (a link that leads nowhere)"),
        (lambda s: os.symlink("/etc/hostname", s / "out"), "out"),
        (
            lambda s: Path(os.fsdecode(os.fsencode(s) + b"/caf\xe9")).touch(),
            "its name is not UTF-8",
        ),
        (lambda s: deep(s, 33), "more than 32 directories deep"),
        (lambda s: deep(s, 80), "more than 32 directories deep"),
    ],
)
def test_what_cannot_be_in_a_set_is_refused_by_name(
    command: Command, tmp_path: Path, plant: Callable[[Path], object], told: str
) -> None:
    """A publisher publishes all of a directory or refuses it: nothing is left out in silence."""
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a").write_text("1")
    plant(tmp_path / "source")
    done = command("publish", "source", "--path", "shared/")
    assert done.code == 1, done
    assert told in done.err
    assert not (tmp_path / "shared" / "..data").exists()


def deep(source: Path, levels: int) -> None:
    """Put a file below so many directories."""
    for number in range(levels):
        source /= f"d{number}"
    source.mkdir(parents=True)
    (source / "leaf").write_text("1")


def test_all_of_a_directory_is_published_that_can_be(command: Command, tmp_path: Path) -> None:
    """32 directories deep, links to files, hidden names; not what begins with two dots, which no consumer reads."""
    source = tmp_path / "source"
    source.mkdir()
    deep(source, 32)
    (source / ".hidden").write_text("1")
    (source / "..ours").write_text("1")
    (source / "lost+found").mkdir()
    (source / "empty").mkdir()
    (source / "link").symlink_to(".hidden")
    assert command("publish", "source", "--path", "shared/").code == 0
    leaf = "/".join(f"d{number}" for number in range(32)) + "/leaf"
    assert visible(tmp_path / "shared") == {".hidden": "1", "link": "1", leaf: "1"}


def test_what_lies_beside_the_set_of_a_source_is_named(command: Command, tmp_path: Path) -> None:
    """The source is a volume itself: its set is what is published."""
    command("publish", "-", "--path", "source/loose", stdin=b"1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_text("1")
    command("publish", "set", "--path", "source/")
    done = command("publish", "source", "--path", "shared/")
    assert done.code == 0
    assert "the files beside it are not published: loose" in done.err
