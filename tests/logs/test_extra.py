"""Without the extra `logs` nothing is less safe: what needs it is refused, with what to install."""

from __future__ import annotations

import gzip
import sys

import pytest

from sidecar._errors import ConfigError
from sidecar.logs import regex
from sidecar.logs.sinks import compression


def test_without_re2_a_pattern_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own engine can be stalled by a line (CWE-1333): it is no replacement. Plain text needs none."""
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(ConfigError, match=r"pip install 'podsidecar\[logs\]'"):
        regex.compile_pattern("(a+)+$")
    assert regex.compile_pattern("/healthz").found("GET /healthz")


def test_without_isal_bodies_are_gzip_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 1952, by the standard library."""
    monkeypatch.setitem(sys.modules, "isal", None)
    made = compression._choose()()
    assert gzip.decompress(made.compress(b"line\n" * 1000) + made.flush()) == b"line\n" * 1000
