"""A branch, a tag or a commit of a git repository: asked for its refs at an interval, transferred by the `git` command.

Over HTTP the refs are asked for by protocol version 2 (https://git-scm.com/docs/protocol-v2) on a connection that is kept:
a tenth of the cost of `git ls-remote`, which is used where the server does not know it, and over SSH.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import random
import re
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.sources.git_command import Entry, GitAccess, Repository
from sidecar.mirror.states import Alive, Blob, Reference, SourceUnavailable, State, Unit
from sidecar.process import arguments
from sidecar.process.redaction import redact_url

_log = logging.getLogger(__name__)

_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_LFS = b"version https://git-lfs.github.com/spec/"
_FLUSH, _DELIMITER = b"0000", b"0001"
_MOST_SUBMODULES_DEEP = 8

Submodules = Literal["off", "recursive"]


class GitSource:
    """Follow a ref.

        git+https://host/repo.git?ref=main&depth=1#into=dags        git+ssh://git@host/repo.git#ssh_key_file=FILE

    `ref` is a branch, a tag, a full name (`refs/…`), `HEAD` (the default), or a commit, which never changes.
    A commit is a unit. Links in it are left out, and files have the mode of the volume.

    Args:
        interval: seconds between two requests for the refs.
        directory: directory of the repository to publish, without its name.
        submodules: `off`, or `recursive`: their files are part of the commit.
        fast_forward_only: hold a commit to which the published one does not lead (a force-push); needs `depth=0`.
        allowed_signers_file: publish only commits that one of these SSH keys has signed (ssh-keygen(1)).
        user, password_file: for HTTP; a token is a password.
        ssh_key_file, known_hosts_file: for SSH; without known hosts, the key of the host is that of ssh's own files.
        timeout: seconds for one transfer.

    >>> GitSource("git+https://git.example.com/dags.git?ref=main")
    <GitSource git+https://git.example.com/dags.git?ref=main>
    """

    def __init__(
        self,
        url: str,
        *,
        interval: float = 10.0,
        directory: str = "",
        submodules: Submodules = "off",
        fast_forward_only: bool = False,
        allowed_signers_file: str | None = None,
        user: str | None = None,
        password_file: str | None = None,
        ca_file: str | None = None,
        ssh_key_file: str | None = None,
        known_hosts_file: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        parts = urlsplit(url)
        scheme = parts.scheme.removeprefix("git+")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._ref = query.pop("ref", "HEAD")
        depth = query.pop("depth", "1")
        if query or not depth.isdecimal():
            raise ConfigError(
                f"{redact_url(url)}: write ?ref=NAME&depth=COMMITS (0: the whole history)"
            )
        self._depth = int(depth)
        if fast_forward_only and self._depth:
            raise ConfigError(
                f"{redact_url(url)}: fast_forward_only needs the history: write depth=0"
            )
        self.name = url
        if parts.password is not None:
            raise ConfigError(
                f"{redact_url(url)}: put the password into a file: #password_file=FILE"
            )
        arguments.check_choice("submodules", submodules, ("off", "recursive"))
        self._url = urlunsplit((scheme, parts.netloc, parts.path, "", ""))
        self._pause = arguments.check_seconds("interval", interval, zero=False)
        self._timeout = timeout
        self.interval: float | None = interval + timeout
        self._directory = f"{directory.strip('/')}/" if directory.strip("/") else ""
        self._submodules, self._fast_forward_only = submodules, fast_forward_only
        self._signers = allowed_signers_file
        user = user or parts.username
        protocols = "file" if scheme == "file" else GitAccess().protocols
        self._access = GitAccess(
            user, password_file, ca_file, ssh_key_file, known_hosts_file, protocols
        )
        self._client: Client | None = None
        if scheme in ("http", "https"):
            self._client = Client(
                urlunsplit((scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")),
                user=(user or "git") if password_file else None, password_file=password_file,
                ca_file=ca_file, timeout=min(timeout, 30.0),
            )  # fmt: skip
        self._commit: str | None = None
        """The commit that was taken over last."""
        self._order = 0
        self._repository: Repository | None = None
        self._fetched: set[str] = set()
        """The commits that the newest state needs, those of submodules included."""

    def __repr__(self) -> str:
        return f"<GitSource {self.name}>"

    async def follow(self, since: str | None) -> AsyncIterator[State | Alive]:
        """Yield the present commit, and each newer one."""
        if self._repository is None:
            work = await asyncio.to_thread(tempfile.mkdtemp, prefix="sidecar-git-")
            weakref.finalize(self, shutil.rmtree, work, ignore_errors=True)
            made = Repository(self.name, Path(work), self._access, self._timeout)
            await made.prepare()
            self._repository = made
        repository, commit = self._repository, since
        session = nullcontext() if self._client is None else self._client.session()
        try:
            async with session:
                while True:
                    newest = await self._newest(repository)
                    if newest == commit:
                        yield Alive(newest)
                    else:
                        state = await self._state(repository, newest)
                        yield state
                        # Here again, so it was not held.
                        self._commit = commit = newest
                        self._order = state.order or 0
                    await asyncio.sleep(self._pause * random.uniform(0.9, 1.0))  # noqa: S311
        finally:
            await repository.close()

    async def _state(self, repository: Repository, commit: str) -> State:
        """Transfer a commit, and return its files."""
        await repository.forget(self._fetched)
        self._fetched = set()
        await self._fetch(repository, self._url, commit, self._depth)
        if self._signers is not None:
            await repository.verify(commit, self._signers)
        order = None
        if self._fast_forward_only:
            order = self._order + 1
            if self._commit is not None:
                await self._fetch(repository, self._url, self._commit, 0)
                if not await repository.is_ancestor(self._commit, commit):
                    order = self._order - 1
        files: dict[str, Blob] = {}
        for one in await self._entries(repository, self._url, commit, "", 0):
            if one.path.startswith(self._directory):
                read = partial(self._read, repository, one)
                files[one.path.removeprefix(self._directory)] = Reference(f"git:{one.oid}", read)
        created = await repository.committed_at(commit)
        return State({"": Unit(commit, files, created)}, commit, order)

    async def _fetch(self, repository: Repository, url: str, oid: str, depth: int) -> None:
        await repository.fetch(url, oid, depth)
        self._fetched.add(oid)

    async def _entries(
        self, repository: Repository, url: str, commit: str, above: str, depth: int
    ) -> list[Entry]:
        """Return the files of a commit, and those of its submodules."""
        found = []
        modules: list[Entry] = []
        settings: Entry | None = None
        for one in await repository.entries(commit):
            if one.mode.startswith("100"):
                found.append(one._replace(path=above + one.path))
            elif one.mode == "160000":
                modules.append(one)
            if one.path == ".gitmodules":
                settings = one
        if self._submodules == "off" or not modules or settings is None:
            return found
        if depth >= _MOST_SUBMODULES_DEEP:
            raise SourceUnavailable(
                f"cannot read {self.name}: submodules are more than {_MOST_SUBMODULES_DEEP} deep"
            )
        addresses = _module_urls(await repository.read(settings.oid))
        for one in modules:
            if one.path not in addresses:
                raise SourceUnavailable(
                    f"cannot read {self.name}: .gitmodules has no address for {one.path}"
                )
            own = _resolve(url, addresses[one.path])
            await self._fetch(repository, own, one.oid, self._depth)
            found += await self._entries(repository, own, one.oid, f"{above}{one.path}/", depth + 1)
        return found

    async def _read(self, repository: Repository, one: Entry) -> bytes:
        content = await repository.read(one.oid)
        if content.startswith(_LFS):
            _log.warning(
                "%s: %s is a pointer of Git LFS, and is published as such", self.name, one.path
            )
        return content

    async def _newest(self, repository: Repository) -> str:
        """Return the commit that the ref names now."""
        if _COMMIT.fullmatch(self._ref):
            return self._ref
        wanted = _candidates(self._ref)
        refs: dict[str, str] | None = None
        if self._client is not None:
            refs = await self._ls_refs(self._client, wanted)
        if refs is None:
            refs = await repository.remote_refs(
                self._url, [*wanted, *(f"{one}^{{}}" for one in wanted)]
            )
        for one in wanted:
            if oid := refs.get(f"{one}^{{}}") or refs.get(one):
                return oid
        raise SourceUnavailable(f"cannot read {self.name}: there is no branch or tag {self._ref!r}")

    async def _ls_refs(self, client: Client, wanted: list[str]) -> dict[str, str] | None:
        """Ask for refs by protocol version 2; None where the server does not know it."""
        lines = [b"command=ls-refs\n", b"object-format=sha1\n"]
        prefixes = [f"ref-prefix {one}\n".encode() for one in wanted]
        body = b"".join(
            [*map(_packet, lines), _DELIMITER, *map(_packet, [b"peel\n", *prefixes]), _FLUSH]
        )
        kind = "application/x-git-upload-pack"
        answer = await client.request(
            "POST", f"{client.url.rstrip('/')}/git-upload-pack", data=body,
            headers={"Content-Type": f"{kind}-request", "Accept": f"{kind}-result", "Git-Protocol": "version=2"},
            accept=frozenset((200, 400, 403, 404, 405, 415)),
        )  # fmt: skip
        if answer.status != 200 or answer.headers.get("Content-Type") != f"{kind}-result":
            self._client = None  # git itself finds out what is wrong, and says it
            return None
        try:
            return _parse_refs(answer.body)
        except ValueError:
            self._client = None
            return None


def _candidates(ref: str) -> list[str]:
    if ref == "HEAD" or ref.startswith("refs/"):
        return [ref]
    return [f"refs/heads/{ref}", f"refs/tags/{ref}"]


def _packet(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


def _parse_refs(body: bytes) -> dict[str, str]:
    """Return the refs of an answer; raises `ValueError` where it is none."""
    found: dict[str, str] = {}
    at = 0
    while True:
        size = int(body[at : at + 4], 16)
        if size == 0:
            return found
        line = body[at + 4 : at + size].decode().rstrip("\n")
        if size < 5 or len(line) == 0:
            raise ValueError("an empty packet")
        oid, name, *more = line.split(" ")
        if not _COMMIT.fullmatch(oid):
            raise ValueError(f"{oid!r} is no object")
        found[name] = oid
        for one in more:
            if one.startswith("peeled:"):
                found[f"{name}^{{}}"] = one.removeprefix("peeled:")
        at += size


def _module_urls(settings: bytes) -> dict[str, str]:
    """Return the addresses of submodules by their paths (gitmodules(5))."""
    found: dict[str, str] = {}
    path = url = None
    for line in [*settings.decode(errors="replace").splitlines(), "["]:
        name, _, value = (part.strip() for part in line.partition("="))
        if line.strip().startswith("["):
            if path and url:
                found[path] = url
            path = url = None
        elif name == "path":
            path = value
        elif name == "url":
            url = value
    return found


def _resolve(base: str, url: str) -> str:
    """Return the address of a submodule; `./` and `../` are relative to that of the repository."""
    if not url.startswith(("./", "../")):
        return url
    parts = urlsplit(base)
    path = posixpath.normpath(posixpath.join(parts.path, url))
    return urljoin(base, urlunsplit((parts.scheme, parts.netloc, path, "", "")))
