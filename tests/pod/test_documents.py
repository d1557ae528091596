"""What README and NOTES tell a person to type is typed here, and says what they say it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pod import chart, cluster, podman, tools

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
README = (tools.CHART / "README.md").read_text()
LOGS = (tools.ROOT / "docs" / "logs.md").read_text()
LOG_COLLECTION = (tools.ROOT / "examples" / "log-collection" / "README.md").read_text()


class Shell:
    """A shell with a `helm install` and a `kubectl` for a cluster that is podman."""

    def __init__(self, directory: Path) -> None:
        cluster.install(directory / "bin", directory, tools.helm(4))
        volume = directory / "volume"
        volume.mkdir()
        volume.chmod(0o2775)
        os.chown(volume, 0, 65532)
        self.volume = volume
        mounts = " ".join(
            f"--volume={path}:{path}:ro" for path in podman.CERTIFICATES if Path(path).exists()
        )
        environment = podman.environment()
        self._environment = environment | {
            "PATH": f"{directory / 'bin'}:{environment['PATH']}",
            "BASE": podman.base(),
            "BUILD": mounts,
        }

    def settle(self) -> None:
        """Wait until the reader has found the file that the writer makes at its start: a person is not that fast."""
        podman.until(lambda: podman.get("http://127.0.0.1:30081").text == '""')

    def run(self, command: str) -> str:
        """Run a line as a person types it, with the ports of the stand-in; fails if it fails."""
        command = re.sub(r"localhost:80(80|81)\b", r"localhost:300\1", command)
        command = command.replace("//NODE:", "//localhost:")
        command = command.replace(
            "curl", "curl --silent --show-error --retry 10 --retry-all-errors --retry-delay 1"
        )
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=tools.ROOT, env=self._environment, capture_output=True, text=True, timeout=200, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()


@pytest.fixture
def shell(image: str) -> Iterator[Shell]:
    directory = Path(tempfile.mkdtemp(prefix="sidecar-test-"))
    directory.chmod(0o755)
    yield Shell(directory)
    podman.remove_pod("--all")
    shutil.rmtree(directory)


def blocks(heading: str, page: str = README) -> list[tuple[str, str]]:
    """Return the commands below a heading, each with what it is said to print."""
    section = re.split(
        r"^##+ ", page.partition(f" {heading}\n")[2], maxsplit=1, flags=re.MULTILINE
    )[0]
    found = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


@pytest.mark.parametrize("heading", ["Install", "The Pod of the article", "Without a cluster"])
def test_the_commands_of_the_readme_say_what_it_says(shell: Shell, heading: str) -> None:
    """Each `$` line is run in its order; where output is shown, that is the output."""
    commands = blocks(heading)
    assert len(commands) >= 3
    for command, output in commands:
        # The node of this test is a directory: /data stays as it is.
        if command.startswith("curl") and output == '"ok"':
            shell.settle()
        said = shell.run(command.replace("--set ", f"--set volume.hostPath.path={shell.volume},"))
        if output:
            assert said.splitlines()[-len(output.splitlines()) :] == output.splitlines(), command


@pytest.mark.parametrize("heading", ["In a cluster, with the chart", "Without a cluster"])
def test_the_commands_of_the_log_collection_show_the_lines(
    shell: Shell, shops_image: str, heading: str
) -> None:
    """Each is run in its order; `logs` shows what the application wrote, `--status` where the collector is."""
    commands = blocks(heading, LOG_COLLECTION)
    assert len(commands) >= 5
    for typed, _ in commands:
        command = typed.replace("podman build", "podman build --quiet --build-arg BASE=$BASE")
        if "--status" in command:
            podman.until(lambda command=command: "/var/log/app/app.log" in shell.run(command))
        elif " logs " in command:
            podman.until(lambda command=command: '"order 1 for' in shell.run(command))
        else:
            shell.run(command)


def test_the_commands_of_the_notes_work(shell: Shell) -> None:
    """What `helm install` prints is pasted, line by line, in one shell."""
    notes = shell.run("helm install demo charts/sidecar").partition("NOTES:")[2]
    lines = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    assert any(line.startswith("curl") for line in lines)
    shell.settle()
    said = shell.run("\n".join(lines))
    assert said.splitlines()[0].startswith('"ok"')
    assert '"123"' in said
    assert "write -> read: the same" in said
    assert "listening on" in said


def test_the_notes_of_node_ports_name_the_node(shell: Shell) -> None:
    """The article's NOTES ask the cluster for an address, and use the fixed ports."""
    command = "helm install test-pod charts/sidecar -f charts/sidecar/values-article.yaml"
    notes = shell.run(command).partition("NOTES:")[2]
    lines = [
        line.strip()
        for line in notes.splitlines()
        if line.startswith("  ") and "helm test" not in line
    ]
    shell.settle()
    said = shell.run("\n".join(lines))
    assert said.startswith('"ok""123"')
    assert (shell.volume / "gin" / "config").read_text() == "123"


def test_the_values_of_the_readme_render() -> None:
    """Each YAML block of the README, and that of the page on logs, is a values file that the chart takes."""
    import yaml

    found = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    found += re.findall(r"```yaml values\n(.*?)```", LOGS, re.DOTALL)
    assert len(found) >= 9
    for block in found:
        chart.render(yaml.safe_load(block))
