"""Layer 5: everything that is served over HTTP, based on aiohttp.

`apps/` has the applications, reader and writer; `subscribe/` notifies clients of changes; `semantics/` implements the RFCs;
`server/` is the engine, which knows no volume: sockets, TLS, limits, large bodies, and the fast path.
`ops` has the routes of probes and metrics, and `probes` the same for any server;
`problems` are the error responses (RFC 9457), `health_state` the health checks of an application,
and `handler_api` is the interface between handlers and the fast path.
"""
