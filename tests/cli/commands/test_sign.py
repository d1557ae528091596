"""`sidecar sign`, and the commands that verify: `publish`, `wait`, `doctor`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli import main
from support import environment
from support.commands import Command, Result
from support.signing import Signer, key_file


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`command("sign", file, "--key", path)` in an empty directory; in this process, which takes a tenth of the time."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> Result:
        code = main.run([str(one) for one in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    signer = Signer()
    (tmp_path / "key.pem").write_bytes(signer.private)
    key_file(tmp_path / "pub.pem", signer)
    return signer


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("<h1>1</h1>")
    (tmp_path / "site" / "sub" / "b").write_text("b")
    return tmp_path / "site"


def test_a_file_is_signed_under_its_name(command: Command, tmp_path: Path, signer: Signer) -> None:
    """stdout holds the signature and nothing else. ed25519 always makes the same one (RFC 8032)."""
    (tmp_path / "config").write_text("a: 1")
    signature = signer.sign_file("config", "a: 1") + "\n"
    assert command("sign", "config", "--key", "key.pem") == (0, signature, "")
    program = [sys.executable, "-m", "sidecar.cli"]
    arguments = ["sign", "-", "--key", "key.pem", "--name", "config"]
    piped = subprocess.run(
        [*program, *arguments], cwd=tmp_path, input=b"a: 1", capture_output=True, check=True, env=environment()
    )  # fmt: skip
    assert piped.stdout.decode() == signature
    other = command("sign", "config", "--key", "key.pem", "--name", "sub/other")
    assert other.out == signer.sign_file("sub/other", "a: 1") + "\n"


def test_a_directory_is_signed_as_the_tools_do_it(
    command: Command, tmp_path: Path, site: Path, signer: Signer
) -> None:
    """sha256sum accepts the list; openssl accepts the signature; signing it again changes nothing."""
    assert command("sign", "site", "--key", "key.pem") == (0, "", "")
    made = {name: (site / name).read_bytes() for name in ("SHA256SUMS", "SHA256SUMS.sig")}
    script = """
        cd site && sha256sum --check --strict --quiet SHA256SUMS
        base64 -d SHA256SUMS.sig > ../raw
        openssl pkeyutl -verify -rawin -pubin -inkey ../pub.pem -in SHA256SUMS -sigfile ../raw
    """
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    assert command("sign", "site", "--key", "key.pem").code == 0
    assert {name: (site / name).read_bytes() for name in made} == made
    assert sorted(made["SHA256SUMS"].decode().split()[1::2]) == ["index.html", "sub/b"]


def test_a_signed_set_is_published_waited_for_and_examined(
    command: Command, tmp_path: Path, site: Path, signer: Signer
) -> None:
    """And one that is not signed is refused by each of them, with the reason."""
    keys = ("--verify-key", "pub.pem")
    refused = command("publish", "site", "--path", "shared/", *keys)
    assert refused.code == 1
    assert "it has no SHA256SUMS" in refused.err
    assert [one.name for one in (tmp_path / "shared").iterdir()] == ["..lock"]
    command("publish", "site", "--path", "shared/")
    late = command("wait", "--path", "shared", "--timeout", "0", *keys)
    assert late.code == 1
    assert "not signed" in late.err
    doctor = command("doctor", "--path", "shared", *keys)
    assert doctor.code == 1
    assert "it has no SHA256SUMS" in doctor.out
    command("sign", "site", "--key", "key.pem")
    done = command("publish", "site", "--path", "shared/", *keys)
    assert done.code == 0
    assert command("wait", "--path", "shared", "--timeout", "5", *keys).out == done.out
    one = command("wait", "--path", "shared/index.html", "--timeout", "5", *keys)
    assert one.code == 0
    assert "a trusted key has signed the content" in command(
        "doctor", "--path", "shared", *keys
    ).out  # fmt: skip


def test_errors_name_the_file_and_what_is_wrong(
    command: Command, tmp_path: Path, site: Path, signer: Signer
) -> None:
    """A usage error is 2, also in place of a start that would trust nothing."""
    encrypt = "openssl pkey -in key.pem -aes256 -passout pass:x -out secret.pem"
    subprocess.run(encrypt.split(), cwd=tmp_path, check=True)
    for arguments, why in (
        (("sign", "site", "--key", "missing.pem"), "key in missing.pem: No such file"),
        (("sign", "site", "--key", "pub.pem"), "key in pub.pem: it is no private key"),
        (("sign", "site", "--key", "secret.pem"), "key in secret.pem: it is encrypted"),
        (("sign", "-", "--key", "key.pem"), "standard input has no name"),
        (("sign", "site", "--key", "key.pem", "--name", "x"), "--name is of no use"),
        (("sign", "nothing", "--key", "key.pem"), "cannot read nothing"),
        (("wait", "--path", "x", "--verify-key", "key.pem"), "key.pem: block 1 is a private key"),
        (("read", "--path", "x", "--verify-key", "nothing"), "keys in nothing: No such file"),
        (("write", "--path", "x", "--verify-key", "site"), "keys in site: it is no regular file"),
    ):
        done = command(*arguments)
        assert (done.code, why in done.err) == (2, True), done
    command("publish", "site", "--path", "shared/")
    assert "published already" in command("sign", "shared", "--key", "key.pem").err
