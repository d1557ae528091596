"""Have an application take over what was published: a webhook, a command or a signal for each distinct version.

    await reload.run("/shared/config/", [reload.Webhook("http://localhost:9090/-/reload")])

The names below are public; the modules they live in may change.
Each is imported when it is first used: who sends signals never loads an HTTP client.

Inside, `runner` follows a path, tries again, and knows which version the application has; `options` checks its arguments.
`webhook`, `command` and `signals` are the actions, `confirmation` asks whether one has worked;
`change` is what they are told, and how they fail. `client` makes all HTTP requests.
`rollback` publishes the last confirmed version again, and remembers both versions across restarts;
`expansion` publishes a version with its references expanded, `rollout` says when it is the turn of a Pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar import _exports

if TYPE_CHECKING:
    from sidecar.reload.change import Action as Action
    from sidecar.reload.change import ActionFailed as ActionFailed
    from sidecar.reload.change import Change as Change
    from sidecar.reload.command import Command as Command
    from sidecar.reload.runner import Reloader as Reloader
    from sidecar.reload.runner import run as run
    from sidecar.reload.signals import Signal as Signal
    from sidecar.reload.webhook import Webhook as Webhook

_MODULES = {
    "run": "sidecar.reload.runner",
    "Reloader": "sidecar.reload.runner",
    "Webhook": "sidecar.reload.webhook",
    "Command": "sidecar.reload.command",
    "Signal": "sidecar.reload.signals",
    "Action": "sidecar.reload.change",
    "Change": "sidecar.reload.change",
    "ActionFailed": "sidecar.reload.change",
}

__all__ = [*_MODULES]  # noqa: PLE0604 (a name twice is a name that can differ)

__getattr__, __dir__ = _exports.lazy(__name__, _MODULES)
