"""One module per command, each with a `command` object: its options, and little else.

These are `write`, `read`, `collect`, `reload`, `mirror`, `publish`, `sign`, `delete`, `wait`, `check`, `doctor` and `demo`.
"""
