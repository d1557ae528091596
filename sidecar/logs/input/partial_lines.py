"""The rule that puts together what a container runtime has cut.

A file of its own: its pattern loads RE2, 2.5 MB for everybody who has no use for it.
"""

from __future__ import annotations

from sidecar.logs.input.framing import Multiline

CRI_LINES = Multiline(
    # A line that is cut off has the flag P; every other one, also one that is no CRI at all, ends its group.
    end=r"^\S+ std(?:out|err) [^P]|^\S+ std(?:out|err)? ?$|^\S*$|^\S* (?:[^s]|s[^t]|st[^d]|std[^oe]|$)",
    # Pieces of the two streams may lie mixed.
    apart=r"^\S+ (?P<writer>std(?:out|err)) ",
)
"""Puts the pieces of a long line of a container's log into one record, for `parse_cri` to join."""

DOCKER_LINES = Multiline(
    # A piece has no newline at the end of its text; what is no line of this driver ends its group, too.
    end=r'\\n","(?:stream|attrs|time)":|^$|^[^{]|^\{(?:$|[^"]|"(?:$|[^l]|l(?:$|[^o])))',
    apart=r'","stream":"(?P<writer>std(?:out|err))"',
)
"""The same for the files of Docker's json-file driver, for `parse_docker`."""
