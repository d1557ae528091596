"""Each block of each page is run, or checked where it needs a cluster: `support.pages` says how."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import pages

RUN_ELSEWHERE = {
    "README.md": "test_docs.py: its programs and its transcript",
    "docs/python.md": "test_docs.py: its programs work together",
}
"""Pages whose commands need more than a reader's terminal; the test that runs them."""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page",
    [one for one in pages.pages() if str(one.relative_to(pages.ROOT)) not in RUN_ELSEWHERE],
    ids=lambda page: str(page.relative_to(pages.ROOT)),
)
def test_each_block_of_the_page_runs_as_printed(
    page: Path, mount_points: None, tmp_path: Path
) -> None:
    """In order, in one directory: files are saved, commands print what the page says, the rest is checked."""
    pages.run_page(page, tmp_path)
