"""A branch, a tag or a commit of a git repository: asked for its refs at an interval, transferred by the `git` command.

Over HTTP the refs are asked for by protocol version 2 on a connection that is kept: a tenth of the cost of `git ls-remote`,
which is used where the server does not know it, and over SSH.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import random
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.sources import git_logins, git_refs
from sidecar.mirror.sources.git_command import Entry, GitAccess, Repository
from sidecar.mirror.states import Alive, Blob, Reference, SourceUnavailable, State, Unit
from sidecar.process import arguments
from sidecar.process.redaction import redact_url

_log = logging.getLogger(__name__)

_LFS = b"version https://git-lfs.github.com/spec/"
_MOST_SUBMODULES_DEEP = 8
_MAX_REFS_BYTES = 1 << 20

Submodules = Literal["off", "shallow", "recursive"]


class GitSource:
    """Follow a ref.

        git+https://host/repo.git?ref=main&depth=1#into=dags        git+ssh://git@host/repo.git#ssh_key_file=FILE

    `ref` is a branch, a tag, a full name (`refs/…`), `HEAD` (the default), or a commit, which never changes.
    A commit is a unit. Links in it are left out, and files have the mode of the volume.
    Where only a part is published, or the history is transferred, contents that are not wanted are not transferred
    (a partial clone), if the server can.

    Args:
        interval: seconds between two requests for the refs.
        directory: directory of the repository to publish, without its name.
        paths: directories and files of the repository to publish, with their names; all, if empty.
        submodules: `off`; `shallow`, those of the repository itself, or `recursive`: their files are part of the commit.
        fast_forward_only: hold a commit to which the published one does not lead (a force-push); needs `depth=0`.
        allowed_signers_file: publish only commits that one of these SSH keys has signed (ssh-keygen(1)).
        user, password_file: for HTTP; a token is a password.
        credentials_file: lines `https://user:password@host/path` (git-credential-store(1)), for submodules of other servers.
        askpass_url: address that answers the lines `username=…` and `password=…`; asked before each request.
        github_app_id, github_app_installation_id, github_app_key_file: a GitHub App, its installation, and its private key.
        github_api_url: of a GitHub of one's own.
        cookie_file: cookies for HTTP, as curl writes them.
        cert_file, key_file: a client certificate.
        ssh_key_file, known_hosts_file: for SSH, several keys with commas; without known hosts, the key of the host is that of ssh's own files.
        git_config_file: settings of git (git-config(1)); then git itself asks for the refs.
        timeout: seconds for one transfer.
        max_bytes: limit of the files of a commit; a transfer may have four times as much.

    >>> GitSource("git+https://git.example.com/dags.git?ref=main")
    <GitSource git+https://git.example.com/dags.git?ref=main>
    """

    def __init__(
        self,
        url: str,
        *,
        interval: float = 10.0,
        directory: str = "",
        paths: Sequence[str] = (),
        submodules: Submodules = "off",
        fast_forward_only: bool = False,
        allowed_signers_file: str | None = None,
        user: str | None = None,
        password_file: str | None = None,
        credentials_file: str | None = None,
        askpass_url: str | None = None,
        github_app_id: str | None = None,
        github_app_installation_id: str | None = None,
        github_app_key_file: str | None = None,
        github_api_url: str = "https://api.github.com",
        cookie_file: str | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        ssh_key_file: str | None = None,
        known_hosts_file: str | None = None,
        git_config_file: str | None = None,
        timeout: float = 120.0,
        max_bytes: int = 256 << 20,
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
        # The user of an address of the web may be a token; that of ssh is the name of an account.
        self.name = (
            url.replace(f"://{parts.username}@", "://", 1) if scheme.startswith("http") else url
        )
        if parts.password is not None:
            raise ConfigError(
                f"{redact_url(url)}: put the password into a file: #password_file=FILE"
            )
        arguments.check_choice("submodules", submodules, ("off", "shallow", "recursive"))
        self._url = urlunsplit((scheme, parts.netloc, parts.path, "", ""))
        self._pause = arguments.check_seconds("interval", interval, zero=False)
        self._timeout, self._max_bytes = timeout, max_bytes
        self.interval: float | None = interval + timeout
        self._directory = directory.strip("/")
        self._paths = [one.strip("/") for one in paths]
        self._is_partial = bool(self._directory or self._paths) or self._depth != 1
        """Whether contents are transferred apart from the commit, and only those that are wanted."""
        self._depth_of_modules = {"off": 0, "shallow": 1, "recursive": _MOST_SUBMODULES_DEEP + 1}[submodules]  # fmt: skip
        self._fast_forward_only, self._signers = fast_forward_only, allowed_signers_file
        self._access = GitAccess(
            ca_file, cert_file, key_file, [one for one in (ssh_key_file or "").split(",") if one], known_hosts_file,
            cookie_file, git_config_file, "file" if scheme == "file" else GitAccess().protocols,
        )  # fmt: skip
        asked = min(timeout, 30.0)
        self._logins = git_logins.logins(
            self._url, user=user or parts.username, password_file=password_file, credentials_file=credentials_file,
            askpass_url=askpass_url, github_app=(github_app_id, github_app_installation_id, github_app_key_file),
            github_api_url=github_api_url, timeout=asked,
        )  # fmt: skip
        self._client: Client | None = None
        if scheme in ("http", "https") and git_config_file is None:
            self._client = Client(
                urlunsplit((scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")),
                ca_file=ca_file, cert_file=cert_file, key_file=key_file, timeout=asked,
                max_bytes=_MAX_REFS_BYTES,
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
        commit = since
        session = nullcontext() if self._client is None else self._client.session()
        try:
            async with session:
                while True:
                    repository = await self._usable_repository()
                    newest = await self._newest(repository)
                    if newest == commit and not repository.is_spent:
                        yield Alive(newest)
                    else:
                        repository = await self._usable_repository()
                        state = await self._state(repository, newest)
                        yield state
                        # Here again, so it was not held.
                        self._commit = commit = newest
                        self._order = state.order or 0
                    await asyncio.sleep(self._pause * random.uniform(0.9, 1.0))  # noqa: S311
        except SourceUnavailable:
            self._logins.forget()
            raise
        finally:
            if self._repository is not None:
                await self._repository.close()

    async def _usable_repository(self) -> Repository:
        """Return the repository, or a new one in its place."""
        if self._repository is not None and self._repository.is_spent:
            await self._repository.close()
            await asyncio.to_thread(self._repository.remove)
            self._repository = None
        if self._repository is None:
            made = Repository(self.name, self._access, self._timeout, self._max_bytes)
            weakref.finalize(self, made.remove)
            await made.prepare()
            self._repository, self._fetched = made, set()
        return self._repository

    async def _state(self, repository: Repository, commit: str) -> State:
        """Transfer a commit, and return its files."""
        await repository.forget(self._fetched)
        self._fetched = set()
        await self._fetch(repository, self._url, commit, self._depth)
        if self._signers is not None:
            await self._verify(repository, commit, self._signers)
        order = None
        if self._fast_forward_only:
            order = self._order + 1
            if self._commit is not None:
                await self._fetch(repository, self._url, self._commit, 0)
                if not await repository.is_ancestor(self._commit, commit):
                    order = self._order - 1
        entries = await self._entries(repository, self._url, commit, "", 0)
        size = await repository.size([one.oid for one in entries])
        if size > self._max_bytes:
            raise SourceUnavailable(
                f"cannot read {self.name}: the files of {commit} have {size} bytes (raise max_bytes)",
                retry_after=self._pause,
            )
        files: dict[str, Blob] = {}
        for one in entries:
            read = partial(self._read, repository, one)
            files[one.path.removeprefix(self._directory).lstrip("/")] = Reference(
                f"git:{one.oid}", read
            )
        created = await repository.committed_at(commit)
        return State({"": Unit(commit, files, created)}, commit, order)

    async def _verify(self, repository: Repository, commit: str, signers: str) -> None:
        try:
            await repository.verify(commit, signers)
        except SourceUnavailable as error:
            error.retry_after = self._pause
            raise

    async def _fetch(self, repository: Repository, url: str, oid: str, depth: int) -> None:
        repository.logins = await self._logins.get()
        await repository.fetch(url, oid, depth, blobs=not self._is_partial)
        self._fetched.add(oid)

    async def _fetch_missing(
        self, repository: Repository, url: str, commit: str, wanted: Sequence[Entry]
    ) -> None:
        try:
            await repository.fetch_missing(url, commit, {one.oid for one in wanted})
        except SourceUnavailable:
            # A server that leaves contents out, and does not send them alone.
            self._is_partial, repository.is_spent = False, True
            raise

    async def _entries(
        self, repository: Repository, url: str, commit: str, above: str, depth: int
    ) -> list[Entry]:
        """Return the wanted files of a commit, and those of its submodules; their contents are here then."""
        found: list[Entry] = []
        modules: list[Entry] = []
        settings: list[Entry] = []
        for one in await repository.entries(commit):
            path = above + one.path
            if one.mode.startswith("100") and self._is_wanted(path):
                found.append(one._replace(path=path))
            elif one.mode == "160000" and self._may_hold_wanted(path):
                modules.append(one)
            if one.path == ".gitmodules":
                settings.append(one)
        if depth == self._depth_of_modules or not settings:
            modules = []
        await self._fetch_missing(repository, url, commit, [*found, *(settings if modules else ())])
        if not modules:
            return found
        if depth >= _MOST_SUBMODULES_DEEP:
            raise SourceUnavailable(
                f"cannot read {self.name}: submodules are more than {_MOST_SUBMODULES_DEEP} deep"
            )
        addresses = _module_urls(await repository.read(settings[0].oid))
        for one in modules:
            if one.path not in addresses:
                raise SourceUnavailable(
                    f"cannot read {self.name}: .gitmodules has no address for {one.path}"
                )
            own = _resolve(url, addresses[one.path])
            await self._fetch(repository, own, one.oid, 1)
            found += await self._entries(repository, own, one.oid, f"{above}{one.path}/", depth + 1)
        return found

    def _is_wanted(self, path: str) -> bool:
        """Return whether a file is published."""
        is_listed = not self._paths or any(_is_below(path, one) for one in self._paths)
        return is_listed and _is_below(path, self._directory)

    def _may_hold_wanted(self, module: str) -> bool:
        """Return whether files of a submodule may be published."""
        is_listed = not self._paths or any(_overlap(module, one) for one in self._paths)
        return is_listed and _overlap(module, self._directory)

    async def _read(self, repository: Repository, one: Entry) -> bytes:
        content = await repository.read(one.oid)
        if content.startswith(_LFS):
            _log.warning(
                "%s: %s is a pointer of Git LFS, and is published as such", self.name, one.path
            )
        return content

    async def _newest(self, repository: Repository) -> str:
        """Return the commit that the ref names now."""
        if git_refs.COMMIT.fullmatch(self._ref):
            return self._ref
        wanted = git_refs.candidates(self._ref)
        repository.logins = await self._logins.get()
        refs: dict[str, str] | None = None
        if self._client is not None:
            headers = git_logins.basic_header(repository.logins, self._client.url)
            if self._access.cookie_file is not None:
                headers |= git_logins.cookie_header(self._access.cookie_file, self._client.url)
            refs = await git_refs.list_refs(self._client, wanted, headers)
        if refs is None:
            both = [*wanted, *(f"{one}^{{}}" for one in wanted)]
            refs = await repository.remote_refs(self._url, both)
            self._client = None  # it knows another version, and git can read it
        for one in wanted:
            if oid := refs.get(f"{one}^{{}}") or refs.get(one):
                return oid
        said = f"there is no branch or tag {self._ref!r}" if self._ref != "HEAD" else "it has no commit yet"  # fmt: skip
        raise SourceUnavailable(f"cannot read {self.name}: {said}")


def _is_below(path: str, above: str) -> bool:
    return not above or f"{path}/".startswith(f"{above}/")


def _overlap(one: str, other: str) -> bool:
    return _is_below(one, other) or _is_below(other, one)


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
