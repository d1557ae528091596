"""A ref of a real repository, served by git's own HTTP backend and by a real SSH server."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory, git, git_refs
from sidecar.mirror.sources.git import GitSource
from sidecar.volume.volume import Volume
from support import Eventually, StartProcess
from support.engines import free_port
from support.git_servers import BACKEND, Backend, Project


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


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("git+https://ghp_token@example.com/a.git", "git+https://example.com/a.git"),
        ("git+ssh://git@example.com/a.git", "git+ssh://git@example.com/a.git"),
    ],
)
def test_the_name_of_a_source_shows_no_token(url: str, name: str) -> None:
    """The user of an address of the web may be a token, and names are in logs, metadata and `..source.json`."""
    assert GitSource(url).name == name


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


@pytest.mark.parametrize(
    ("submodules", "found"),
    [("off", {"a"}), ("shallow", {"a", "lib/b"}), ("recursive", {"a", "lib/b", "lib/deep/c"})],
)
async def test_files_of_submodules_belong_to_the_commit(
    project: Project, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually,
    submodules: str, found: set[str],
) -> None:  # fmt: skip
    """git-sync's submodule_sync_default, _relative, _off and _shallow."""
    deep, module = Project(tmp_path / "srv" / "deep"), Project(tmp_path / "srv" / "module")
    module.add_module("deep", "../../deep/.git", deep.commit(c="3"))
    project.add_module("lib", "../../module/.git", module.commit(b="2"))
    project.commit(a="1")
    running = start_mirror(source(submodules=submodules))
    await eventually(lambda: running.is_complete)
    assert {one for one in await files(volume) if ".gitmodules" not in one} == found


async def test_submodules_that_are_too_deep_are_not_left_out_unsaid(
    project: Project, source: Start, tmp_path: Path, start_mirror: StartMirror, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A set without their files would not be the commit."""
    monkeypatch.setattr(git, "_MOST_SUBMODULES_DEEP", 1)
    deep, module = Project(tmp_path / "srv" / "deep"), Project(tmp_path / "srv" / "module")
    module.add_module("deep", "../../deep/.git", deep.commit(c="3"))
    project.add_module("lib", "../../module/.git", module.commit(b="2"))
    project.commit(a="1")
    running = start_mirror(source(submodules="recursive"))
    await eventually(lambda: "submodules are more than 1 deep" in (running.problem or ""))
    assert running.version is None


async def test_only_wanted_contents_are_transferred(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """git-sync's sparse_checkout, filter_with_sparse_checkout and filter_across_updates: a partial clone."""
    project.commit(dags__a="1", dags__old="0", large="not wanted", plugin="2", plugin2="3")
    one = source("?ref=main", paths=["dags", "plugin"])
    running = start_mirror(one)
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"dags/a": "1", "dags/old": "0", "plugin": "2"}
    project.commit(dags__a="2", dags__old=None, large="neither")
    await eventually(lambda: (Path(volume.path) / "dags/a").read_text() == "2")
    assert await files(volume) == {"dags/a": "2", "plugin": "2"}
    assert one._repository is not None
    assert missing(one._repository.directory, project.git("rev-parse", "HEAD")) == 2


