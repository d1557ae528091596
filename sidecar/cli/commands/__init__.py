"""One module a command, each with a `command` in it: its options, and little else.

These are `write`, `read`, `collect`, `reload`, `publish`, `delete`, `wait`, `check`, `doctor` and `demo`.
"""
