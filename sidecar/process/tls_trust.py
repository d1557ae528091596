"""Which server certificates our clients accept: the same rule for `sidecar check` and `write --confirm`.

A certificate is verified, against a given CA or those of the system; but not without a given CA
if the server is this machine: an impostor there would already control the Pod,
and a certificate for the cluster name does not include `localhost`. The kubelet's own probes verify none.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


def client_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """Return the TLS context of a client.

    Raises:
        OSError: `ca` cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    # Imported here: most probes need no TLS, and it takes longer than everything else.
    import ssl

    context = ssl.create_default_context(cafile=ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_this_machine(address: str) -> bool:
    """Return whether an address is on the loopback interface.

    >>> is_this_machine("127.0.0.1"), is_this_machine("::1"), is_this_machine("127.example.com")
    (True, True, False)
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False  # a name, as 127.example.com
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
