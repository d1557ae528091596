"""The express lane: a request that was answered before, byte for byte, is answered again without a thought.

A reader serves one content to clients that ask in the same words each time.
So the complete bytes of a request are remembered, and with them the complete bytes that aiohttp has answered,
until something changes: the content, its staleness, the process that begins to drain.
What is remembered has been parsed, checked and answered by aiohttp at the same place;
the lane itself understands nothing of HTTP, so it cannot understand it differently.

    handler            says that an answer depends on nothing but the request and what `invalidate_all` is called for
    Express            asks for an answer while no request is under way, and hands in what aiohttp has sent
    Lane               keeps them, within bounds, and sets `Date` anew each second

Handlers and connections use the names below.
Inside, a `lane` is what is known at one place: answers that are `remembered`,
forms of `writes` that differ in their content alone, and `rooms` for all who wait with the same words.
Those stand on `requests`, what one is told from another by, `responses`, what was sent for it,
the `second` whose `Date` that bears, and `counts` of what was answered. `offers` is what handlers say.
"""

from __future__ import annotations

from sidecar.http.handler_api import (
    cache_safe,
    coalesced_poll,
    deadline,
    mark_cacheable,
    mark_writable,
    prior_result,
)
from sidecar.http.server.fastpath.counters import count
from sidecar.http.server.fastpath.listener_cache import ListenerCache
from sidecar.http.server.fastpath.response_cache import HotResponse, epoch, invalidate_all
from sidecar.http.server.fastpath.waitlists import MakeWaitlist, WaitingConnection, Waitlist
from sidecar.http.server.fastpath.write_templates import WriteFunction, WriteTemplate

__all__ = [
    "HotResponse",
    "ListenerCache",
    "MakeWaitlist",
    "WaitingConnection",
    "Waitlist",
    "WriteFunction",
    "WriteTemplate",
    "cache_safe",
    "coalesced_poll",
    "count",
    "deadline",
    "epoch",
    "invalidate_all",
    "mark_cacheable",
    "mark_writable",
    "prior_result",
]
