"""Floor 4: everything that is served, on aiohttp.

Applications: `reader`, `writer` and `files` are whole ones, `follow` keeps the content in one of the user's,
`ops` are the routes of probes and metrics (`probes`: for any server), with `descriptions` made of `openapi`.

What comes in: `incoming` reads what a writer is sent (`receiving`: large bodies), `bearer` asks who it is, `cross_origin` for which page a browser sends it, `datapath` knows whether the volume takes it,
`confirm` asks the reader whether it has arrived.

What goes out: `answers` knows conditions and ranges, `jsontext` the JSON, `sending` large files, `stream` the events,
`waiting` those who wait for a change (`bells` wake them, a `room` holds all who ask for the same), `problems` what is said when something fails.

Connections: `serve` is their life from listening to the drain, `listening` opens the places, `acknowledged` knows what clients have received, `tls`, `handshake` and `guard` stand at the door, `access_log` says who has asked for what,
`connection` is what ours does beyond aiohttp's, `framing` what RFC 9112 demands beyond its parser, `express` asks the `lane/` first, the short way for what was asked before (`memfile`: for long answers),
`passage` the one past a transport for large bodies, in and out, `workers` several processes.
"""
