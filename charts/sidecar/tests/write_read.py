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
CONTENT = f"written by helm test {uuid.uuid4()}\n".encode()
# Whether writing reaches reading is asked here, not who the server is.
ANYBODY = ssl.create_default_context()
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE


def ask(method: str, url: str, role: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{url}/files/{NAME}", data=body, method=method)
    if path := os.environ.get(f"{role}_TOKEN_FILE"):
        request.add_header("Authorization", "Bearer " + open(path).read().strip())
    try:
        with urllib.request.urlopen(request, timeout=10, context=ANYBODY) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(
    expected: Callable[[int, bytes], bool],
    what: str,
    method: str,
    url: str,
    role: str,
    body: bytes | None = None,
) -> None:
    """Repeat the request for 30 seconds: behind the Service there may be several Pods, and a start takes a moment."""
    end = time.monotonic() + 30
    while True:
        try:
            answer = ask(method, url, role, body)
        except OSError as error:
            answer = 0, str(error).encode()
        if expected(*answer):
            print(f"ok: {what}", flush=True)
            return
        if time.monotonic() > end:
            sys.exit(
                f"FAILED: {what}: {method} {url}/files/{NAME} answered {answer[0]} {answer[1][:500]!r}"
            )
        time.sleep(0.2)


try:
    until(
        lambda status, _: status in (201, 204),
        "the writer takes a file",
        "PUT",
        WRITER,
        "WRITER",
        CONTENT,
    )
    until(
        lambda status, body: (status, body) == (200, CONTENT),
        "the reader serves the same bytes",
        "GET",
        READER,
        "READER",
    )
finally:
    with contextlib.suppress(OSError):
        ask("DELETE", WRITER, "WRITER")
print("write -> read: the same")
