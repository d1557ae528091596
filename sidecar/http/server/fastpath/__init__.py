"""The fast path: repeated requests are answered from a cache, without parsing them.

A reader serves one content to clients that send the same bytes each time.
The cache maps the complete bytes of a request to the complete bytes that aiohttp sent in response.
It is valid until something changes: the content, its staleness, or the process starts to drain.
Every cached response was parsed, checked and produced by aiohttp on the same listener.
The fast path does not interpret HTTP, so it cannot interpret it differently.

It exists for the numbers of docs/benchmarks.md (a third of the CPU of a handler per request); no feature depends on it:
with `ServerProtocol` in place of `FastPathProtocol`, every request is answered by its handler.

    sidecar.http.handler_api   a handler declares that its response depends only on the request and on `invalidate_all`
    `protocol`                 looks a request up while the connection is idle, and stores what aiohttp has sent
    listener_cache             everything that is cached for one listener

A `listener_cache` combines `response_cache`, `write_templates` (writes that differ only in their content)
and `waitlists` (long polls that send the same request).
They use `request_key` (which requests are equal), `serialized_response` (the bytes that were sent),
`date_header` (`Date` changes every second) and `counters` (responses by status).
"""

from __future__ import annotations

from sidecar.http.server.fastpath.counters import count
from sidecar.http.server.fastpath.listener_cache import ListenerCache

__all__ = ["ListenerCache", "count"]
