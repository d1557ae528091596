"""Watch a path: each version once; a slow consumer gets the newest.

`watch` has the public object, `group` watches several paths together, and `options` checks their arguments.
A `session` lasts from the first user to the last. Its `thread` waits for events or a timeout, a `scanner` reads the path,
and `stability` decides what may be shown, based on the `event_log`.
`changes` collects the names with events since a scan; `coverage` watches the nested directories of a listing.
"""
