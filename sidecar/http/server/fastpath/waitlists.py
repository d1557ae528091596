"""Rooms for those who wait, one for all who ask in the same words; `http/subscribe/coalesced` furnishes them.

Those who wait for a change mostly have the same content. The first two wait in aiohttp,
and the second opens a room for all others: there a connection is an entry in a table, without a task or a handler.
When something has changed aiohttp answers the first, and the others get the same bytes:

    handler            says `room_for`, for as long as what is there is not new to those words
    FastPathProtocol   enters it, and holds back what else comes
    Rooms              know where it is, and whether the answer has been given once (`Lane.told`)
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

_MOST_ROOMS = 128


class Waitlists:
    """Rooms by the words of those who wait in them; `told` are the answers that they get."""

    def __init__(self, seen: SeenOnce, told: ResponseCache) -> None:
        self._rooms: dict[bytes, Waitlist] = {}
        self._seen = seen
        self._told = told

    def find(self, request: bytes) -> tuple[Waitlist, bytes] | None:
        """Return where to wait with these bytes, and the bytes as they are kept there; None: ask aiohttp."""
        if not self._rooms:
            return None
        key = request_key.cache_key(request)
        room = self._rooms.get(key)
        return None if room is None else (room, key if key == request else request)

    def room_for(
        self, data: bytes, request: BaseRequest, make: MakeWaitlist, instead: tuple[str, str] | None
    ) -> Waitlist | None:
        """Return where others wait who ask for something newer with these bytes: made at the second time.

        Or with these bytes but for one word, which is `instead` of another: they will be many, if those were.
        None: there is none.
        """
        if len(data) > request_key.LONGEST or not request_key.is_cacheable(request):
            return None
        key = request_key.cache_key(data)
        many = self._seen.before(key)
        if instead is not None:
            new, old = (word.encode("utf-8", "surrogateescape") for word in instead)
            if key.count(old) != 1:
                return None
            key = key.replace(old, new)
        room = self._rooms.get(key)
        if room is None and many and self._has_place():
            room = make(partial(self._told.knows, key), partial(self._rooms.pop, key))
            self._rooms[key] = room
        return room

    def _has_place(self) -> bool:
        """Whether one more may be made, if need be in the place of one in which nobody is."""
        if len(self._rooms) >= _MOST_ROOMS:
            for room in list(self._rooms.values()):
                if room.close_if_empty():
                    return True
        return len(self._rooms) < _MOST_ROOMS
