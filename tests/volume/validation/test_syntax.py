"""The syntax check by the name that its module had before 0.2.0."""

from __future__ import annotations

import pytest


def test_the_name_of_the_module_before_0_2_0_still_works_and_warns() -> None:
    """What moves keeps its old name for one release, with a warning."""
    with pytest.warns(DeprecationWarning, match=r"sidecar\.volume\.validation\.syntax"):
        from sidecar.volume import syntax
    with pytest.raises(ValueError, match="line 2, column 1"):
        syntax.parse("a: [", "yaml")
    with pytest.raises(ImportError, match="cannot import name 'no_such'"):
        from sidecar.volume import no_such  # noqa: F401
