"""Several processes that do the same work, under one parent.

`supervisor` forks them, replaces those that die, and ends them; `worker` is how one of them queries the others,
and `aggregate` adds up their metrics.
"""
