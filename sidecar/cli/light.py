"""Import aiohttp for a server alone: without the certificates that its client would need.

`import aiohttp` reads all certificates of the system, for requests that a reader never sends:
2 MB and 40 ms of every start. Only the commands do this, whose process is ours:
in a user's program the client of aiohttp must stay what it is.
Who sends requests over TLS from these commands makes a context of its own (see `sidecar.http.confirm`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_certificates() -> Iterator[None]:
    """Import the rooms of HTTP inside of this."""
    import ssl  # here, because a list of the commands must not pay for it

    def nothing(self: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """Load no certificates."""

    real = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = real  # type: ignore[method-assign]
