"""Lets only signed contents through: what is not signed is kept from readers, who keep the last content that is.

The bytes that are let through are the bytes that were verified: small files are in memory,
and a large one is copied to where no other program can write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sidecar import _errors
from sidecar.fs import private_file
from sidecar.process import metrics
from sidecar.volume.content.metadata import Metadata
from sidecar.volume.content.snapshot import Content, Snapshot
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signatures import LIST, LIST_SIGNATURES, SignedList, Verifier


class _ReplacedError(Exception):
    """The list beside a file belongs to another version of it."""


def _nothing_beside() -> SignedList:
    return SignedList()


def _no_progress() -> None:
    """Ignore the progress of a read."""


class Verified(NamedTuple):
    """What may be used, and why that is not what is on the volume."""

    snapshot: Snapshot[None] | None
    """The last content that was signed; None if there has been none."""
    problem: str | None


class _Examined(NamedTuple):
    """A content as it was read, its digest, and the same bytes where nobody else can change them."""

    found: Content
    digest: str
    private: Content


class SignatureFilter:
    """Verifies each new content of a path once, and again when the keys change.

    `beside` returns the list beside a single file, None if the file is about to be read again.
    Blocking; for use by one thread.
    """

    def __init__(
        self,
        path: str,
        verifier: Verifier,
        *,
        beside: Callable[[], SignedList | None] = _nothing_beside,
        on_progress: Callable[[], None] = _no_progress,
    ) -> None:
        self._path = path
        self._verifier = verifier
        self._read_beside = beside
        self._on_progress = on_progress
        self._found: Snapshot[None] | None = None
        self._is_set = False
        self._verified = Verified(None, None)
        self._examined: dict[str, _Examined] = {}
        self._revision: int | None = None
        self._beside: SignedList | None = None

    def verify(self, found: Snapshot[None] | None, *, is_set: bool = False) -> Verified:
        """Return the last signed content. `found` is what the volume has, None if that is as before.

        `is_set`: its files belong together, so that they must be signed together. That is also so where there is a list.
        """
        revision = self._verifier.refresh()
        if found is not None and found is not self._found:
            self._found, self._is_set = found, is_set
            self._revision = None
        if self._found is None or not self._needs_look(revision):
            return self._verified
        before = self._verified.problem
        try:
            self._verified = self._verify(self._found)
            self._revision = revision
        except _ReplacedError:
            self._revision = None
        except (_errors.ReadError, OSError) as error:
            # It is verified again at the next look.
            self._verified = self._verified._replace(problem=str(error))
            self._revision = None
        if self._verified.problem not in (None, before):
            metrics.CONTENT_UNSIGNED_TOTAL.inc()
        return self._verified

    def _needs_look(self, revision: int) -> bool:
        if revision != self._revision:
            return True
        # The list beside a file may come after it.
        waits = self._verified.problem is not None and self._found and self._found.name is not None
        return bool(waits) and self._read_beside() != self._beside

    def _verify(self, found: Snapshot[None]) -> Verified:
        examined = {name: self._examine(content) for name, content in found.contents().items()}
        self._examined = examined
        if found.name is not None:
            return self._verify_file(found.name, examined[found.name])
        if self._is_set or LIST in examined:
            return self._verify_set(examined, found.metadata)
        return self._verify_each(examined)

    def _verify_file(self, name: str, one: _Examined) -> Verified:
        self._beside = self._read_beside()
        if self._beside is None:
            raise _ReplacedError
        reason = self._verifier.why_not_file(
            name, one.digest, signature_of(one.found), self._beside
        )
        if reason is not None:
            return self._refused(self._path, reason)
        return Verified(Snapshot({name: one.private}, single=True, value=None), None)

    def _verify_set(self, examined: dict[str, _Examined], metadata: Metadata | None) -> Verified:
        text, given = examined.get(LIST), examined.get(LIST_SIGNATURES)
        signed = SignedList(
            text.private.data if text is not None else None,
            given.private.data if given is not None else None,
        )
        digests = {name: one.digest for name, one in examined.items()}
        reason = self._verifier.why_not_set(digests, signed)
        if reason is not None:
            return self._refused(self._path, reason)
        files = {name: one.private for name, one in examined.items()}
        return Verified(Snapshot(files, single=False, value=None, metadata=metadata), None)

    def _verify_each(self, examined: dict[str, _Examined]) -> Verified:
        """Verify loose files, each by its own signature; one that is not signed keeps its last signed content."""
        known = self._verified.snapshot
        files: dict[str, Content] = {}
        problem = None
        for name, one in examined.items():
            reason = self._verifier.why_not_file(name, one.digest, signature_of(one.found))
            if reason is None:
                files[name] = one.private
                continue
            where = os.path.join(self._path, name)
            problem = problem or f"cannot use {where}: {reason}"
            if known is not None and (last := known.get_content(name)) is not None:
                files[name] = last
        if not files:
            return Verified(known, problem)  # else it would seem that everything was deleted
        return Verified(Snapshot(files, single=False, value=None), problem)

    def _refused(self, where: str, reason: str) -> Verified:
        return Verified(self._verified.snapshot, f"cannot use {where}: {reason}")

    def _examine(self, content: Content) -> _Examined:
        known = self._examined.get(content.name)
        if known is not None and known.found.held is content.held:
            private = replace(content, held=known.private.held)
            return _Examined(content, known.digest, private)
        self._on_progress()
        private, digest = take_private(content, self._on_progress)
        return _Examined(content, digest, private)


def take_private(
    content: Content, on_progress: Callable[[], None] = _no_progress
) -> tuple[Content, str]:
    """Return a content whose bytes no other program can change, and its SHA-256. Blocking.

    Raises:
        ContentAltered: a large file has changed since it was read.
        OSError: it cannot be read, or not be copied.
    """
    if isinstance(content.held, bytes):
        return content, signatures.digest_of(content.held)
    held, digest = private_file.copy(content.held, content.version, on_progress)
    return replace(content, held=held), digest


def verified_file(verifier: Verifier, content: Content, beside: SignedList, where: str) -> Content:
    """Return a file that was read from `where`, with bytes that nobody can change. Blocking.

    Raises:
        ReadError: it is not signed, or has changed.
    """
    verifier.refresh()
    private, digest = take_private(content)
    reason = verifier.why_not_file(content.name, digest, signature_of(content), beside)
    if reason is not None:
        raise _errors.ReadError(errno.EBADMSG, f"cannot use {where}: {reason}")
    return private


def verified_snapshot(
    verifier: Verifier, found: Snapshot[None], path: str, *, is_set: bool
) -> Snapshot[None]:
    """Return what is signed of a directory: a set as a whole, or loose files. Blocking.

    Raises:
        ReadError: nothing is.
    """
    verified = SignatureFilter(path, verifier).verify(found, is_set=is_set)
    if verified.snapshot is None:
        raise _errors.ReadError(errno.EBADMSG, verified.problem)
    return verified.snapshot


def signature_of(content: Content) -> str | None:
    """Return the signature that was published with a content, None if there is none."""
    return None if content.metadata is None else content.metadata.signature
