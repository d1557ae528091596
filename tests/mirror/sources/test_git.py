"""A ref of a real repository, served by git's own HTTP backend and by a real SSH server."""

from __future__ import annotations

import asyncio
import base64
import getpass
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory, git
from sidecar.mirror.sources.git import GitSource
from sidecar.volume.volume import Volume
from support import Eventually, StartProcess
from support.engines import free_port

BACKEND = Path("/usr/lib/git-core/git-http-backend")
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}


class Project:
    """A repository with a working tree, as people have one, and what a server shows of it."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory
        directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.tree, env=ENVIRONMENT, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, **files: str | None) -> str:
        """Commit these files (None removes one; __ in a name is a /), and return the commit."""
        for key, content in files.items():
            path = self.tree / key.replace("__", "/")
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=change")
        return self.git("rev-parse", "HEAD")


class Backend:
    """git-http-backend behind aiohttp, as its manual describes for any CGI server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.password: str | None = None
        self.knows_version_2 = True
        self.requests: list[str] = []
        self.connections: set[object] = set()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self.server = TestServer(app)

    def url(self, name: str) -> str:
        return f"git+{self.server.make_url(f'/{name}/.git')}"

    async def _serve(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path.rpartition('/')[2]}")
        self.connections.add(request.protocol)
        expected = f"Basic {base64.b64encode(f'git:{self.password}'.encode()).decode()}"
        if self.password is not None and request.headers.get("Authorization") != expected:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        protocol = request.headers.get("Git-Protocol", "") if self.knows_version_2 else ""
        body = await request.content.read() if request.can_read_body else b""
        environment = {
            **ENVIRONMENT, "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path, "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method, "GIT_PROTOCOL": protocol,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }  # fmt: skip
        # In a thread, which ends with the process: a request that is cut off leaves none behind.
        done = await asyncio.to_thread(
            subprocess.run, [BACKEND], input=body, env=environment, capture_output=True, check=False
        )
        output = done.stdout
        head, _, content = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=headers, body=content)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "srv" / "project")


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    if not BACKEND.exists():
        pytest.skip("git-http-backend is not installed (apt-get install git)")
    made = Backend(tmp_path / "srv")
    await made.server.start_server(auto_decompress=False)
    yield made
    await made.server.close()


Start = Callable[..., GitSource]


