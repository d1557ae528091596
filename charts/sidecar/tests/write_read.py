"""Run by `helm test`: write a file of our own, read it, compare, remove it. The content that is shared stays as it is."""

import contextlib
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable

WRITER, READER = os.environ["WRITER"], os.environ["READER"]
# One name for all runs: the history of a file stays when it is deleted.
NAME = "helm-test"
# Whether writing reaches reading is asked here, not who the server is.
ANYBODY = ssl.create_default_context()
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE
# Behind the Service there may be several Pods, and a start takes a moment.
TIMEOUT = float(os.environ.get("TIMEOUT", "30"))
REFUSED = 422  # by the gate of the writer


def token(path: str) -> str:
    """The first token in a file, or in a directory of them; `NAME: ` may stand before it."""
    if os.path.isdir(path):
        path = os.path.join(path, min(one for one in os.listdir(path) if one[0] != "."))
    return next(line for line in open(path) if line.strip()).split()[-1]


def ask(method: str, url: str, role: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, method=method)
    if path := os.environ.get(f"{role}_TOKEN_FILE"):
        request.add_header("Authorization", f"Bearer {token(path)}")
    try:
        with urllib.request.urlopen(request, timeout=10, context=ANYBODY) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(
    what: str,
    good: Callable[[int, bytes], bool],
    method: str,
    url: str,
    role: str,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """Repeat the request until the answer is a good one, and return it."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            status, said = ask(method, url, role, body)
        except OSError as error:
            status, said = 0, str(error).encode()
        if good(status, said):
            print(f"ok: {what}", flush=True)
            return status, said
        if time.monotonic() > end:
            sys.exit(f"FAILED: {what}: {method} {url} answered {status} {said[:500]!r}")
        time.sleep(0.2)


def candidates() -> list[bytes]:
    """Contents, of which a gate takes one: the one it was told, a text, JSON (and YAML), TOML, and what is there already."""
    if given := os.environ.get("CONTENT"):
        return [given.encode()]
    run = f"written by helm test {uuid.uuid4()}"
    tried = [f"{run}\n", f'"{run}"\n', f'{{"test": "{run}"}}\n', f'test = "{run}"\n']
    status, present = ask("GET", f"{READER}/raw", "READER")
    return [one.encode() for one in tried] + ([present] if status == 200 else [])


def write(url: str) -> bytes | None:
    """Write the first content that the gate takes, and return it; None if it takes none of them."""
    for content in candidates():
        status, why = until(
            "the writer answers",
            lambda status, _: status in (201, 204, REFUSED),
            "PUT",
            url,
            "WRITER",
            content,
        )
        if status != REFUSED:
            return content
        if "CONTENT" in os.environ:
            sys.exit(f"FAILED: the writer refuses tests.content: {why.decode(errors='replace')}")
    return None


def main() -> None:
    written, read = f"{WRITER}/files/{NAME}", f"{READER}/files/{NAME}"
    until(
        "the reader answers", lambda status, _: status in (200, 406, 503), "GET", READER, "READER"
    )
    try:
        content = write(written)
        if content is None:
            print(
                "the gate refuses all that this test knows: name a content that it takes in tests.content"
            )
            return
        until(
            "the reader serves it", lambda *answer: answer == (200, content), "GET", read, "READER"
        )
        print("write -> read: the same")
    finally:
        with contextlib.suppress(OSError):
            ask("DELETE", written, "WRITER")


main()
