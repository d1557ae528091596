"""`sidecar doctor`: what a volume can do, what is wrong, how to mend it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.fs import atomic
from support import environment
from support.commands import Command, Result

Script = Callable[[str], Result]
DOCTOR = f"{sys.executable} -m sidecar.cli doctor"


@pytest.fixture
def alone(tmp_path: Path) -> Script:
    """`alone("mount …; doctor …")`: run a script in mounts of its own, in an empty directory."""

    def run(script: str) -> Result:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=30.0,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def lines(report: str, subject: str) -> str:
    """The lines on one subject, with their remedies."""
    found, inside = [], False
    for line in report.splitlines():
        inside = line[2:].startswith(subject) or (inside and line.startswith("   "))
        if inside:
            found.append(line)
    return "\n".join(found)


def everything(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_ino) for path in directory.rglob("*"))


@pytest.mark.parametrize("path", ["shared", "shared/config", "shared/none"])
def test_a_good_volume_is_fit_and_stays_as_it_was(
    path: str, command: Command, tmp_path: Path
) -> None:
    """Exit code 0, and nothing is left of what was tried; for a directory, a file, and one still to come."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "config").write_text("hello")
    before = everything(tmp_path)
    done = command("doctor", "--path", path)
    assert done.code == 0, done
    assert "✗" not in done.out
    for subject in ("process", "path", "mount", "space", "publish", "layout", "content", "events"):
        assert lines(done.out, subject), f"nothing is said on {subject}"
    assert "inotify events arrive" in done.out
    assert done.out.endswith(f"{path}: fit for reading and writing\n")
    assert everything(tmp_path) == before


def test_a_path_that_does_not_exist_yet_is_no_fault(command: Command) -> None:
    """A reader may start before its volume holds anything."""
    done = command("doctor", "--path", "not/there/yet")
    assert done.code == 0
    assert "not there yet: a reader waits for it" in done.out


def test_the_report_is_also_one_json_object(command: Command, tmp_path: Path) -> None:
    """For programs: the same findings, each with its state and its remedy."""
    os.mkfifo(tmp_path / "config")
    done = command("doctor", "--path", "config", "--json")
    report = json.loads(done.out)
    assert done.code == 1
    assert (report["path"], report["for"], report["ok"]) == ("config", "both", False)
    (wrong,) = [one for one in report["findings"] if one["state"] == "wrong"]
    assert wrong["subject"] == "path"
    assert "a FIFO" in wrong["text"]
    assert wrong["remedy"]
    assert wrong["for"] == ["read", "write"]


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "leads out of the directory"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (os.mkfifo, "a FIFO"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "limit"),
    ],
)
def test_what_must_not_be_served_is_found(
    plant: Callable[[Path], None], said: str, command: Command, tmp_path: Path
) -> None:
    """As the reader refuses it: links out, devices, giants."""
    plant(tmp_path / "config")
    done = command("doctor", "--path", "config")
    assert done.code == 1
    assert said in done.out
    assert "✗" in done.out


def test_what_only_readers_mind_does_not_fail_a_writer(command: Command, tmp_path: Path) -> None:
    """`--for write` leaves out what a writer never meets."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "bad").symlink_to("/etc/passwd")
    assert command("doctor", "--path", "shared", "--for", "write").code == 0
    assert command("doctor", "--path", "shared", "--for", "read").code == 1


def test_a_configmap_is_good_to_read_and_not_to_write(command: Command, tmp_path: Path) -> None:
    """kubelet would overwrite what others publish there."""
    shared = tmp_path / "shared"
    (shared / "..2025_01_01").mkdir(parents=True)
    (shared / "..2025_01_01" / "key").write_text("value")
    (shared / "..data").symlink_to("..2025_01_01")
    (shared / "key").symlink_to("..data/key")
    read = command("doctor", "--path", "shared", "--for", "read")
    assert read.code == 0, read
    assert "a ConfigMap, Secret or projected volume" in read.out
    assert "one file, 5 bytes" in read.out
    write = command("doctor", "--path", "shared", "--for", "write")
    assert write.code == 1
    assert "publish to a volume of its own" in write.out


def test_a_set_of_ours_and_its_history_are_recognised(command: Command, tmp_path: Path) -> None:
    """What `sidecar publish` leaves is named as such."""
    (tmp_path / "source").mkdir()
    for content in ("1", "2"):
        (tmp_path / "source" / "name").write_text(content)
        assert command("publish", "source", "--path", "shared").code == 0
    done = command("doctor", "--path", "shared")
    assert done.code == 0
    assert "a set published by sidecar" in lines(done.out, "layout")


def test_left_overs_of_killed_writers_are_counted(command: Command, tmp_path: Path) -> None:
    """Old ones only: a young one may belong to a publish that is going on."""
    for name, age in (("..tmp-old", 3600.0), ("..tmp-young", 0.0), ("..data_tmp", 3600.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    done = command("doctor", "--path", tmp_path)
    assert "2 of a writer that was killed: ..data_tmp, ..tmp-old" in done.out
    assert done.code == 0


@pytest.mark.root
def test_a_read_only_mount_is_wrong_for_writers_only(alone: Script) -> None:
    """With the word that stands in the Pod's manifest: readOnly."""
    mount = "mkdir shared; mount -t tmpfs -o ro none shared; "
    written = alone(mount + f"{DOCTOR} --path shared")
    assert written.code == 1
    assert "✗ mount      mounted read-only" in written.out
    assert "mount it without readOnly" in written.out
    assert alone(f"mount -t tmpfs -o ro none shared; {DOCTOR} --path shared --for read").code == 0