@pytest.fixture
def source(backend: Backend) -> Start:
    def make(query: str = "", name: str = "project", **options: object) -> GitSource:
        return GitSource(backend.url(name) + query, **{"interval": 0.05, **options})  # type: ignore[arg-type]

    return make


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_a_branch_is_followed(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """The whole tree of each commit; links are left out, as they lead to where their author wanted."""
    (project.tree / "link").symlink_to("/etc/passwd")
    project.commit(a="1", dir__b="2")
    running = start_mirror(source("?ref=main"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": "2"}
    inode = (Path(volume.path) / "dir/b").stat().st_ino
    project.commit(a="2", c="3")
    await eventually((Path(volume.path) / "c").exists)
    assert await files(volume) == {"a": "2", "dir/b": "2", "c": "3"}
    assert (Path(volume.path) / "dir/b").stat().st_ino == inode


async def test_asking_for_refs_is_one_request_and_no_process(
    project: Project, backend: Backend, source: Start, start_mirror: StartMirror, eventually: Eventually
) -> None:  # fmt: skip
    """Protocol version 2: `git ls-remote` is two requests, all refs, and a process of 35 MB."""
    project.commit(a="1")
    running = start_mirror(source("?ref=main"))
    await eventually(lambda: running.is_complete)
    backend.requests.clear()
    backend.connections.clear()
    await eventually(lambda: len(backend.requests) >= 5)
    assert set(backend.requests) == {"POST git-upload-pack"}
    assert len(backend.connections) == 1


async def test_a_server_without_version_2_is_asked_by_git(
    project: Project, backend: Backend, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    backend.knows_version_2 = False
    project.commit(a="1")
    running = start_mirror(source("?ref=main"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


@pytest.mark.parametrize("kind", ["default", "tag", "annotated", "full", "commit"])
async def test_each_way_to_name_a_commit(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually, kind: str
) -> None:  # fmt: skip
    """git-sync's sync_default_ref, sync_tag, sync_annotated_tag, sync_sha."""
    commit = project.commit(a="1")
    project.git("tag", "light")
    project.git("tag", "--annotate", "--message=m", "heavy")
    refs = {"default": "", "tag": "?ref=light", "annotated": "?ref=heavy",
            "full": "?ref=refs/heads/main", "commit": f"?ref={commit}"}  # fmt: skip
    running = start_mirror(source(refs[kind]))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_a_directory_of_the_repository_is_published_without_its_name(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    project.commit(dags__a="1", dags__sub__b="2", other="3")
    running = start_mirror(source(directory="dags"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "sub/b": "2"}


async def test_files_of_submodules_belong_to_the_commit(
    project: Project, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """git-sync's submodule_sync_default and submodule_sync_relative; without the option they are left out."""
    module = Project(tmp_path / "srv" / "module")
    commit = module.commit(inside="1")
    settings = '[submodule "lib"]\n\tpath = lib\n\turl = ../../module/.git\n'
    (project.tree / ".gitmodules").write_text(settings)
    project.git("update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    (project.tree / "lib").mkdir()
    project.commit(a="1")
    running = start_mirror(source(submodules="recursive"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {".gitmodules": settings, "a": "1", "lib/inside": "1"}


async def test_a_branch_that_goes_back_is_held_where_only_fast_forward_is_wanted(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """A force-push; a commit on top of the published one is taken."""
    first = project.commit(a="1")
    project.commit(a="2")
    running = start_mirror(source("?ref=main&depth=0", fast_forward_only=True))
    await eventually(lambda: running.is_complete)
    project.commit(a="3")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "3")
    project.git("reset", "--quiet", "--hard", first)
    project.commit(a="forced")
    await eventually(lambda: "--allow-rewind" in (running.problem or ""))
    assert await files(volume) == {"a": "3"}


async def test_a_commit_without_a_signature_is_not_published(
    project: Project, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """By the SSH keys of a file (ssh-keygen(1), ALLOWED SIGNERS)."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed (apt-get install openssh-client)")
    key, signers = tmp_path / "key", tmp_path / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f"ada@example.com {key.with_suffix('.pub').read_text()}")
    for name, value in (
        ("gpg.format", "ssh"),
        ("user.signingkey", str(key)),
        ("commit.gpgsign", "true"),
    ):
        project.git("config", name, value)
    project.commit(a="signed")
    running = start_mirror(source("?ref=main", allowed_signers_file=str(signers)))
    await eventually(lambda: running.is_complete)
    project.git("config", "commit.gpgsign", "false")
    project.commit(a="unsigned")
    await eventually(lambda: "is not signed" in (running.problem or ""))
    assert await files(volume) == {"a": "signed"}


async def test_a_password_is_read_for_each_request(
    project: Project, backend: Backend, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """git-sync's auth_http_password_file and password_file_reload; the password is in no message, and in no command line."""
    secret = tmp_path / "password"
    secret.write_text("wrong")
    backend.password = "right"
    project.commit(a="1")
    running = start_mirror(source("?ref=main", password_file=str(secret)))
    await eventually(lambda: running.problem is not None)
    assert "401" in (running.problem or "")
    secret.write_text("right")
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_a_server_that_is_away_takes_nothing_away(
    project: Project, backend: Backend, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """Nor does a branch that has gone."""
    project.commit(a="1")
    running = start_mirror(source("?ref=main"))
    await eventually(lambda: running.is_complete)
    project.git("branch", "--move", "main", "other")
    await eventually(lambda: "no branch or tag 'main'" in (running.problem or ""))
    backend.root.rename(backend.root.with_name("away"))
    await eventually(lambda: "no branch" not in (running.problem or "no branch"))
    assert await files(volume) == {"a": "1"}


async def test_old_commits_are_forgotten(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """The repository of a mirror that runs for a year holds two commits, not all that it has seen."""
    project.commit(a="0")
    one = source("?ref=main")
    running = start_mirror(one)
    await eventually(lambda: running.is_complete)
    for number in range(1, 5):
        project.commit(a=str(number))
        await eventually(lambda number=number: (Path(volume.path) / "a").read_text() == str(number))
    assert one._repository is not None
    repository = one._repository.directory
    output = subprocess.run(
        ["git", "for-each-ref"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert 1 <= len(output.splitlines()) <= 2


async def test_a_repository_over_ssh(
    project: Project, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually, start_process: StartProcess
) -> None:  # fmt: skip
    """With a key of its own and known hosts; a host that is not known is refused."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if sshd is None or os.geteuid() != 0:
        pytest.skip("sshd is not installed (apt-get install openssh-server), or this is not root")
    Path("/run/sshd").mkdir(exist_ok=True)
    key, host_key, port = tmp_path / "key", tmp_path / "host", free_port()
    for one in (key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", one], check=True)
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    settings = tmp_path / "sshd.conf"
    settings.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {key.with_suffix('.pub')}\nPidFile none\n"
    )
    project.commit(a="1")
    start_process(sshd, "-D", "-e", "-f", settings, until="Server listening")
    url = f"git+ssh://{getpass.getuser()}@127.0.0.1:{port}{project.tree}/.git?ref=main"
    running = start_mirror(GitSource(url, interval=0.1, ssh_key_file=str(key), known_hosts_file=str(known)))  # fmt: skip
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}
    known.write_text("")
    await eventually(lambda: "Host key verification failed" in (running.problem or ""))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("git+https://host/repo.git?branch=main", "write \\?ref="),
        ("git+https://user:secret@host/repo.git", "password_file"),
        ("git+https://host/repo.git#fast_forward_only=true", "depth=0"),
        ("git+https://host/repo.git#submodules=some", "submodules"),
        ("git+ext://host/repo.git", "is no source"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret@" not in str(caught.value)


def test_refs_are_parsed_as_the_protocol_says() -> None:
    """protocol-v2: `ls-refs`, with the attribute of a peeled tag; what is no answer is an error."""
    oid, peeled = "1" * 40, "2" * 40
    lines = [f"{oid} refs/tags/heavy peeled:{peeled}\n", f"{oid} refs/heads/main\n"]
    body = b"".join(b"%04x" % (len(one) + 4) + one.encode() for one in lines) + b"0000"
    assert git._parse_refs(body) == {
        "refs/tags/heavy": oid, "refs/tags/heavy^{}": peeled, "refs/heads/main": oid,
    }  # fmt: skip
    for wrong in (b"", b"<html>", b"0004", body[:-4], b"0009hello"):
        with pytest.raises(ValueError, match=r".+"):
            git._parse_refs(wrong)
