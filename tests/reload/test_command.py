"""A command knows the version, and leaves nothing behind."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

import sidecar
from sidecar.reload import ActionFailed, Change, Command

CHANGE = Change("/config/", "e3b0c44298fc1c149afbf4c8996fb924", ("a.json", "b.json"))


async def test_it_is_told_by_its_environment_and_its_standard_input(tmp_path: Path) -> None:
    """A shell takes the variables, a program the JSON."""
    told = "$SIDECAR_VERSION|$SIDECAR_ETAG|$SIDECAR_PATH|$SIDECAR_CHANGED"
    script = f'cat > {tmp_path}/stdin; printf %s "{told}" > {tmp_path}/environment'
    await Command(["sh", "-c", script]).run(CHANGE)
    assert json.loads((tmp_path / "stdin").read_bytes()) == {
        "path": "/config/",
        "version": CHANGE.version,
        "etag": f'"{CHANGE.version}"',
        "changed": ["a.json", "b.json"],
    }
    expected = f'{CHANGE.version}|"{CHANGE.version}"|/config/|a.json\nb.json'
    assert (tmp_path / "environment").read_text() == expected


async def test_input_that_nobody_reads_holds_up_nothing() -> None:
    """More names than a pipe holds (64 KiB, pipe(7))."""
    many = Change("/x", CHANGE.version, tuple(f"file-{number}" for number in range(20_000)))
    await Command(["true"]).run(many)
    await Command(["sh", "-c", f"test $(wc -c) = {len(many.json())}"]).run(many)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 3", "command sh exited with 3: broken"),
        ("kill -9 $$", "command sh was killed by signal 9"),
    ],
)
async def test_its_exit_status_decides_and_its_output_says_why(script: str, said: str) -> None:
    """0 is success, and nothing else."""
    with pytest.raises(ActionFailed) as failed:
        await Command(["sh", "-c", script]).run(CHANGE)
    assert str(failed.value) == said


async def test_at_the_time_limit_all_that_it_has_started_ends() -> None:
    """Also what has made a session of its own: each is found by the version in its environment."""
    change = Change("/x", uuid.uuid4().hex, ())
    script = "sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; wait"
    with pytest.raises(ActionFailed, match=r"did not end within 0\.5 s, and was killed"):
        await Command(["sh", "-c", script], timeout=0.5).run(change)
    assert [
        pid for pid, told in environments() if f"SIDECAR_VERSION={change.version}" in told
    ] == []


def environments() -> list[tuple[str, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found.append((path.parent.name, path.read_text(errors="replace")))
    return found


async def test_a_program_that_was_removed_is_said_to_be_gone(tmp_path: Path) -> None:
    """The image may have changed; trying again is right where it comes back."""
    program = tmp_path / "hook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = Command([str(program)])
    program.unlink()
    with pytest.raises(ActionFailed, match="cannot be started: No such file or directory"):
        await command.run(CHANGE)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "is empty"),
        (["no-such-program"], "no-such-program is not found"),
        ("true", "command must be several texts"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command: object, said: str) -> None:
    """At the start, and not at the first change."""
    with pytest.raises(sidecar.ConfigError, match=said):
        Command(command)  # type: ignore[arg-type]
