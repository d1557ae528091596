"""The `git` command in a repository of its own: transfers, lists and reads objects; nothing is checked out."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import shlex
import shutil
import signal
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sidecar.mirror.sources.git_logins import Login
from sidecar.mirror.states import SourceUnavailable

_MESSAGE_CHARACTERS = 300
_ALLOWED_PROTOCOLS = "https:http:ssh:git"
_DIRECTORY_PREFIX, _IN_USE = "sidecar-git-", "in-use"
_GROWTH_KIB = 16 << 10
"""How much a repository may grow beyond twice its size before it is tidied up."""
_MAX_FAILED_FETCHES = 3
_TRANSFER_SHARE = 4
"""How much larger than the files of a commit a transfer may be: it may bring history, and other directories."""
_HELPER = '!f() {{ test "$1" = get && printf "username=%s\\npassword=%s\\n" "$SIDECAR_GIT_USER_{0}" "$SIDECAR_GIT_PASSWORD_{0}"; }}; f'
_INHERITED = ("PATH", "TMPDIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")  # fmt: skip


class Entry(NamedTuple):
    """A path in a commit."""

    mode: str
    """As in `git ls-tree`: 100644, 100755, 120000 (a link), 160000 (a submodule)."""
    oid: str
    path: str


class GitAccess(NamedTuple):
    """How servers are reached; files are read for each command."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    ssh_key_files: Sequence[str] = ()
    known_hosts_file: str | None = None
    cookie_file: str | None = None
    config_file: str | None = None
    """Settings of git (git-config(1)), in place of those of this machine."""
    protocols: str = _ALLOWED_PROTOCOLS


