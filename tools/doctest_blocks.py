"""An extension of Griffe: the examples of a docstring are blocks of code on the site, and no quotation."""  # noqa: INP001 (a tool, not a package)

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*\n?)+", re.MULTILINE)
"""Lines from `>>>` to the next empty one; examples that follow each other are one block."""


class DoctestBlocks(griffe.Extension):
    """Fence what begins with `>>>`."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(
                lambda found: f"```pycon\n{found[0].strip()}\n```\n", obj.docstring.value
            )
