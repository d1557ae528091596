"""The types of what `conftest.py` offers beside it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Command(Protocol):
    def __call__(
        self, *arguments: object, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> Result: ...
