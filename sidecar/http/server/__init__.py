"""An HTTP server on aiohttp's parser and handlers. It knows no volume.

`serve` runs it from listening to the drain, `prefork` by several processes; `sockets` binds, `tls` reloads certificates, `handshake` is a TLS connection before it is encrypted,
`limits` bounds connections and header time, `access_log` writes a line a request.
`protocol` is what a connection does beyond aiohttp's, `framing` what RFC 9112 demands beyond its parser,
and `acknowledged` knows which bytes the client has received.
`raw_socket` is the way past a transport to its socket: `recv` for large uploads, `sendfile` for large downloads, `memfd` for long answers.
`fastpath/` answers what was asked before.
"""
