"""What the RFCs define, without a server and without a volume.

`representation` knows entity tags, conditions, ranges and preferences (RFC 9110, RFC 7240), `bearer_auth` tokens (RFC 6750),
`failed_logins` limits wrong ones, `cross_origin` tells which page a browser sends a request for (Fetch Metadata), `cors` which page may read a response,
`openapi` has the parts of a description, and `server_spans` the trace of a request (conventions of OpenTelemetry).
"""
