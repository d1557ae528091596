"""An HTTP server based on aiohttp's parser and handlers. It knows no volume.

`serve` runs it from bind to drain, `prefork` with several processes; `sockets` binds, `tls` reloads certificates,
`handshake` is the protocol of a TLS connection before it is encrypted,
`limits` bounds connections and header time, `access_log` writes a line per request, `durations` labels its time for the metrics.
`aiohttp_protocol` names what is used of aiohttp's connection protocol and is not public, `protocol` extends it, `framing` checks what RFC 9112 requires beyond aiohttp's parser,
and `acknowledged` tracks which bytes the client has received.
`raw_socket` accesses the socket of a transport: `recv` for large uploads, `sendfile` for large downloads, `memfd` for large responses.
`fastpath/` answers repeated requests from a cache.
"""
