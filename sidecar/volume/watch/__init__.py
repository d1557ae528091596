"""Watch a path: each version once, the newest first for a slow consumer.

`watch` is what users hold, `group` several paths as one, and `options` are their arguments. A `session` is the time from the first user to the last;
its `thread` waits for events or the clock, a `scanner` reads the path, and `stability` decides what may be shown,
by the `event_log`. `changes` is what events have touched since a scan; `coverage` watches the other directories that a listing reads.
"""
