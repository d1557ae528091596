"""What each benchmark can be told."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(what: str | None, **numbers: float) -> argparse.ArgumentParser:
    """Return the parser of a benchmark: the numbers that it can be told otherwise, and `--json` for its result."""
    parser = argparse.ArgumentParser(
        description=what, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, number in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(number), default=number, help=f"default: {number:,}"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and curves there")
    return parser
