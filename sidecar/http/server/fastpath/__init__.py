"""The fast path: a request that was answered before, byte for byte, is answered again without parsing it.

A reader serves one content to clients that send the same request each time.
So the complete bytes of a request are kept, and with them the complete bytes that aiohttp has sent for it,
until something changes: the content, its staleness, the process that begins to drain.
What is kept has been parsed, checked and answered by aiohttp at the same listener;
the fast path itself understands nothing of HTTP, so it cannot understand it differently.

It is there for the numbers of docs/benchmarks.md (a third of the CPU of a handler for each request), and no function needs it:
with `ServerProtocol` in place of `FastPathProtocol` every request is answered by its handler.

    sidecar.http.handler_api   a handler says that its answer depends on nothing but the request and what `invalidate_all` is called for
    `protocol`                 asks for an answer while no request is under way, and stores what aiohttp has sent
    listener_cache             what is cached at one listener

A `listener_cache` is a `response_cache`, `write_templates` (requests to write that differ in their content alone)
and `waitlists` (long polls that ask for the same).
They stand on `request_key` (which requests are the same), `serialized_response` (what was sent),
`date_header` (`Date` changes each second) and `counters` (what was answered).
"""

from __future__ import annotations

from sidecar.http.server.fastpath.counters import count
from sidecar.http.server.fastpath.listener_cache import ListenerCache

__all__ = ["ListenerCache", "count"]
