"""Signatures: what an ed25519 key has signed, and nothing else, is published and served.

What is signed is a list as sha256sum(1) prints it: for each file a line with the SHA-256 of its content, and its name.

    b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c  config

So a signature holds for one content under one name. A single file is signed by the list of its one line,
which need not be kept: it follows from the content. A set contains its list as the file `SHA256SUMS`,
which names all other files of the set, and the signatures of that file as `SHA256SUMS.sig`.

A signature is pure Ed25519 (RFC 8032) in base64. Of several, separated by white space or commas, one is enough.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from sidecar import _errors
from sidecar.fs import openat
from sidecar.process import arguments, metrics
from sidecar.volume.content.snapshot import Content

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

KeyFiles: TypeAlias = str | os.PathLike[str] | Collection[str | os.PathLike[str]]
"""The path of a file with public keys, or several."""

EXTRA: Final = "pip install 'podsidecar[sign]'"
LIST: Final = "SHA256SUMS"
"""The file of a set that lists the others, with their digests."""
LIST_SIGNATURES: Final = "SHA256SUMS.sig"
"""The file with its signatures."""
MAX_LIST_BYTES: Final = 8 << 20
MAX_SIGNATURES: Final = 8
"""Signatures of one content that are tried: each with every key."""
MAX_KEYS: Final = 64

_MAX_KEY_FILE_BYTES: Final = 64 << 10
_SIGNATURE_BYTES: Final = 64
_SIGNATURE_CHARACTERS: Final = 88
_MAX_SIGNATURE_CHARACTERS: Final = MAX_SIGNATURES * (_SIGNATURE_CHARACTERS + 4)
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_LINE: Final = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.ASCII | re.DOTALL)
_ESCAPES: Final = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
UNSIGNED: Final = (
    f"it is not signed (the signature of a file is published with it, or {LIST} and {LIST_SIGNATURES}"
    " lie beside it)"
)

_log = logging.getLogger(__name__)


class SignedList(NamedTuple):
    """A list beside a file, and its signatures; None where there is no such file."""

    text: bytes | None = None
    signatures: bytes | None = None


NO_LIST: Final = SignedList()


def line(name: str, digest: str) -> str:
    r"""Return the line of one file, as sha256sum(1) prints it.

    >>> line("a", "0" * 64)[62:], line("a\\b", "0" * 64)[:4]
    ('00  a\n', '\\000')
    """
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n"


def make_list(digests: Mapping[str, str]) -> bytes:
    """Return the list of a set, sorted by name; the list itself and its signatures are left out."""
    names = sorted(digests.keys() - {LIST, LIST_SIGNATURES}, key=os.fsencode)
    return "".join(line(name, digests[name]) for name in names).encode()


def parse_list(text: bytes) -> dict[str, str]:
    """Return the digests of a list by name; lines that begin with `#` are comments, as for sha256sum(1).

    Raises:
        ValueError: it is none; the message says what is wrong, without quoting the text.
    """
    if len(text) > MAX_LIST_BYTES:
        raise ValueError(f"it is larger than {MAX_LIST_BYTES >> 20} MiB")
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if lines.pop():
        raise ValueError("its last line is not complete")
    found: dict[str, str] = {}
    for number, one in enumerate(lines, start=1):
        if one.startswith("#"):
            continue
        match = _LINE.fullmatch(one)
        if match is None:
            raise ValueError(f"line {number} is not a digest, two spaces and a name")
        name = _unescape(match[3]) if match[1] else match[3]
        name = name.removeprefix("./")
        if name in found:
            raise ValueError(f"line {number} has the name of another line")
        if name in (LIST, LIST_SIGNATURES):
            raise ValueError(f"line {number} is {name}, which cannot contain its own digest")
        found[name] = match[2].lower()
    return found


def parse_signatures(text: str) -> list[bytes]:
    """Return the signatures in a text.

    >>> len(parse_signatures("A" * 86 + "==")[0])
    64

    Raises:
        ValueError: one of them is not base64 of 64 bytes, or there are too many.
    """
    if len(text) > _MAX_SIGNATURE_CHARACTERS:
        raise ValueError(f"there are more than {MAX_SIGNATURES} signatures")
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("it is empty")
    found = []
    for word in words:
        try:
            signature = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        if len(signature) != _SIGNATURE_BYTES:
            raise ValueError(f"it is not base64 of {_SIGNATURE_BYTES} bytes")
        found.append(signature)
    return found[:MAX_SIGNATURES]


def why_unusable(signature: str | None) -> str | None:
    """Return why no content can have this signature, None if one might."""
    if signature is None:
        return UNSIGNED
    try:
        parse_signatures(signature)
    except ValueError as error:
        return f"the signature cannot be used: {error}"
    return None


def digest_of(content: bytes | Content) -> str:
    """Return the SHA-256 of a content in hex digits. Blocking.

    Raises:
        ContentAltered, OSError: as `Content.write_to`.
    """
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        content.write_to(digest.update)
    return digest.hexdigest()


class Verifier:
    """The keys that may sign. Their files are read again for each decision, so that keys can be rotated.

    While a file cannot be read, or holds anything but keys, its keys sign nothing.
    Any thread may use it.
    """

    def __init__(self, paths: Collection[str]) -> None:
        """Read the keys.

        Raises:
            ConfigError: a file cannot be read or is no key, or the extra `sign` is not installed.
        """
        _check_extra()
        self._lock = threading.Lock()
        self._files = [_KeyFile(path) for path in paths]
        self.revision = 0
        """Changes with the keys."""
        for one in self._files:
            one.refresh()
            if one.problem is not None:
                raise _errors.ConfigError(one.problem)

    def __repr__(self) -> str:
        return f"<Verifier {', '.join(one.path for one in self._files)}>"

    def refresh(self) -> int:
        """Read the files again, and return `revision`."""
        with self._lock:
            if any([one.refresh() for one in self._files]):  # noqa: C419 (all of them are read)
                self.revision += 1
            return self.revision

    def why_not_file(
        self, name: str, digest: str, signature: str | None, beside: SignedList = NO_LIST
    ) -> str | None:
        """Return why a file may not be used: neither is it signed itself, nor does a signed list beside it name it.

        None: it is signed.
        """
        if signature is None and beside.text is None:
            return UNSIGNED
        reasons = []
        if signature is not None:
            reason = self._why_not(line(name, digest).encode(), signature, "under this name")
            if reason is None:
                return None
            reasons.append(reason)
        if beside.text is not None:
            reason = self._why_not_listed(name, digest, beside)
            if reason is None:
                return None
            reasons.append(reason)
        return "; ".join(reasons)

    def why_not_set(self, digests: Mapping[str, str], signed: SignedList) -> str | None:
        """Return why a set may not be used: its list is not signed, or not exactly that of its files. None: it may."""
        listed = self._read_list(signed)
        if isinstance(listed, str):
            return listed
        for name in digests.keys() - {LIST, LIST_SIGNATURES}:
            if name not in listed:
                return _not_in_list(name)
            if listed[name] != digests[name]:
                return f"{name} is not what {LIST} says"
        for name in listed.keys() - digests.keys():
            return f"{name} is missing, and {LIST} names it"
        return None

    def why_not_publish(self, name: str, digest: str, signature: str | None) -> str | None:
        """As `why_not_file`, by the keys that the files hold now."""
        self.refresh()
        return self.why_not_file(name, digest, signature)

    def check_set(self, where: str, files: Mapping[str, bytes | Content]) -> None:
        """Check a set before it is published. Blocking.

        Raises:
            ContentRefused: it is not signed.
            ContentAltered, OSError: a large file cannot be read, or has changed.
        """
        self.refresh()
        signed = SignedList(*(_data(files.get(name)) for name in (LIST, LIST_SIGNATURES)))
        digests = {name: digest_of(content) for name, content in files.items()}
        reason = self.why_not_set(digests, signed)
        if reason is not None:
            raise refused(where, reason)

    def _why_not_listed(self, name: str, digest: str, beside: SignedList) -> str | None:
        listed = self._read_list(beside)
        if isinstance(listed, str):
            return listed
        if name not in listed:
            return _not_in_list(name)
        return None if listed[name] == digest else f"{name} is not what {LIST} says"

    def _read_list(self, signed: SignedList) -> dict[str, str] | str:
        """Return the digests of a signed list, or why it is not one."""
        if signed.text is None:
            return f"the set is not signed: it has no {LIST}"
        if signed.signatures is None:
            return f"the set is not signed: it has no {LIST_SIGNATURES}"
        if len(signed.text) > MAX_LIST_BYTES:
            return f"{LIST} is larger than {MAX_LIST_BYTES >> 20} MiB"
        try:
            signatures = signed.signatures.decode("ascii")
        except UnicodeDecodeError:
            return f"{LIST_SIGNATURES} is not base64 (openssl writes bytes: encode them)"
        if reason := self._why_not(signed.text, signatures, LIST):
            return reason
        try:
            return parse_list(signed.text)
        except ValueError as error:
            return f"{LIST} is not a list of sha256sum: {error}"

    def _why_not(self, message: bytes, signatures: str, what: str) -> str | None:
        try:
            found = parse_signatures(signatures)
        except ValueError as error:
            return f"the signature cannot be used: {error}"
        if any(_is_signed(key, one, message) for key in self._keys() for one in found):
            return None
        problems = "".join(f"; {one.problem}" for one in self._files if one.problem)
        if what == LIST:
            return f"no trusted key has signed {LIST}{problems}"
        return f"no trusted key has signed this content {what}{problems}"

    def _keys(self) -> Iterable[Ed25519PublicKey]:
        return (key for one in self._files for key in one.keys)


class _KeyFile:
    """A file with public keys."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.keys: tuple[Ed25519PublicKey, ...] = ()
        self.problem: str | None = None
        self._data: bytes | None = None

    def refresh(self) -> bool:
        """Read the file; return whether it differs from what it was."""
        before = (self._data, self.problem)
        try:
            data = _read_small(self.path)
            if data == self._data:
                return False
            # The content of the file and its keys change together, as seen by other threads.
            keys = parse_keys(data)
            self.keys, self._data, self.problem = keys, data, None
        except OSError as error:
            self._fail(error.strerror or str(error))
        except ValueError as error:
            self._fail(str(error))
        if before[1] is not None and self.problem is None:
            _log.info("the keys in %s can be used again", self.path)
        return before != (self._data, self.problem)

    def _fail(self, why: str) -> None:
        problem = f"cannot use the keys in {self.path}: {why}"
        if problem != self.problem and self._data is not None:
            _log.warning("%s; nothing that they have signed is accepted now", problem)
        self.keys, self._data, self.problem = (), None, problem


