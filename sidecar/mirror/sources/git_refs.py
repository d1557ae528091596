"""The refs of a repository by protocol version 2 (https://git-scm.com/docs/protocol-v2): one request, and no process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sidecar.mirror.client import Client

COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_FLUSH, _DELIMITER = b"0000", b"0001"
_KIND = "application/x-git-upload-pack"
_FOR_GIT = frozenset((301, 302, 303, 307, 308, 400, 403, 404, 405, 415))
"""Statuses of servers that speak another version, or lie elsewhere: git itself finds out, and says what is wrong."""


def candidates(ref: str) -> list[str]:
    """Return the full names that a short one may mean."""
    if ref == "HEAD" or ref.startswith("refs/"):
        return [ref]
    return [f"refs/heads/{ref}", f"refs/tags/{ref}"]


async def list_refs(
    client: Client, wanted: Sequence[str], headers: Mapping[str, str]
) -> dict[str, str] | None:
    """Return the refs that begin with these names; None where the server does not answer in version 2.

    Raises:
        SourceUnavailable: there is no answer.
    """
    prefixes = [f"ref-prefix {one}\n".encode() for one in wanted]
    lines = [b"command=ls-refs\n", b"object-format=sha1\n"]
    body = b"".join(
        [*map(_packet, lines), _DELIMITER, *map(_packet, [b"peel\n", *prefixes]), _FLUSH]
    )
    answer = await client.request(
        "POST", f"{client.url.rstrip('/')}/git-upload-pack", data=body,
        headers={**headers, "Content-Type": f"{_KIND}-request", "Accept": f"{_KIND}-result", "Git-Protocol": "version=2"},
        accept=_FOR_GIT | {200},
    )  # fmt: skip
    if answer.status != 200 or answer.headers.get("Content-Type") != f"{_KIND}-result":
        return None
    try:
        return parse_refs(answer.body)
    except ValueError:
        return None


def _packet(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


def parse_refs(body: bytes) -> dict[str, str]:
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
        if not COMMIT.fullmatch(oid):
            raise ValueError(f"{oid!r} is no object")
        found[name] = oid
        for one in more:
            if one.startswith("peeled:"):
                found[f"{name}^{{}}"] = one.removeprefix("peeled:")
        at += size
