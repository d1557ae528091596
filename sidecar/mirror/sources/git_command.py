"""The `git` command in a repository of its own: transfers, lists and reads objects; nothing is checked out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sidecar.mirror.states import SourceUnavailable
from sidecar.process.secret_file import read_secret

_MESSAGE_CHARACTERS = 300
_ALLOWED_PROTOCOLS = "https:http:ssh:git"


class Entry(NamedTuple):
    """A path in a commit."""

    mode: str
    """As in `git ls-tree`: 100644, 100755, 120000 (a link), 160000 (a submodule)."""
    oid: str
    path: str


class GitAccess(NamedTuple):
    """As whom a repository is read; files are read for each command."""

    user: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    ssh_key_file: str | None = None
    known_hosts_file: str | None = None
    protocols: str = _ALLOWED_PROTOCOLS


class Repository:
    """A bare repository in a directory, and the commands on it.

    Args:
        name: the address without a secret, for messages.
        timeout: seconds for one command; then it is killed with what it has started.
    """

    def __init__(self, name: str, directory: Path, access: GitAccess, timeout: float) -> None:
        self._name, self.directory, self._access, self._timeout = name, directory, access, timeout
        self._reading: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Create the repository."""
        await self.run("init", "--quiet", "--bare", str(self.directory), outside=True)

    async def remote_refs(self, url: str, patterns: Sequence[str]) -> dict[str, str]:
        """Return the refs of a remote that match, and their objects; tags are peeled (`^{}`)."""
        output = await self.run("ls-remote", "--", url, *patterns)
        found = (line.split("\t", 1) for line in output.decode(errors="replace").splitlines())
        return {one[1]: one[0] for one in found if len(one) == 2}

    async def fetch(self, url: str, oid: str, depth: int) -> None:
        """Transfer a commit, with `depth` commits of its history (0: all)."""
        depths = [f"--depth={depth}"] if depth else []
        flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        await self.run("fetch", *flags, *depths, "--", url, f"+{oid}:refs/sidecar/{oid}")

    async def entries(self, oid: str) -> list[Entry]:
        """Return all paths in a commit."""
        output = await self.run("ls-tree", "-r", "-z", "--full-tree", oid)
        found = []
        for line in output.decode(errors="surrogateescape").split("\0"):
            if line:
                head, _, path = line.partition("\t")
                mode, _, own = head.split(" ")
                found.append(Entry(mode, own, path))
        return found

    async def committed_at(self, oid: str) -> float:
        """Return the time of a commit, Unix seconds."""
        return float(await self.run("show", "--no-patch", "--format=%ct", oid))

    async def is_ancestor(self, old: str, new: str) -> bool:
        """Return whether one commit leads to another."""
        try:
            await self.run("merge-base", "--is-ancestor", old, new)
        except SourceUnavailable:
            return False
        return True

    async def verify(self, oid: str, signers: str) -> None:
        """Raise `SourceUnavailable` unless a commit is signed by one of the keys in a file (ssh-keygen(1), ALLOWED SIGNERS)."""
        setting = f"gpg.ssh.allowedSignersFile={signers}"
        try:
            await self.run("-c", setting, "verify-commit", oid)
        except SourceUnavailable as error:
            raise SourceUnavailable(
                f"{self._name}: the commit {oid} is not signed by a key in {signers}: {error}"
            ) from error

    async def forget(self, keep: Collection[str]) -> None:
        """Remove the objects of other commits than these."""
        output = await self.run("for-each-ref", "--format=%(refname)", "refs/sidecar/")
        needed = {f"refs/sidecar/{oid}" for oid in keep}
        old = [one for one in output.decode().split() if one not in needed]
        for ref in old:
            await self.run("update-ref", "-d", ref)
        if old:
            await self.close()
            await self.run("gc", "--quiet", "--prune=now")

    async def read(self, oid: str) -> bytes:
        """Return the content of a blob, by one process for all of them."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._read(oid)
            except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                await self.close()
                said = str(error) or type(error).__name__
                raise SourceUnavailable(f"cannot read {oid} of {self._name}: {said}") from error
            except asyncio.CancelledError:
                await self.close()  # half an answer may be left in the pipe
                raise

    async def _read(self, oid: str) -> bytes:
        if self._reading is None:
            self._reading = await asyncio.create_subprocess_exec(
                "git", "cat-file", "--batch", cwd=self.directory, env=self._environment(),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
        stdin, stdout = self._reading.stdin, self._reading.stdout
        if stdin is None or stdout is None:
            raise ValueError("the process has no pipes")
        stdin.write(oid.encode() + b"\n")
        await stdin.drain()
        head = (await stdout.readline()).split()
        if len(head) != 3:
            raise ValueError(f"git answered {b' '.join(head).decode(errors='replace')!r}")
        content = await stdout.readexactly(int(head[2]))
        await stdout.readexactly(1)
        return content

    async def close(self) -> None:
        """End the process that reads."""
        process, self._reading = self._reading, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def run(self, *arguments: str, outside: bool = False) -> bytes:
        """Run a command, and return what it prints.

        Raises:
            SourceUnavailable: it failed, or did not end in time; nothing of it goes on.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                "git", *arguments, cwd=None if outside else self.directory,
                env=self._environment(), stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise SourceUnavailable(
                f"cannot read {self._name}: the command git is not in the image (apt-get install git, in an image made from this one)"
            ) from None
        try:
            async with asyncio.timeout(self._timeout):
                output, errors = await process.communicate()
        except TimeoutError:
            raise SourceUnavailable(
                f"cannot read {self._name}: git {_verb(arguments)} took longer than {self._timeout:g} s"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            raise SourceUnavailable(
                f"cannot read {self._name}: git {_verb(arguments)}: {_said(errors)}"
            )
        return output

    def _environment(self) -> dict[str, str]:
        """Return the environment: nothing asks at a terminal, and no configuration of this machine counts."""
        access = self._access
        made = {
            **{name: os.environ[name] for name in ("PATH", "TMPDIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy") if name in os.environ},
            "HOME": str(self.directory),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": access.protocols,
        }  # fmt: skip
        if access.ca_file is not None:
            made["GIT_SSL_CAINFO"] = access.ca_file
        if access.password_file is not None:
            made |= _credentials(self._name, access)
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        if access.ssh_key_file is not None:
            ssh += ["-i", access.ssh_key_file, "-o", "IdentitiesOnly=yes"]
        if access.known_hosts_file is not None:
            hosts = f"UserKnownHostsFile={access.known_hosts_file}"
            ssh += ["-o", hosts, "-o", "StrictHostKeyChecking=yes"]
        made["GIT_SSH_COMMAND"] = shlex.join(ssh)
        return made


def _credentials(name: str, access: GitAccess) -> Mapping[str, str]:
    """Return variables by which git asks this process's environment, and no file, for user and password."""
    try:
        password = read_secret(access.password_file or "")
    except ValueError as error:
        raise SourceUnavailable(f"cannot read {name}: {error}") from error
    helper = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$SIDECAR_GIT_USER" "$SIDECAR_GIT_PASSWORD"; }; f'
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": helper,
        "SIDECAR_GIT_USER": access.user or "git",
        "SIDECAR_GIT_PASSWORD": password,
    }


def _verb(arguments: Sequence[str]) -> str:
    return arguments[2] if arguments[0] == "-c" else arguments[0]


def _said(errors: bytes) -> str:
    lines = [one.strip() for one in errors.decode(errors="replace").splitlines() if one.strip()]
    return " / ".join(lines[:3])[:_MESSAGE_CHARACTERS] or "it failed without a message"
