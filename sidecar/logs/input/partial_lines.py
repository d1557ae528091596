"""Multiline rules that join lines split by a container runtime.

A separate module, since its patterns load RE2 (2.5 MB).
"""

from __future__ import annotations

from sidecar.logs.input.framing import Multiline

CRI_LINES = Multiline(
    # A partial line has the flag P; every other line ends its group, even one that is not CRI.
    end=r"^\S+ std(?:out|err) [^P]|^\S+ std(?:out|err)? ?$|^\S*$|^\S* (?:[^s]|s[^t]|st[^d]|std[^oe]|$)",
    # Partial lines of stdout and stderr may be interleaved.
    apart=r"^\S+ (?P<writer>std(?:out|err)) ",
)
"""Groups the partial lines of a container log (CRI) into one record, for `parse_cri` to join."""

DOCKER_LINES = Multiline(
    # A partial line has no newline at the end of its text; a line of another format ends its group as well.
    end=r'\\n","(?:stream|attrs|time)":|^$|^[^{]|^\{(?:$|[^"]|"(?:$|[^l]|l(?:$|[^o])))',
    apart=r'","stream":"(?P<writer>std(?:out|err))"',
)
"""The same for files of Docker's json-file driver, for `parse_docker`."""
