"""The blocks of a page of the documentation: run in order as a reader types them, or checked where they need a cluster.

A fence names a language and, after it, what is to be done:

    ```console              each `$` command is run in a shell; what it prints is compared with the lines below it
    ```console cluster      needs a cluster: charts are rendered, manifests and command lines are checked
    ```LANGUAGE title="x"   a file, saved under this name where the commands run
    ```yaml values          values for the chart: rendered
    ```LANGUAGE             checked: syntax, manifests, pipelines of `sidecar collect`, command lines

In printed lines `…` stands for what differs from run to run; a line that is only `…` stands for any lines.
A command that only looks (`curl` without a body, `cat`, `ls`) is repeated until it prints that, as a reader who types slowly would find it.
After a command that ends with `&`, or with `&` and a comment, the next one waits for the lines below it, or for the ports that it names.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pod import chart, tools
from sidecar.cli import main
from sidecar.mirror.sources.factory import make_source

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

MAX_SECONDS_OF_A_COMMAND = 90.0
"""A command that takes longer hangs."""
MAX_SECONDS_UNTIL_SEEN = 60.0
"""A change that is not seen until then is not seen."""

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LOOKS = re.compile(
    r"(curl|cat|ls|tail|grep)\b(?!.*(content=|dry_run| -X | -T | --data| -d | --upload-file|/reload))"
)
_PORTS = {"write": 8080, "read": 8081}
UNSHARED = ("unshare", "--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")
"""Runs a program on this machine, in a network and with processes of its own."""
_SETUP = """
set -e
ip link set lo up
mount --make-rprivate /
for directory in /shared /tmp/gin /var/log; do mount -t tmpfs none $directory; done
exec bash --norc --noprofile "$0"
"""
_DRIVER = """
while read -r number; do
    . ".commands/$number" </dev/null >".commands/$number.out" 2>&1
    echo "$?"
