"""Keys, lists and signatures: what is trusted, and what is refused with which words."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar import ConfigError
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signatures import SignedList, Verifier
from support.signing import Signer, digest_line, key_file

DIGEST = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"  # of "foo\n"


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def verifier(tmp_path: Path, signer: Signer) -> Verifier:
    return Verifier([str(key_file(tmp_path / "keys.pem", signer))])


def test_a_list_is_what_sha256sum_prints(tmp_path: Path) -> None:
    """Names with a backslash are escaped as there, and the tool can check our lists."""
    names = ["a b", "back\\slash", "ß", "sub/c", "*star", " space"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    printed = subprocess.run(
        ["sha256sum", *sorted(names, key=str.encode)],
        cwd=tmp_path, capture_output=True, check=True, env={"LC_ALL": "C"},
    ).stdout  # fmt: skip
    digests = signatures.parse_list(printed)
    assert sorted(digests) == sorted(names)
    assert signatures.make_list(digests) == printed


def test_lists_of_find_and_of_the_binary_mode_are_read() -> None:
    """`find . -type f | xargs sha256sum --binary` writes `*./name`; `#` begins a comment, as for the tool."""
    text = f"# of today\n{DIGEST.upper()} *./sub/a\n{DIGEST}  b\n".encode()
    assert signatures.parse_list(text) == {"sub/a": DIGEST, "b": DIGEST}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff\n", "not UTF-8"),
        (f"{DIGEST}  a".encode(), "last line is not complete"),
        (f"{DIGEST} a\n".encode(), "line 1 is not"),
        (f"{DIGEST[:-1]}  a\n".encode(), "line 1 is not"),
        (f"{DIGEST}  a\r\n{DIGEST}  a\r\n".encode(), "line 2 has the name of another line"),
        (f"{DIGEST}  ./a\n{DIGEST}  a\n".encode(), "line 2 has the name of another line"),
        (f"{DIGEST}  SHA256SUMS\n".encode(), "cannot contain its own digest"),
        (f"SHA256 (a) = {DIGEST}\n".encode(), "line 1 is not"),
        (b"x" * (signatures.MAX_LIST_BYTES + 1), "larger than 8 MiB"),
    ],
)
def test_what_is_no_list_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        signatures.parse_list(text)


def test_openssl_signs_what_is_accepted(tmp_path: Path) -> None:
    """The workflow without our command: sha256sum, openssl, base64."""
    (tmp_path / "config").write_text("foo\n")
    script = """
        openssl genpkey -algorithm ed25519 -out key.pem
        openssl pkey -in key.pem -pubout -out pub.pem
        sha256sum config > config.sums
        openssl pkeyutl -sign -rawin -inkey key.pem -in config.sums | base64
    """
    made = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, check=True)
    verifier = Verifier([str(tmp_path / "pub.pem")])
    # base64(1) breaks lines after 76 characters.
    text = "".join(made.stdout.decode().split())
    assert verifier.why_not_file("config", DIGEST, text) is None


def test_a_signature_holds_for_one_content_under_one_name(
    verifier: Verifier, signer: Signer
) -> None:
    signature = signer.sign_file("a", "foo\n")
    assert verifier.why_not_file("a", DIGEST, signature) is None
    for name, digest in (("b", DIGEST), ("sub/a", DIGEST), ("a", "0" * 64)):
        assert "no trusted key" in (verifier.why_not_file(name, digest, signature) or "")


def test_signatures_that_cannot_be_used_are_refused(verifier: Verifier, signer: Signer) -> None:
    good = signer.sign_file("a", "foo\n")
    raw = base64.b64decode(good)
    for text, why in (
        (good[:-4], "not base64 of 64 bytes"),
        (good[:-4] + "A===", "not base64 of 64 bytes"),
        ("", "empty"),
        ("ä", "not base64"),
        (" ".join([good] * 20), "more than 8"),
        (base64.b64encode(bytes(64)).decode(), "no trusted key"),
        (base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode(), "no trusted key"),
        (Signer().sign_file("a", "foo\n"), "no trusted key"),
        (signer.sign("foo\n"), "no trusted key"),  # of the content, and not of its line
    ):
        assert why in (verifier.why_not_file("a", DIGEST, text) or ""), text
    assert "not signed" in (verifier.why_not_file("a", DIGEST, None) or "")


def test_of_several_signatures_one_is_enough(verifier: Verifier, signer: Signer) -> None:
    """The old key and the new one sign while keys are rotated."""
    both = [Signer().sign_file("a", "foo\n"), signer.sign_file("a", "foo\n")]
    assert verifier.why_not_file("a", DIGEST, ", ".join(both)) is None
    assert verifier.why_not_file("a", DIGEST, "\n".join(both)) is None


def test_a_set_is_signed_with_exactly_its_files(verifier: Verifier, signer: Signer) -> None:
    files = signer.signed({"a": "foo\n", "sub/b": "foo\n"})
    text, signed = (str(files[name]).encode() for name in ("SHA256SUMS", "SHA256SUMS.sig"))
    whole = dict.fromkeys(files, DIGEST)
    beside = SignedList(text, signed)
    assert verifier.why_not_set(whole, beside) is None
    for digests, given, why in (
        (whole | {"c": DIGEST}, beside, "c is not in SHA256SUMS"),
        (whole | {"a": "0" * 64}, beside, "a is not what SHA256SUMS says"),
        ({"a": DIGEST}, beside, "sub/b is missing"),
        (whole, SignedList(), "it has no SHA256SUMS"),
        (whole, SignedList(text), "it has no SHA256SUMS.sig"),
        (whole, SignedList(text + b"#\n", signed), "no trusted key has signed SHA256SUMS"),
        (whole, SignedList(text, b"\xff" * 64), "openssl writes bytes"),
        (whole, SignedList(b"", signer.sign(b"").encode()), "is not in SHA256SUMS"),
        (whole, SignedList(b"x\n", signer.sign(b"x\n").encode()), "not a list of sha256sum"),
    ):
        assert why in (verifier.why_not_set(digests, given) or "")


def test_a_list_beside_a_file_names_it(verifier: Verifier, signer: Signer) -> None:
    text = digest_line("a", "foo\n")
    beside = SignedList(text.encode(), signer.sign(text).encode())
    assert verifier.why_not_file("a", DIGEST, None, beside) is None
    assert verifier.why_not_file("a", DIGEST, "damaged", beside) is None
    assert verifier.why_not_file("b", DIGEST, None, beside) == "b is not in SHA256SUMS"
    assert verifier.why_not_file("a", "0" * 64, None, beside) == "a is not what SHA256SUMS says"


def test_keys_are_added_and_retired_while_it_runs(tmp_path: Path) -> None:
    """The file is replaced as a Secret is: by rename. Several keys are valid at the same time."""
    old, new = Signer(), Signer()
    keys = key_file(tmp_path / "keys.pem", old)
    verifier = Verifier([str(keys)])

    def accepted() -> list[bool]:
        verifier.refresh()
        texts = [one.sign_file("a", "foo\n") for one in (old, new)]
        return [verifier.why_not_file("a", DIGEST, text) is None for text in texts]

    revision = verifier.refresh()
    assert accepted() == [True, False]
    assert verifier.revision == revision
    key_file(keys, old, new)
    assert accepted() == [True, True]
    key_file(keys, new)
    assert accepted() == [False, True]
    assert verifier.revision == revision + 2


def test_a_key_file_that_breaks_signs_nothing_until_it_is_whole(
    tmp_path: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who empties it to revoke a key must not have it trusted on."""
    keys = key_file(tmp_path / "keys.pem", signer)
    verifier, signature = Verifier([str(keys)]), signer.sign_file("a", "foo\n")
    for broken in (b"", signer.public[:-20]):
        keys.write_bytes(broken)
        verifier.refresh()
        verifier.refresh()
        assert str(keys) in (verifier.why_not_file("a", DIGEST, signature) or "")
    keys.unlink()
    verifier.refresh()
    assert "No such file" in (verifier.why_not_file("a", DIGEST, signature) or "")
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1
    key_file(keys, signer)
    verifier.refresh()
    assert verifier.why_not_file("a", DIGEST, signature) is None