@pytest.mark.root
def test_a_mount_of_a_single_file_is_wrong(alone: Script) -> None:
    """subPath: it cannot be replaced, and shows no update."""
    done = alone(f"echo 1 > a; echo 2 > b; mount --bind a b; {DOCTOR} --path b")
    assert done.code == 1
    assert "✗ mount      the file itself is a mount point (subPath)" in done.out
    assert "without subPath" in done.out


@pytest.mark.root
def test_a_full_volume_is_wrong_for_writers_only(alone: Script) -> None:
    """Before the first publish fails with 507."""
    fill = "mount -t tmpfs -o size=64k none shared; dd if=/dev/zero of=shared/x bs=64k count=1 2>/dev/null; "
    done = alone(f"mkdir shared; {fill} {DOCTOR} --path shared")
    assert done.code == 1
    assert "✗ space      0 bytes free" in done.out
    assert "✗ publish    a publish fails: no space" in done.out
    assert alone(f"{fill} {DOCTOR} --path shared --for read").code == 0


@pytest.mark.root
def test_a_small_volume_of_memory_is_worth_a_note(alone: Script) -> None:
    """Replacing a file needs room for both contents."""
    done = alone(f"mkdir shared; mount -t tmpfs -o size=64k none shared; {DOCTOR} --path shared")
    assert done.code == 0
    assert "✓ mount      tmpfs, mounted at " in done.out
    assert "! space      64.0 KiB free" in done.out


@pytest.mark.root
def test_a_directory_of_another_user_is_wrong_for_writers(alone: Script) -> None:
    """Root without capabilities, as in a restricted Pod; the remedy names fsGroup."""
    done = alone(
        "mkdir shared; chown 1234:1234 shared;"
        "export KUBERNETES_SERVICE_HOST=10.0.0.1;"
        f"setpriv --bounding-set -all --inh-caps -all {DOCTOR} --path shared"
    )
    assert done.code == 1
    assert "owner 1234, group 1234, mode 0755" in done.out
    assert "✗ access" in done.out
    assert "fsGroup" in lines(done.out, "access")


def test_a_large_content_is_none_for_a_reader_with_a_larger_limit(
    command: Command, tmp_path: Path
) -> None:
    """What `read --max-size` serves is no fault of the volume (issue 10, point 11)."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 << 20)
    assert command("doctor", "--path", "large", "--max-size", "1Mi").code == 1
    assert command("doctor", "--path", "large", "--max-size", "4Mi").code == 0


def test_a_circle_of_links_is_called_that(command: Command, tmp_path: Path) -> None:
    """The remedy fits the finding: no group helps against it."""
    (tmp_path / "config").symlink_to("config")
    report = lines(command("doctor", "--path", "config").out, "path")
    assert "its links lead in a circle" in report
    assert "remove one of the links" in report
    assert "fsGroup" not in report


def test_an_upload_under_way_is_no_left_over(command: Command, tmp_path: Path) -> None:
    """Its writer lives, however long it takes: the lock of its file says so."""
    fd = os.open(tmp_path, os.O_RDONLY)
    upload = atomic.TempFile(fd)
    try:
        past = time.time() - 3600
        os.utime(tmp_path / upload.name, (past, past))
        assert "left-overs" not in command("doctor", "--path", ".").out
    finally:
        upload.discard()
        os.close(fd)
