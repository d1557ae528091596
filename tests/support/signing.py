"""Signed contents: keys of a test, and signatures made by the rule that the docs state, not by our code."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


class Signer:
    """A key pair."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def public(self) -> bytes:
        """The public key in PEM."""
        key = self._key.public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def private(self) -> bytes:
        """The private key in PEM."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, text: str | bytes) -> str:
        """Sign a list, in base64."""
        data = text.encode() if isinstance(text, str) else text
        return base64.b64encode(self._key.sign(data)).decode()

    def sign_file(self, name: str, content: str | bytes) -> str:
        """Sign the line of one file."""
        return self.sign(digest_line(name, content))

    def signed(self, files: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
        """Return a set with its list and the signature of that."""
        text = "".join(digest_line(name, content) for name, content in sorted(files.items()))
        return {**files, "SHA256SUMS": text, "SHA256SUMS.sig": self.sign(text) + "\n"}


def digest_line(name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return f"{hashlib.sha256(data).hexdigest()}  {name}\n"


def key_file(path: Path, *signers: Signer) -> Path:
    """Write the public keys of these signers to a file, replaced as a whole."""
    staged = path.with_name(f".{path.name}-new")
    staged.write_bytes(b"".join(one.public for one in signers))
    staged.rename(path)
    return path
