"""Layer 5: everything that is served, on aiohttp.

`apps/` are the applications, reader and writer; `subscribe/` tells clients of changes; `semantics/` is what the RFCs define;
`server/` is the engine, which knows no volume: sockets, TLS, limits, large bodies, and the fast path.
`problems` is how an error is answered (RFC 9457), `health_state` what probes ask an application,
and `handler_api` what a handler may tell the fast path.
"""
