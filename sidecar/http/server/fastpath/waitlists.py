"""An index of coalesced long polls: one waitlist per request; `http/subscribe/coalesced` implements the waitlist.

Most clients that wait for a change have the same content. The first two requests are handled by aiohttp.
The second one creates a waitlist for all further ones: in it a connection is a dict entry, without a task or a handler.
After a change aiohttp answers the first ones, and the others get the same bytes:

    handler            calls `coalesced_poll` while the content is not new to that request
    FastPathProtocol   joins the waitlist and buffers further input
    Waitlists          finds the waitlist, and knows whether the response is cached (`ListenerCache.poll_responses`)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sidecar.http.server.fastpath import request_key

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from sidecar.http.handler_api import MakeWaitlist, Waitlist
    from sidecar.http.server.fastpath.request_key import SeenOnce
    from sidecar.http.server.fastpath.response_cache import ResponseCache

_MAX_WAITLISTS = 128


class Waitlists:
    """Waitlists by request key; `poll_responses` is the cache of the responses to their members."""

    def __init__(self, seen: SeenOnce, poll_responses: ResponseCache) -> None:
        self._waitlists: dict[bytes, Waitlist] = {}
        self._seen = seen
        self._poll_responses = poll_responses

    def find(self, request: bytes) -> tuple[Waitlist, bytes] | None:
        """Return the waitlist of a request, and the bytes to look up its response with; None if there is none."""
        if not self._waitlists:
            return None
        key = request_key.cache_key(request)
        waitlist = self._waitlists.get(key)
        return None if waitlist is None else (waitlist, key if key == request else request)

    def find_waitlist(
        self,
        data: bytes,
        request: BaseRequest,
        make: MakeWaitlist,
        replacement: tuple[str, str] | None,
    ) -> Waitlist | None:
        """Return the waitlist for this request; it is created when the request is seen for the second time.

        `replacement` is (new, old): the waitlist is that of the same request with `old` replaced by `new`,
        the request that the clients answered now will send next. Returns None if there is no waitlist.
        """
        if len(data) > request_key.MAX_REQUEST_BYTES or not request_key.is_cacheable(request):
            return None
        key = request_key.cache_key(data)
        many = self._seen.before(key)
        if replacement is not None:
            new, old = (word.encode("utf-8", "surrogateescape") for word in replacement)
            if key.count(old) != 1:
                return None
            key = key.replace(old, new)
        waitlist = self._waitlists.get(key)
        if waitlist is None and many and self._can_add():
            waitlist = make(
                partial(self._poll_responses.contains, key), partial(self._waitlists.pop, key)
            )
            self._waitlists[key] = waitlist
        return waitlist

    def _can_add(self) -> bool:
        """Return whether there is space for another waitlist, after closing an empty one if necessary."""
        if len(self._waitlists) >= _MAX_WAITLISTS:
            for waitlist in list(self._waitlists.values()):
                if waitlist.close_if_empty():
                    return True
        return len(self._waitlists) < _MAX_WAITLISTS
