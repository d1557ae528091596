"""What an action is told, whatever the files are called and however many there are."""

from __future__ import annotations

import json

from sidecar.reload import Change

VERSION = "e3b0c44298fc1c149afbf4c8996fb924"


def test_names_are_no_part_of_the_protocol_that_carries_them() -> None:
    """Who may write to the volume chooses names, and must not add a header."""
    change = Change("/x", VERSION, ("a,b", "c\r\nHost: evil", "ö"))
    assert change.headers()["Sidecar-Changed"] == "a%2Cb,c%0D%0AHost%3A%20evil,%C3%B6"
    assert json.loads(change.json())["changed"] == ["a,b", "c\r\nHost: evil", "ö"]


def test_more_names_than_a_header_or_a_variable_holds_are_a_star() -> None:
    """execve(2) refuses a variable of more than 128 KiB, servers headers of more than 8 KiB; standard input has all."""
    change = Change("/x", VERSION, tuple(f"file-{number}" for number in range(1000)))
    assert change.headers()["Sidecar-Changed"] == "*"
    assert change.environment()["SIDECAR_CHANGED"] == "*"
    assert len(json.loads(change.json())["changed"]) == 1000
