"""Layer 3: a shared volume as versioned content. This package does not depend on HTTP or logs.

`volume` has the public class for publishing. `content/` reads the disk, for publishers and watchers;
`validation/` validates content; `publish/` changes the disk; `watch/` watches it for changes.
`publish/` and `watch/` do not import each other. `outcomes` counts, logs, audits and traces how an attempt ended; `change_log` logs one line for each change, published or detected.
"""