def missing(repository: Path, commit: str) -> int:
    """Return the number of contents of a commit that a repository does not have."""
    done = subprocess.run(
        ["git", "rev-list", "--objects", "--missing=print", commit],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sum(line.startswith("?") for line in done.stdout.splitlines())


async def test_a_server_that_sends_no_single_contents_sends_all(
    project: Project, backend: Backend, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """Version 0 without uploadpack.allowAnySHA1InWant: it leaves contents out on demand, and refuses to send one of them."""
    backend.knows_version_2 = False
    project.git("config", "uploadpack.allowAnySHA1InWant", "false")
    project.commit(dags__a="1", large="not wanted")
    running = start_mirror(source("?ref=main", directory="dags"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


@pytest.mark.parametrize("damage", ["lock", "objects", "all"])
async def test_a_damaged_repository_is_made_anew(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually, damage: str
) -> None:  # fmt: skip
    """What a killed git leaves (git-sync #914), and what a cleaner of /tmp takes away."""
    project.commit(a="1")
    one = source("?ref=main")
    running = start_mirror(one)
    await eventually(lambda: running.is_complete)
    first = one._repository
    assert first is not None
    if damage == "lock":
        (first.directory / "shallow.lock").touch()
    else:
        shutil.rmtree(first.directory / "objects" if damage == "objects" else first.directory)
    project.commit(a="2")
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    assert not first.directory.exists()


async def test_a_repository_without_a_commit_is_waited_for(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    running = start_mirror(source())
    await eventually(lambda: "has no commit yet" in (running.problem or ""))
    project.commit(a="1")
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_a_commit_that_is_too_large_is_not_published(
    project: Project, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """By the size of its files, or, before they are all here, by that of the transfer."""
    project.commit(a="1")
    running = start_mirror(source("?ref=main", max_bytes=20_000))
    await eventually(lambda: running.is_complete)
    project.commit(b="zeros" * 10_000)
    await eventually(lambda: "have 50001 bytes (raise max_bytes)" in (running.problem or ""))
    project.commit(b=None, c=os.urandom(80_000).hex())
    await eventually(lambda: "larger than 80000 bytes (raise max_bytes)" in (running.problem or ""))
    assert await files(volume) == {"a": "1"}


async def test_a_repository_that_has_moved_is_found(
    project: Project, backend: Backend, source: Start, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """git follows a redirection of its first request (git-config(1), http.followRedirects)."""
    backend.moved["/old/"] = "/project/"
    project.commit(a="1")
    running = start_mirror(source("?ref=main", name="old"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_settings_of_git_count_where_they_are_given(
    project: Project, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually, backend: Backend
) -> None:  # fmt: skip
    """git-sync's additional_git_configs."""
    settings = tmp_path / "config"
    base = str(backend.server.make_url("/"))
    settings.write_text(f'[url "{base}project/"]\n\tinsteadOf = {base}alias/\n')
    project.commit(a="1")
    running = start_mirror(source("?ref=main", name="alias", git_config_file=str(settings)))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1"}


async def test_a_password_is_for_its_server_alone(
    project: Project, backend: Backend, source: Start, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """git-sync's submodule_sync_over_http_different_passwords; and a submodule elsewhere does not get that of the repository."""
    other = Backend(tmp_path / "other")
    await other.server.start_server(auto_decompress=False)
    module = Project(tmp_path / "other" / "module")
    project.add_module("lib", other.url("module").removeprefix("git+"), module.commit(b="2"))
    project.commit(a="1")
    backend.password, other.user, other.password = "one", "bob", "two"
    password, stored = tmp_path / "password", tmp_path / "stored"
    password.write_text("one")
    running = start_mirror(source("?ref=main", submodules="recursive", password_file=str(password)))
    await eventually(lambda: running.problem is not None)
    assert backend.basic() in backend.logins
    assert other.logins == {None}
    lines = [
        str(one.server.make_url("/").with_user(one.user).with_password(one.password))
        for one in (backend, other)
    ]
    stored.write_text("\n".join(lines))
    running = start_mirror(
        source("?ref=main", submodules="recursive", credentials_file=str(stored))
    )
    await eventually(lambda: running.is_complete)
    assert (await files(volume))["lib/b"] == "2"
    await other.server.close()


async def test_cookies_are_sent(
    project: Project, backend: Backend, source: Start, tmp_path: Path, start_mirror: StartMirror, eventually: Eventually
) -> None:  # fmt: skip
    """With the question for the refs, and by git: the file has the form that curl writes (git-config(1), http.cookieFile)."""
    cookies = tmp_path / "cookies"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\to\tgit-ada=1\n")
    project.commit(a="1")
    running = start_mirror(source("?ref=main", cookie_file=str(cookies)))
    await eventually(lambda: running.is_complete)
    assert backend.cookies == {"o=git-ada=1"}


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
        ("git+https://host/repo.git#password_file=a&askpass_url=http://b/", "give one of"),
        ("git+https://host/repo.git#github_app_id=1", "go together"),
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
    assert git_refs.parse_refs(body) == {
        "refs/tags/heavy": oid, "refs/tags/heavy^{}": peeled, "refs/heads/main": oid,
    }  # fmt: skip
    for wrong in (b"", b"<html>", b"0004", body[:-4], b"0009hello"):
        with pytest.raises(ValueError, match=r".+"):
            git_refs.parse_refs(wrong)
