"""Helper processes: whenever the other side goes, they end without a word."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from sidecar.process import helper_process
from support import environment


@pytest.mark.parametrize(
    "module", ["sidecar.volume.validation.validator", "sidecar.volume.validation.command_process"]
)
@pytest.mark.parametrize("greeted", [True, False])
def test_a_helper_ends_without_a_word_when_the_other_side_is_gone(
    module: str, greeted: bool
) -> None:
    """A warning of its own would appear in the log of the writer, or on the terminal of `sidecar wait`."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import main; main()"],
                stdin=theirs.fileno(),
                stderr=subprocess.PIPE,
                env=environment(),
            )
        if greeted:
            helper_process.send(ours, (1.0, None))
            assert helper_process.receive(ours) is None
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"", 0)
