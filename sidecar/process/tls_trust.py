"""Whose certificate a client of ours accepts: the same rule for `sidecar check` and `write --confirm`.

It is verified, against an authority that was named or those of the system; but not where no authority was named
and the server is this very machine: what could pass for it there has taken over the Pod already,
and a certificate for its name in the cluster names no `localhost`. The kubelet's own probes verify none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


def client_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """Return the TLS context of a client.

    Raises:
        OSError: `ca` cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    # Imported here: most probes need no TLS, and it takes longer than all the rest.
    import ssl

    context = ssl.create_default_context(cafile=ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_this_machine(address: str) -> bool:
    """Tell whether an address is one of the loopback interface.

    >>> is_this_machine("127.0.0.1"), is_this_machine("::1"), is_this_machine("localhost")
    (True, True, False)
    """
    return address == "::1" or address.startswith(("127.", "::ffff:127."))
