"""Layer 3: a shared volume as versioned content. This package does not depend on HTTP or logs.

`volume` has the public class for publishing. `content/` reads the disk, for publishers and watchers;
`validation/` validates content; `publish/` changes the disk; `watch/` watches it for changes.
`publish/` and `watch/` do not import each other. `outcomes` counts, logs, audits and traces how an attempt ended; `change_log` logs one line for each change, published or detected.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name != "syntax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Until 0.3.0, for programs that use the private module by the name that it had before 0.2.0.
    warnings.warn(
        "sidecar.volume.syntax is sidecar.volume.validation.syntax now",
        DeprecationWarning,
        stacklevel=2,
    )
    return importlib.import_module("sidecar.volume.validation.syntax")