done
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, the name of the file that it is, and its text."""

    language: str
    words: frozenset[str]
    title: str | None
    text: str
    line: int


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        language, options, body = match.groups()
        title = re.search(r'title="([^"]+)"', options)
        words = frozenset(re.sub(r'\w+="[^"]*"', "", options).split())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, words, title[1] if title else None, body, line))
    return found


def read_commands(text: str) -> list[tuple[str, list[str]]]:
    """Split a console block into commands, each with the lines that it prints."""
    found: list[tuple[list[str], list[str]]] = []
    end: str | None = None
    for line in text.splitlines():
        command, output = found[-1] if found else ([], [])
        if end is not None:
            command.append(line)
            end = None if line == end else end
        elif command and command[-1].endswith("\\") and not output:
            command.append(line)
        elif line.startswith("$ "):
            found.append(([line[2:]], []))
            here = re.search(r"<<'(\w+)'", line)
            end = here[1] if here else None
        elif found:
            output.append(line)
        else:
            pytest.fail(f"a console block begins with `$ `, and this one with: {line}")
    return [("\n".join(command), output) for command, output in found]


def matches(expected: list[str], printed: str) -> bool:
    """Tell whether output is what a page shows."""
    lines = [re.escape(line.rstrip()).replace("…", ".*") for line in expected]
    pattern = "".join("(?:.*\n)*?" if line == ".*" else f"{line}\n" for line in lines)
    shown = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    return re.fullmatch(pattern, shown) is not None


class Machine:
    """A shell on a machine of its own: own network, own processes, empty /shared, /tmp/gin and /var/log.

    `container` is a command that starts a container and runs there what follows it; otherwise it is the machine's own namespaces.
    """

    def __init__(
        self, directory: Path, *, needs_helm: bool, programs: Path, container: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        (directory / ".commands").mkdir()
        (directory / ".commands/driver").write_text(_DRIVER)
        if needs_helm:
            (directory / ".bin").mkdir()
            # A container does not have the cache of this machine.
            place = shutil.copy if container else os.symlink
            place(tools.helm(4), directory / ".bin/helm")
        (directory / ".curlrc").write_text("silent\nshow-error\n")  # as on a terminal
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")
        }
        shell = ("bash", "--norc", "--noprofile", ".commands/driver")
        unshared = (*UNSHARED, "sh", "-c", _SETUP, ".commands/driver")
        self._shell = subprocess.Popen(
            [*container, *shell] if container else unshared,
            cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=ours | {"HOME": str(directory), "PATH": f"{programs}:{directory}/.bin:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self._number = 0
        self._background: list[tuple[str, Path]] = []

    def close(self) -> None:
        """End all that runs there."""
        self._shell.kill()
        self._shell.communicate()

    def run(self, command: str, expected: list[str]) -> None:
        """Run a command as a reader types it; fails unless it exits with 0 and prints what is expected."""
        if re.search(r"&( # .*)?$", command):
            self._begin(command, expected)
            return
        limit = time.monotonic() + MAX_SECONDS_UNTIL_SEEN
        while True:
            status, printed = self._execute(command)
            if status == 0 and (matches(expected, printed) if expected else True):
                return
            if not _LOOKS.match(command) or time.monotonic() > limit:
                wanted = "\n".join(expected)
                self._fail(f"$ {command}\nexit {status}\n{printed}\n--- the page says\n{wanted}")
            time.sleep(0.02)

    def _begin(self, command: str, expected: list[str]) -> None:
        _, _ = self._execute(command)
        output = self.directory / f".commands/{self._number}.out"
        self._background.append((command, output))
        if expected:
            shown = [line for one in expected for line in ("…", one)]
            self._wait(command, lambda: matches([*shown, "…"], output.read_text()))
        for port in () if expected else _ports(command):
            self._wait(
                command, lambda port=port: self._execute(f"true </dev/tcp/localhost/{port}")[0] == 0
            )

    def _wait(self, command: str, condition: Any) -> None:
        limit = time.monotonic() + MAX_SECONDS_UNTIL_SEEN
        while not condition():
            if time.monotonic() > limit:
                self._fail(f"not within {MAX_SECONDS_UNTIL_SEEN} s: {command}")
            time.sleep(0.02)

    def _execute(self, command: str) -> tuple[int, str]:
        self._number += 1
        (self.directory / f".commands/{self._number}").write_text(command + "\n")
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{self._number}\n".encode())
        self._shell.stdin.flush()
        if not select.select([self._shell.stdout], [], [], MAX_SECONDS_OF_A_COMMAND)[0]:
            self._fail(f"still running after {MAX_SECONDS_OF_A_COMMAND} s: {command}")
        status = self._shell.stdout.readline()
        if not status:
            self._fail(f"the shell has ended at: {command}")
        return int(status), (self.directory / f".commands/{self._number}.out").read_text()

    def _fail(self, what: str) -> None:
        beside = "".join(f"--- {command}\n{path.read_text()}" for command, path in self._background)
        pytest.fail(f"{what}\n{beside}")


def _ports(command: str) -> list[int]:
    named = [
        int(port)
        for port in re.findall(r"(?:--port[= ]|--bind \S*:|http\.server |:)(\d{4})\b", command)
    ]
    role = re.search(r"sidecar (write|read)\b", command)
    return named or ([_PORTS[role[1]]] if role else [])


def run_page(
    page: Path,
    directory: Path,
    programs: Path = BIN,
    *,
    root: Path = ROOT,
    container: Sequence[str] = (),
) -> int:
    """Run and check all blocks of a page in order, with `sidecar` and `python` of `programs`; return how many commands were run."""
    for name in ("charts", "examples"):
        (directory / name).symlink_to(root / name)
    ran = 0
    machine: Machine | None = None
    checker = Checker(directory)
    try:
        for block in read_blocks(page):
            where = f"{page.name}:{block.line}"
            if block.title:
                (directory / block.title).parent.mkdir(parents=True, exist_ok=True)
                (directory / block.title).write_text(block.text)
            if block.language == "console" and "cluster" not in block.words:
                needs_helm = "$ helm " in page.read_text()
                machine = machine or Machine(
                    directory, needs_helm=needs_helm, programs=programs, container=container
                )
                for command, expected in read_commands(block.text):
                    machine.run(command, expected)
                    ran += 1
            else:
                try:
                    checker.check(block)
                except Exception as error:
                    raise AssertionError(f"{where}: {error}") from error
    finally:
        if machine is not None:
            machine.close()
    return ran


class Checker:
    """What can be said of a block without running it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._objects: list[chart.Object] = []

    def check(self, block: Block) -> None:
        """Raise what is wrong with a block."""
        if block.language == "python":
            compile(block.text, block.title or "block", "exec")
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            self._check_yaml(block)
        elif block.language in {"sh", "console"}:
            self._check_commands(block)
        else:
            known = {
                "text",
                "mermaid",
                "nginx",
                "ini",
                "html",
                "dockerfile",
                "diff",
                "promql",
                "go",
            }
            assert block.language in known, f"nobody checks a block of {block.language}"

    def _check_yaml(self, block: Block) -> None:
        if "values" in block.words:
            self.validate(chart.render(yaml.safe_load(block.text)))
            return
        for one in yaml.safe_load_all(block.text):
            if not isinstance(one, dict):
                continue
            if {"kind", "apiVersion"} <= one.keys():
                self.validate([one])
                self._objects.append(one)
            elif one.keys() <= {
                "containers",
                "initContainers",
                "volumes",
                "securityContext",
                "shareProcessNamespace",
            }:
                spec = {"containers": [{"name": "app", "image": "app"}], **one}
                self.validate(
                    [
                        {
                            "apiVersion": "v1",
                            "kind": "Pod",
                            "metadata": {"name": "checked"},
                            "spec": spec,
                        }
                    ]
                )
            elif one.keys() & {"sinks", "stages", "pipelines"}:
                _check_pipeline(block.text, self._directory)

    def validate(self, objects: list[chart.Object]) -> None:
        """Refuse an object that Kubernetes does not know, and arguments that our image does not."""
        for one in objects:
            if "monitoring.coreos.com" not in one["apiVersion"]:
                _kubernetes().validate(one, "1.34", strict=True)
        for _, spec in chart.pod_specs(objects):
            for container in chart.containers(spec):
                command = container.get("command", ["sidecar"])
                if "sidecar" in container.get("image", "sidecar") and command == ["sidecar"]:
                    check_command_line(container.get("args", []))

    def _check_commands(self, block: Block) -> None:
        commands = (
            block.text.splitlines()
            if block.language == "sh"
            else [one for one, _ in read_commands(block.text)]
        )
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            commands = re.sub(r"\\\n\s*", "", block.text).splitlines()
        for command in commands:
            words = shlex.split(re.sub(r"(?m)(^|\s)# .*$", "", command.replace("\\\n", " ")))
            if words[:1] == ["sidecar"]:
                check_command_line(
                    words[1 : next((n for n, word in enumerate(words) if word in "|&>"), None)]
                )
            elif words[:1] == ["helm"] and words[1] in {"install", "upgrade", "template"}:
                self._render(words)
            elif words[:1] == ["kubectl"]:
                self._check_names(command, words)

    def _render(self, words: list[str]) -> None:
        rest = [
            word
            for word in words[2:]
            if not word.startswith(("--install", "--namespace", "--create-namespace", "--wait"))
        ]
        if any(word.startswith("oci://") for word in rest):
            return
        done = tools.run(
            tools.helm(4),
            "template",
            *rest[: rest.index("|") if "|" in rest else None],
            cwd=self._directory,
        )
        objects = chart.documents(done.stdout)
        self.validate([one for one in objects if one["apiVersion"].count(".") < 3])
        self._objects += objects

    def _check_names(self, command: str, words: list[str]) -> None:
        if words[1] == "apply":
            source = words[words.index("-f") + 1]
            assert source == "-" or (self._directory / source).exists(), f"there is no {source}"
            return
        known = {(one["kind"].lower(), one["metadata"]["name"]) for one in self._objects}
        for kind, name in re.findall(
            r"\b(deployment|service|pod|secret|configmap|statefulset)/([\w-]+)", command
        ):
            assert (kind, name) in known, (
                f"nothing on the page makes {kind}/{name}: {sorted(known)}"
            )
        names = {
            one["name"]
            for _, spec in chart.pod_specs(self._objects)
            for one in chart.containers(spec)
        }
        for name in re.findall(r" -c ([\w-]+)", command):
            assert name in names, f"no container {name}: {sorted(names)}"


