"""Tell clients of changes.

`pending` are the requests that wait, and what wakes them; `long_poll` answers them, `coalesced` those that ask for the same;
`sse` sends server-sent events.
"""
