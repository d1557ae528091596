"""Notify clients of changes.

`pending` is the registry of waiting requests and wakes them; `long_poll` responds to them, `coalesced` groups equal ones;
`sse` sends server-sent events.
"""