@cache
def _kubernetes() -> Any:
    """Return the validation, which reads each schema once: that takes ten times what its use takes."""
    import kubernetes_validate

    kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
    return kubernetes_validate


def check_command_line(arguments: list[str]) -> None:
    """Raise a usage error if the command or one of its options does not exist, or has a wrong value."""
    context = click.Context(main.sidecar, info_name="sidecar")
    if not arguments or arguments[0].startswith("-"):
        return
    command = main.sidecar.get_command(context, arguments[0])
    assert command is not None, f"there is no sidecar {arguments[0]}"
    try:
        context = command.make_context(arguments[0], arguments[1:], parent=context)
        for source in context.params["sources"] if arguments[0] == "mirror" else ():
            # In a Pod the server is that of its service account.
            in_pod = source.startswith("kube:") and "server=" not in source
            make_source(
                f"{source}{'&' if '#' in source else '#'}server=https://kube" if in_pod else source
            )
    except click.exceptions.Exit:
        return
    except click.BadParameter as error:
        if not re.search("does not exist|[Nn]o such|there is no program", error.format_message()):
            raise AssertionError(f"{' '.join(arguments)}: {error.format_message()}") from error
    except click.UsageError as error:
        raise AssertionError(f"{' '.join(arguments)}: {error.format_message()}") from error


def _check_pipeline(text: str, directory: Path) -> None:
    from sidecar.cli.impl import collect

    path = directory / ".commands.yaml"
    path.write_text(text)
    assert collect.check(collect.configuration(str(path), {}, as_json=False), {}) in {0, None}


def pages() -> Iterator[Path]:
    """Yield each page of the documentation."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
