"""What the wheel has beside the package: completion for bash, zsh and fish, where these shells look."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPLETIONS: dict[str, type[ShellComplete]] = {
    "share/bash-completion/completions/sidecar": BashComplete,
    "share/zsh/site-functions/_sidecar": ZshComplete,
    "share/fish/vendor_completions.d/sidecar.fish": FishComplete,
}


class CompletionHook(BuildHookInterface[Any]):
    """Adds to the wheel what `_SIDECAR_COMPLETE=bash_source sidecar` and its like print."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        self._scratch = Path(tempfile.mkdtemp())
        for target, shell in COMPLETIONS.items():
            path = self._scratch / Path(target).name
            complete = shell(click.Command("sidecar"), {}, "sidecar", "_SIDECAR_COMPLETE")
            # The method of the base class: that of bash starts bash to ask for its version.
            path.write_text(ShellComplete.source(complete))
            build_data["shared_data"][str(path)] = target

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        shutil.rmtree(self._scratch)