class Repository:
    """A bare repository in a temporary directory, and the commands on it.

    It belongs to this process: what a process that was killed has left is removed when the next one makes its own.

    Args:
        name: the address without a secret, for messages.
        timeout: seconds for one command; then it is killed with what it has started.
        max_bytes: limit of the files of a commit; a transfer may have four times as much.
    """

    def __init__(self, name: str, access: GitAccess, timeout: float, max_bytes: int) -> None:
        self._name, self._access, self._timeout, self._max_bytes = name, access, timeout, max_bytes
        self.directory = Path()
        self.logins: Sequence[Login] = ()
        """Those that the next transfer may use."""
        self.is_spent = False
        """Whether another one must be made: a command was killed, or found it damaged, or it cannot be tidied up."""
        self._is_partial = False
        self._failed_fetches = 0
        self._tidy_kib: int | None = None
        self._reading: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._in_use = -1

    async def prepare(self) -> None:
        """Create the directory and the repository, and remove those of processes that are gone."""
        self.directory, self._in_use = await asyncio.to_thread(_make_directory)
        await self.run("init", "--quiet", "--bare", str(self.directory))

    def remove(self) -> None:
        """Remove the directory."""
        in_use, self._in_use, self.is_spent = self._in_use, -1, True
        if in_use >= 0:
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(in_use)

    async def remote_refs(self, url: str, patterns: Sequence[str]) -> dict[str, str]:
        """Return the refs of a remote that match, and their objects; tags are peeled (`^{}`)."""
        output = await self.run("ls-remote", "--", url, *patterns, remote=True, may_fail=True)
        found = (line.split("\t", 1) for line in output.decode(errors="replace").splitlines())
        return {one[1]: one[0] for one in found if len(one) == 2}

    async def fetch(self, url: str, oid: str, depth: int, *, blobs: bool = True) -> None:
        """Transfer a commit, with `depth` commits of its history (0: all), and, where the server can, without contents."""
        flags = [f"--depth={depth}"] if depth else []
        if not blobs:
            self._is_partial = True
            flags.append("--filter=blob:none")
        await self._fetch(flags, url, f"+{oid}:refs/sidecar/{oid}")

    async def fetch_missing(self, url: str, commit: str, wanted: Collection[str]) -> None:
        """Transfer those contents of a commit that are wanted and not here, in one request."""
        if not self._is_partial or not wanted:
            return
        output = await self.run(
            "rev-list", "--objects", "--no-object-names", "--missing=print", "--max-count=1", commit
        )
        here = {line[1:] for line in output.decode().splitlines() if line.startswith("?")}
        if missing := here.intersection(wanted):
            lines = "".join(f"{one}\n" for one in sorted(missing)).encode()
            # Without telling what is here: a server thinks that all of a commit is.
            nothing = ("-c", "fetch.negotiationAlgorithm=noop")
            await self._fetch(["--filter=blob:none", "--stdin"], url, before=nothing, stdin=lines)

    async def _fetch(
        self,
        flags: Sequence[str],
        url: str,
        *refs: str,
        before: Sequence[str] = (),
        stdin: bytes = b"",
    ) -> None:
        usual = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        try:
            command = (*before, "fetch", *usual, *flags, "--", url, *refs)
            await self.run(*command, stdin=stdin, remote=True)
        except SourceUnavailable:
            # The server answers, or nobody would have asked for a commit: perhaps the fault lies here.
            self._failed_fetches += 1
            self.is_spent |= self._failed_fetches >= _MAX_FAILED_FETCHES
            raise
        self._failed_fetches = 0

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

    async def size(self, oids: Collection[str]) -> int:
        """Return the bytes of contents together. Raises `SourceUnavailable`: one is missing."""
        lines = "".join(f"{one}\n" for one in oids).encode()
        output = await self.run("cat-file", "--batch-check=%(objectsize)", stdin=lines)
        try:
            return sum(map(int, output.split()))
        except ValueError:
            self.is_spent = True
            raise SourceUnavailable(f"cannot read {self._name}: a content is missing") from None

    async def committed_at(self, oid: str) -> float:
        """Return the time of a commit, Unix seconds."""
        return float(await self.run("show", "--no-patch", "--format=%ct", oid))

    async def is_ancestor(self, old: str, new: str) -> bool:
        """Return whether one commit leads to another."""
        try:
            await self.run("merge-base", "--is-ancestor", old, new, may_fail=True)
        except SourceUnavailable:
            return False
        return True

    async def verify(self, oid: str, signers: str) -> None:
        """Raise `SourceUnavailable` unless a commit is signed by one of the keys in a file (ssh-keygen(1), ALLOWED SIGNERS)."""
        setting = f"gpg.ssh.allowedSignersFile={signers}"
        try:
            await self.run("-c", setting, "verify-commit", oid, may_fail=True)
        except SourceUnavailable as error:
            raise SourceUnavailable(
                f"{self._name}: the commit {oid} is not signed by a key in {signers}: {error}"
            ) from error

    async def forget(self, keep: Collection[str]) -> None:
        """Remove other commits than these, and their objects once they take as much room as the rest."""
        output = await self.run("for-each-ref", "--format=%(refname)", "refs/sidecar/")
        needed = {f"refs/sidecar/{oid}" for oid in keep}
        old = [one for one in output.decode().split() if one not in needed]
        for ref in old:
            await self.run("update-ref", "-d", ref)
        size = await self._kib()
        if self._tidy_kib is None:
            self._tidy_kib = size if keep else None
        elif size > 2 * self._tidy_kib + _GROWTH_KIB:
            await self._tidy_up()

    async def _tidy_up(self) -> None:
        if self._is_partial:
            # git keeps all that it has from a server which could send it again.
            self.is_spent = True
            return
        await self.close()
        await self.run("gc", "--quiet", "--prune=now")
        self._tidy_kib = await self._kib()

    async def _kib(self) -> int:
        output = await self.run("count-objects", "-v")
        lines = (line.partition(": ") for line in output.decode().splitlines())
        found = {name: value for name, _, value in lines}
        return int(found["size"]) + int(found["size-pack"])

    async def read(self, oid: str) -> bytes:
        """Return the content of a blob, by one process for all of them."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._read(oid)
            except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                await self.close()
                self.is_spent = True
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

    async def run(
        self, *arguments: str, stdin: bytes = b"", remote: bool = False, may_fail: bool = False
    ) -> bytes:
        """Run a command, and return what it prints.

        With `remote` it asks a server, with its logins, and a failure says nothing of the repository;
        with `may_fail` it changes nothing here, so it may be killed, or fail, at any moment.

        Raises:
            SourceUnavailable: it failed, or did not end in time; nothing of it goes on.
        """
        process = await self._start(arguments, remote=remote)
        is_done = False
        try:
            async with asyncio.timeout(self._timeout):
                output, errors = await process.communicate(stdin)
            is_done = True
        except TimeoutError:
            raise SourceUnavailable(
                f"cannot read {self._name}: git {_verb(arguments)} took longer than {self._timeout:g} s"
            ) from None
        finally:
            # What was killed may have left a lock, or half of an object.
            self.is_spent |= not is_done and not may_fail
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            self.is_spent |= not remote and not may_fail
            said = _said(errors)
            if f"signal {signal.SIGXFSZ:d}".encode() in errors:
                said = f"it is larger than {self._max_bytes * _TRANSFER_SHARE} bytes (raise max_bytes)"  # fmt: skip
            raise SourceUnavailable(f"cannot read {self._name}: git {_verb(arguments)}: {said}")
        return output

    async def _start(self, arguments: Sequence[str], *, remote: bool) -> asyncio.subprocess.Process:
        environment = self._environment(self.logins if remote else ())
        try:
            process = await asyncio.create_subprocess_exec(
                "git", *arguments, cwd=self.directory,
                env=environment, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            self.is_spent = True
            said = "the command git is not in the image (apt-get install git, in an image made from this one)"
            if not self.directory.is_dir():
                said = f"somebody has removed {self.directory}"
            raise SourceUnavailable(f"cannot read {self._name}: {said}") from None
        if remote:
            limit = self._max_bytes * _TRANSFER_SHARE
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        return process

    def _environment(self, logins: Sequence[Login] = ()) -> dict[str, str]:
        """Return the environment: nothing asks at a terminal, and no configuration of this machine counts."""
        access = self._access
        made = {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "HOME": str(self.directory),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": access.config_file or os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": access.protocols,
        }
        for name, file in (("CAINFO", access.ca_file), ("CERT", access.cert_file), ("KEY", access.key_file)):  # fmt: skip
            if file is not None:
                made[f"GIT_SSL_{name}"] = file
        settings = {}
        if access.cookie_file is not None:
            settings["http.cookieFile"] = access.cookie_file
        for number, one in enumerate(logins):
            # By the address: a submodule on another server must not see it.
            settings[f"credential.{one.url}.helper"] = _HELPER.format(number)
            made[f"SIDECAR_GIT_USER_{number}"] = one.user
            made[f"SIDECAR_GIT_PASSWORD_{number}"] = one.password
        return made | _settings(settings) | {"GIT_SSH_COMMAND": _ssh(access)}


def _settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for settings of git (git-config(1), ENVIRONMENT)."""
    made = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        made |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return made


def _ssh(access: GitAccess) -> str:
    """Return the command for SSH."""
    made = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    for file in access.ssh_key_files:
        made += ["-i", file]
    if access.ssh_key_files:
        made += ["-o", "IdentitiesOnly=yes"]
    if access.known_hosts_file is not None:
        hosts = f"UserKnownHostsFile={access.known_hosts_file}"
        made += ["-o", hosts, "-o", "StrictHostKeyChecking=yes"]
    return shlex.join(made)


def _make_directory() -> tuple[Path, int]:
    """Make a directory that is in use as long as a descriptor is open, and remove those that are not in use any more."""
    for one in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*/{_IN_USE}"):
        with contextlib.suppress(OSError), one.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(one.parent, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX))
    draft = directory / f"{_IN_USE}.new"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    draft.rename(directory / _IN_USE)
    return directory, descriptor


def _verb(arguments: Sequence[str]) -> str:
    return arguments[2] if arguments[0] == "-c" else arguments[0]


def _said(errors: bytes) -> str:
    lines = [one.strip() for one in errors.decode(errors="replace").splitlines() if one.strip()]
    return " / ".join(lines[:3])[:_MESSAGE_CHARACTERS] or "it failed without a message"