def parse_keys(data: bytes) -> tuple[Ed25519PublicKey, ...]:
    """Return the public keys of a PEM file.

    Raises:
        ValueError: it holds no key, or something else; the message says what, without quoting it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = []
    for number, block in enumerate(_PEM.finditer(data), start=1):
        label = block[1].decode()
        if "PRIVATE KEY" in label:
            raise ValueError(
                f"block {number} is a private key: take the public one (openssl pkey -pubout),"
                " and keep the private one from here"
            )
        if label != "PUBLIC KEY":
            raise ValueError(f"block {number} is no public key: {label}")
        try:
            key = load_pem_public_key(block[0])
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(f"block {number} is damaged") from None
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"block {number} is no ed25519 key")  # noqa: TRY004 (of the file)
        found.append(key)
    if b"-----BEGIN" in _PEM.sub(b"", data):
        raise ValueError("a block has no end")
    if not found:
        raise ValueError("there is no public key in PEM (-----BEGIN PUBLIC KEY-----)")
    if len(found) > MAX_KEYS:
        raise ValueError(f"there are more than {MAX_KEYS} keys")
    return tuple(found)


def read_private_key(path: str) -> Ed25519PrivateKey:
    """Return the private key in a PEM file, to sign with.

    Raises:
        ConfigError: there is none, or the extra `sign` is not installed.
    """
    _check_extra()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    cannot = f"cannot sign with the key in {path}"
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise _errors.ConfigError(f"{cannot}: {error.strerror}") from error
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise _errors.ConfigError(
            f"{cannot}: it is encrypted (openssl pkey -in KEY decrypts it)"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _errors.ConfigError(f"{cannot}: it is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _errors.ConfigError(
            f"{cannot}: it is no ed25519 key (openssl genpkey -algorithm ed25519)"
        )
    return key


def sign(key: Ed25519PrivateKey, message: bytes) -> str:
    """Return the signature of a list, in base64."""
    return base64.b64encode(key.sign(message)).decode()


def make_verifier(name: str, value: object) -> Verifier | None:
    """Return the verifier for the files of an argument: a path, or several; None for none.

    Raises:
        ConfigError: as `Verifier`, or the argument is something else.
    """
    if isinstance(value, str | os.PathLike):
        value = (value,)
    if not isinstance(value, Collection) or isinstance(value, bytes | bytearray | Mapping):
        raise arguments.argument_error(name, value, "the path of a file with keys, or several")
    paths = [arguments.check_path(name, one) for one in value]
    return Verifier(paths) if paths else None


def read_list(dir_fd: int, folder: str = ".") -> SignedList:
    """Return the list in a folder of an open directory and its signatures, as far as they can be read. Blocking."""
    return SignedList(
        _read_beside(dir_fd, f"{folder}/{LIST}"),
        _read_beside(dir_fd, f"{folder}/{LIST_SIGNATURES}"),
    )


def refused(where: str, reason: str) -> _errors.ContentRefused:
    """Count a content that is not published, and return the error for it; `where` is its path."""
    metrics.CONTENT_UNSIGNED_TOTAL.inc()
    return _errors.ContentRefused(f"cannot publish {where}: {reason}", [reason])


def _data(content: bytes | Content | None) -> bytes | None:
    return content.data if isinstance(content, Content) else content


def _check_extra() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise _errors.ConfigError(f"signatures need the package cryptography: {EXTRA}") from error


def _is_signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _read_small(path: str) -> bytes:
    """Return the bytes of a regular file. Raises `OSError`, or `ValueError` if it cannot be one of keys."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        data = os.read(fd, _MAX_KEY_FILE_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_KEY_FILE_BYTES >> 10} KiB")
    return data


def _read_beside(dir_fd: int, name: str) -> bytes | None:
    with contextlib.suppress(OSError, _errors.ReadError):
        fd = openat.open_beneath(dir_fd, name)
        try:
            return openat.read_descriptor(fd, MAX_LIST_BYTES, name).data
        finally:
            openat.close(fd)
    return None


def _unescape(name: str) -> str:
    return re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), name, flags=re.DOTALL)


def _not_in_list(name: str) -> str:
    return f"{name} is not in {LIST}"
