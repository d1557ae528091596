"""Change notifications: an event is a hint that something may have changed, and never the truth about it.

`base` defines what is watched and what an event says. `inotify` and `watchfiles_backend` are sources of events,
`select` chooses between them by file system, and `wakeup` wakes a thread that waits for events.
"""