def test_errors_of_keys_name_the_file_and_what_is_wrong(tmp_path: Path, signer: Signer) -> None:
    """And never quote it: it may be a private key."""
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    for data, why in (
        (b"", "no public key in PEM"),
        (b"ssh-ed25519 AAAA you@host\n", "no public key in PEM"),
        (signer.private, "block 1 is a private key"),
        (signer.public + signer.private, "block 2 is a private key"),
        (signer.public[:-10], "a block has no end"),
        (signer.public.replace(b"\nMC", b"\nXX"), "block 1 is damaged"),
        (other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "no ed25519 key"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "CERTIFICATE"),
        (signer.public * 65, "more than 64 keys"),
        (b" " * (65 << 10), "larger than 64 KiB"),
    ):
        path = tmp_path / "key.pem"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=why) as error:
            Verifier([str(path)])
        assert str(path) in str(error.value)
        assert "MC4CAQ" not in str(error.value)
    for path, why in ((tmp_path / "missing", "No such file"), (tmp_path, "no regular file")):
        with pytest.raises(ConfigError, match=why):
            Verifier([str(path)])


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"podsidecar\[sign\]"):
        signatures.make_verifier("verify_key", "keys.pem")


def test_an_argument_that_is_no_path_is_refused() -> None:
    assert signatures.make_verifier("verify_key", ()) is None
    for value in (7, {"a": 1}, b"keys.pem", ("a", 7), None):
        with pytest.raises(ConfigError, match="verify_key"):
            signatures.make_verifier("verify_key", value)
