"""Change notifications. An event says that something may have changed; only a scan shows what.

`base` defines watch targets and event batches. `inotify` and `watchfiles_backend` are sources of events,
`select` chooses one by file system, and `wakeup` wakes a thread that waits for events.
"""
